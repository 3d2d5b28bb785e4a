#!/bin/bash
# An image of memory in huge pages of hugetlbfs shows one instant.
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

pages=/proc/sys/vm/nr_hugepages
before=$(cat $pages)
want=$((before + 24))
[ -w $pages ] && echo $want >$pages 2>/dev/null || skip "cannot reserve huge pages"
# The status of the test stays what it is.
trap 'status=$?; set +e; trap - ERR; echo $before >$pages; (exit $status); _at_exit' EXIT
free=$(awk '/HugePages_Free/ {print $2}' /proc/meminfo)
[ "$free" -ge 20 ] || skip "no huge pages to be had"

work_start --backing hugetlb --threads 4 --size 32M --signals
for ((i = 0; i < $(times 3 50); i++)); do
	usnap snapshot -q "$work_pid" -o cut.usnap
	consistent cut.usnap
done
work_end

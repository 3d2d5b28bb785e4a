#!/bin/bash
# Restored memory is as the README's table says, and works.
# timeout: 300
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-restore.sh"

# Some huge pages for as long as this takes; without them that case is skipped.
pages=/proc/sys/vm/nr_hugepages
if [ -w $pages ]; then
	before=$(cat $pages)
	echo $((before + 8)) 2>/dev/null >$pages || true
	# The status of the test stays what it is.
	trap 'status=$?; set +e; trap - ERR; echo $before >$pages; (exit $status); _at_exit' EXIT
fi

table restore_memory restore_mapping

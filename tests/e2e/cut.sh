#!/bin/bash
# An image shows one instant of a process that writes all over its memory, whatever kind of memory and writes.
# timeout: 420
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

need jq
n=$(times 3 50)
size=$(times 96M 1G)

# cut WHAT [ARG]...: n snapshots in a row of a workload with these options.
cut() {
	local what=$1 i torn=0 held=0 pauses=()
	shift
	work_start --size "$size" --signals --sleepers "$@"
	for ((i = 0; i < n; i++)); do
		usnap snapshot -q "$work_pid" -o cut.usnap || fail "$what: snapshot $i"
		consistent cut.usnap
		pauses+=("$(stat_of cut.usnap pause_ns)")
		torn=$((torn + $(stat_of cut.usnap torn)))
		[ "$(stat_of cut.usnap held)" = false ] || held=$((held + 1))
	done
	work_end
	printf '%-16s %d snapshots, median pause %d us, %d torn attempts, %d held\n' "$what" "$n" \
		$(($(printf '%s\n' "${pauses[@]}" | sort -n | sed -n "$((n / 2 + 1))p") / 1000)) \
		"$torn" "$held"
	rm -f cut.usnap
}

cut random
cut 'several modes' --mode mix --stride 4096 --statics
cut 'kernel writes' --kernel-writes
cut 'first touch' --first-touch
cut 'huge pages' --backing huge
cut 'kinds of memory' --backing mix --threads 5 --statics
cut fork --fork
cut spawn --spawn
cut threads --thread-churn
cut mprotect --mprotect
cut 'all of it' --backing mix --threads 5 --mode mix --kernel-writes --first-touch --fork \
	--spawn --thread-churn --mprotect --statics

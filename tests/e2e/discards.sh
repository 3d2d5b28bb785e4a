#!/bin/bash
# A process that gives memory back at hundreds a second gives a right image or, with --no-hold, perhaps an error.
# timeout: 420
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

need jq

# discards N KIND SIZE: n snapshots that hold if they must, n that may fail instead.
discards() {
	local n=$1 kind=$2 size=$3 i torn=0 held=0 failed=0 before
	work_start --size "$size" --discard "$kind" --signals
	before=$(outside "$work_pid")
	for ((i = 0; i < n; i++)); do
		usnap snapshot -q "$work_pid" -o d.usnap || fail "$kind: snapshot $i"
		consistent d.usnap
		torn=$((torn + $(stat_of d.usnap torn)))
		[ "$(stat_of d.usnap held)" = false ] || held=$((held + 1))
		rm d.usnap
	done
	for ((i = 0; i < n; i++)); do
		if usnap snapshot -q --no-hold "$work_pid" -o d.usnap 2>err; then
			consistent d.usnap
			same held "$(stat_of d.usnap held)" false
			rm d.usnap
		else
			failed=$((failed + 1))
			says err 'uffd-snap: cannot '
			[ ! -e d.usnap ] || fail "a failed snapshot left an image"
		fi
	done
	untouched "$work_pid" "$before"
	# While they are held, its threads wait for as long as the copy takes.
	if [ $held -eq 0 ]; then work_end; else work_over; fi
	printf '%-10s %d snapshots, %d torn attempts, %d held; --no-hold: %d of %d failed\n' "$kind" \
		"$n" "$torn" "$held" "$failed" "$n"
}

kinds='malloc munmap mremap dontneed free fixed brk remove punch truncate'
for kind in $kinds; do
	discards "$(times 1 10)" "$kind" "$(times 32M 128M)"
done
discards "$(times 2 50)" all "$(times 64M 1G)"

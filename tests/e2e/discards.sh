#!/bin/bash
# A process that gives memory back at hundreds a second gives a right image or, with --no-hold, perhaps an error.
# timeout: 420
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

need jq

# discards N KIND SIZE: n snapshots that hold if they must, n that may fail instead. Looked at when the
# process has ended, as cut() does.
discards() {
	local n=$1 kind=$2 size=$3 i image torn=0 held=0 failed=0 before
	work_start --size "$size" --discard "$kind" --signals
	work_watch
	before=$(outside "$work_pid")
	for ((i = 0; i < n; i++)); do
		image=may-hold.$i.usnap
		usnap snapshot -q "$work_pid" -o "$image" || fail "$kind: snapshot $i"
		torn=$((torn + $(stat_of "$image" torn)))
		[ "$(stat_of "$image" held)" = false ] || held=$((held + 1))
	done
	for ((i = 0; i < n; i++)); do
		image=no-hold.$i.usnap
		if usnap snapshot -q --no-hold "$work_pid" -o "$image" 2>err; then
			same held "$(stat_of "$image" held)" false
		else
			failed=$((failed + 1))
			says err 'uffd-snap: cannot '
			[ ! -e "$image" ] || fail "a failed snapshot left an image"
		fi
	done
	untouched "$work_pid" "$before"
	# While they are held, its threads wait for as long as the copy takes.
	if [ $held -eq 0 ]; then work_end; else work_over; fi
	for image in *.usnap; do
		consistent "$image"
		rm "$image"
	done
	printf '%-10s %d snapshots, %d torn attempts, %d held; --no-hold: %d of %d failed\n' "$kind" \
		"$n" "$torn" "$held" "$failed" "$n"
}

kinds='malloc munmap mremap dontneed free fixed brk remove punch truncate'
for kind in $kinds; do
	discards "$(times 1 10)" "$kind" "$(times 32M 128M)"
done
discards "$(times 2 50)" all "$(times 64M 1G)"

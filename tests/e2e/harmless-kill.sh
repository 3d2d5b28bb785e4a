#!/bin/bash
# Killed by SIGKILL at any moment, a snapshot leaves nothing behind: not in the process, not on the disk.
# timeout: 300
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

need gdb jq
n=$(times 15 200)
mkdir to
work_start --size "$(times 96M 256M)" --kernel-writes --signals --sleepers --statics
before=$(outside "$work_pid")
threads=$(threads_of "$work_pid")

us=0
for i in 1 2 3; do
	"$WORKLOADS/runstat" whole.json "$UFFD_SNAP" snapshot -q "$work_pid" -o to/whole.usnap
	rm to/whole.usnap
	took=$(($(jq .ns whole.json) / 1000))
	[ $i -gt 1 ] && [ $us -le $took ] || us=$took
done

RANDOM=${SEED:-4711}
echo "SEED=${SEED:-4711}, one snapshot takes $us us"
killed=0
for ((i = 0; i < n; i++)); do
	# Also a little later than the end; and often in the short phases at the start.
	case $((i % 3)) in
	0) at=$((us * (RANDOM % 1100) / 1000)) ;;
	1) at=$((us * (RANDOM % 1000) / 4000)) ;;
	2) at=$((RANDOM % 20000)) ;;
	esac
	"$WORKLOADS/runstat" --kill-after "$at" run.json "$UFFD_SNAP" snapshot -q "$work_pid" \
		-o to/x.usnap 2>/dev/null || true
	if [ "$(jq .status run.json)" -eq 137 ]; then
		killed=$((killed + 1))
		# The name appears as the last step of all; whoever is killed after it has an image.
		[ ! -e to/x.usnap ] || consistent to/x.usnap
	else
		same 'exit status of one that came first' "$(jq .status run.json)" 0
		consistent to/x.usnap
	fi
	rm -f to/x.usnap
	no_image to
	untouched "$work_pid" "$before"
	same threads "$(threads_of "$work_pid")" "$threads"
done
# And it can still be taken.
usnap snapshot -q "$work_pid" -o to/after.usnap
consistent to/after.usnap
rm to/after.usnap
work_end
echo "$killed of $n killed before the end"
[ $killed -ge $((n / 2)) ] || fail "too few were killed in time"

# While threads make calls for it, those among them that are in timed waits. (Signals: harmless-signal.)
work_start --size 64M --sleepers
before=$(outside "$work_pid")
threads=$(threads_of "$work_pid")
killed_at() {
	"${gdb_snapshot[@]}" \
		-ex "break $1" -ex "ignore 1 $2" -ex run -ex 'shell sleep 0.02' -ex kill \
		--args "$UFFD_SNAP" snapshot -q "$work_pid" -o to/x.usnap >gdb.out 2>&1 </dev/null
	grep -q "Breakpoint 1, $1" gdb.out || fail "$1 was not reached $2 times: $(cat gdb.out)"
	no_image to
	untouched "$work_pid" "$before"
	same "threads after $1 $2" "$(threads_of "$work_pid")" "$threads"
}
for call in 'chain_begin 0' 'chain_begin 4' 'chain_wait 0' 'chain_wait 7' 'chain_finish 0' \
	'chain_finish 5'; do
	# shellcheck disable=SC2086 # two words
	killed_at $call
done
work_over

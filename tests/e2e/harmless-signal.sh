#!/bin/bash
# A signal that a thread has stopped for comes to it once, whether the snapshotter lives or is killed there by SIGKILL.
. "$(dirname "$0")/../lib.sh"

need gdb jq
mkdir to
start_workload sigcount
sent=0

_came() { [ "$(grep -c '^signal' sigcount.out)" -ge $sent ]; }
# All that were sent have been handled, each once.
all_came() {
	wait_until 10 _came
	same 'signals handled' "$(grep '^signal' sigcount.out | tail -n 1)" "signal $sent"
	grep -q "^State:.*S (" "/proc/$started/status" || sleep 0.1
	same 'traced by' "$(awk '$1 == "TracerPid:" { print $2 }' "/proc/$started/status")" 0
}

# snapshot_with_signal STOP COMMAND...: the signal comes when stop number STOP is about to be asked
# for, so that the thread stops with it; then gdb's commands.
snapshot_with_signal() {
	local stop=$1 command more=()
	shift
	for command in "$@"; do
		more+=(-ex "$command")
	done
	sent=$((sent + 1))
	gdb -nx -batch -ex 'set debuginfod enabled off' -ex 'handle SIG63 nostop noprint' \
		-ex 'break tracees_stop' -ex "ignore 1 $((stop - 1))" -ex run \
		-ex "shell kill -s RTMIN+1 $started; sleep 0.05" -ex 'delete 1' "${more[@]}" \
		--args "$UFFD_SNAP" snapshot -q "$started" -o to/x.usnap >gdb.out 2>&1 </dev/null
	grep -q '^Thread .* hit Breakpoint 1, tracees_stop' gdb.out ||
		grep -q '^Breakpoint 1, tracees_stop' gdb.out || fail "no stop $stop: $(cat gdb.out)"
}

# The first stop is for the helper, the last one is the freeze.
for stop in 1 2; do
	snapshot_with_signal $stop continue
	all_came
	usnap verify -q to/x.usnap
	rm to/x.usnap
	for point in 'chain_begin 0' 'chain_begin 1' 'chain_go 0' 'chain_go 1' 'chain_wait 0' \
		'chain_finish 0' 'chain_finish 1' 'signals_end 0' 'tracees_release 0'; do
		read -r name skip <<<"$point"
		case "$stop $point" in
		"1 "*" 1" | "1 chain_wait 0" | "1 signals_end 0") continue ;; # one chain of calls by steps
		esac
		snapshot_with_signal $stop "break $name" "ignore 2 $skip" continue 'shell sleep 0.02' kill
		grep -q "Breakpoint 2, $name" gdb.out || fail "stop $stop: no $point: $(cat gdb.out)"
		all_came
		[ ! -e to/x.usnap ] || fail "stop $stop: an image after $point"
	done
done

# It is in an image that was taken while it was on its way.
snapshot_with_signal 2 continue
all_came
tar xOf to/x.usnap process.json |
	jq -e --argjson rt "$(kill -l RTMIN)" '[.threads[].pending[], .signals.pending[] |
		select(.signo == $rt + 1)] | length == 1' >/dev/null || fail 'the image has not got the signal once'
kill -0 "$started"

#!/bin/bash
# A signal that a thread has stopped for comes to it once, whether the snapshotter lives or is killed there by SIGKILL.
. "$(dirname "$0")/../lib.sh"

need gdb
mkdir to
start_workload sigcount
sent=0

_came() { [ "$(grep -c '^signal' sigcount.out)" -ge $sent ]; }
# All that were sent have been handled, each once.
all_came() {
	wait_until 10 _came
	same 'signals handled' "$(grep '^signal' sigcount.out | tail -n 1)" "signal $sent"
	same 'traced by' "$(awk '$1 == "TracerPid:" { print $2 }' "/proc/$started/status")" 0
}

# snapshot_with_signal ALL COMMAND...: it comes right before a stop of all threads, or of one, which
# are traced already, so that one stops for it; then gdb's commands.
snapshot_with_signal() {
	local all=$1 command more=()
	shift
	for command in "$@"; do
		more+=(-ex "$command")
	done
	sent=$((sent + 1))
	"${gdb_snapshot[@]}" \
		-ex "break tracees_stop if all == $all" -ex run \
		-ex "shell kill -s RTMIN+1 $started; sleep 0.05" \
		-ex 'set var deadline_ns += 1000000000' -ex 'delete 1' "${more[@]}" \
		--args "$UFFD_SNAP" snapshot -q "$started" -o to/x.usnap >gdb.out 2>&1 </dev/null
	grep -q "Breakpoint 1, .*tracees_stop" gdb.out || fail "no stop: $(cat gdb.out)"
}

# killed_at ALL FUNCTION TIMES: killed when that is called for the last time of so many.
killed_at() {
	snapshot_with_signal "$1" "break $2" "ignore 2 $(($3 - 1))" continue 'shell sleep 0.02' kill
	grep -q "Breakpoint 2, .*$2" gdb.out || fail "all $1: no $2: $(cat gdb.out)"
	all_came
	[ ! -e to/x.usnap ] || fail "all $1: an image at $2"
}

# While other threads are attached to, which takes so long that there are ticks meanwhile.
sent=$((sent + 1))
"${gdb_snapshot[@]}" -ex 'break tracees_seize_one if ts->n == 1' -ex run \
	-ex "shell kill -s RTMIN+1 $started; sleep 0.05" -ex 'delete 1' -ex 'break ptrace' -ex continue \
	-ex 'delete 2' -ex 'break on_tick' -ex continue -ex 'shell sleep 0.02' -ex continue -ex 'delete 3' -ex continue \
	--args "$UFFD_SNAP" snapshot -q "$started" -o to/x.usnap >gdb.out 2>&1 </dev/null
same 'ticks meanwhile' "$(grep -c 'Breakpoint 3, .*on_tick' gdb.out)" 2
all_came
usnap verify -q to/x.usnap
rm to/x.usnap

# That of one thread for the helper.
snapshot_with_signal 0 continue
all_came
usnap verify -q to/x.usnap
rm to/x.usnap
for function in ticks_begin remote_with_helper chain_begin chain_wait chain_finish tracees_release; do
	killed_at 0 $function 1
done
# The freeze, in which two threads make calls.
killed_at 1 ticks_begin 1
killed_at 1 pstate_collect 1
killed_at 1 chain_begin 2
killed_at 1 chain_wait 1
killed_at 1 chain_finish 1
killed_at 1 chain_finish 2
killed_at 1 signals_end 1
killed_at 1 tracees_release 1

# What cannot be blocked comes to the helper: it is for the thread that waits for it.
"${gdb_snapshot[@]}" -ex 'break take_in_helper' \
	-ex run -ex "shell kill -STOP $started" -ex continue \
	--args "$UFFD_SNAP" snapshot -q "$started" -o to/x.usnap >gdb.out 2>&1 </dev/null
grep -q 'Breakpoint 1, .*take_in_helper' gdb.out || fail "no helper: $(cat gdb.out)"
usnap verify -q to/x.usnap
rm to/x.usnap
wait_until 10 grep -q '^State:.*T (stopped)' "/proc/$started/status"
kill -CONT "$started"

# In an image that was taken while it was on its way its handler has begun.
snapshot_with_signal 1 continue
all_came
usnap core -o core to/x.usnap
gdb -nx -batch -ex 'set debuginfod enabled off' -ex 'thread apply all -q backtrace' \
	"$WORKLOADS/sigcount" core >gdb.out 2>&1
grep -q '^#0 .*take_signal' gdb.out || fail "the handler has not begun: $(cat gdb.out)"

#!/bin/bash
# A process that exits, calls execve, or is stopped and continued during a snapshot does as it would have done without.
# timeout: 240
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

need jq
n=$(times 8 40)
mkdir to
RANDOM=${SEED:-4711}
echo "SEED=${SEED:-4711}"

# odd KIND MS: oddproc with writes for so long.
odd() {
	rm -f oddproc.out
	start_workload oddproc "$@"
}

# judged: a snapshot that ended by itself, one way or the other.
judged() {
	case $1 in
	0)
		usnap verify -q to/x.usnap
		rm to/x.usnap
		;;
	1)
		grep -q '^uffd-snap: cannot ' err || fail "$(cat err)"
		;;
	*)
		fail "exit status $1: $(cat err)"
		;;
	esac
	no_image to
}

failed=0
for ((i = 0; i < n; i++)); do
	odd exit $((RANDOM % 400))
	pid=$started got=0
	usnap snapshot -q "$pid" -o to/x.usnap 2>err || got=$?
	judged $got
	failed=$((failed + got))
	got=0
	wait "$pid" || got=$?
	same 'exit status of the process' $got 7
done
echo "exit: $failed of $n snapshots failed"

failed=0
for ((i = 0; i < n; i++)); do
	odd exec $((RANDOM % 400))
	pid=$started got=0
	usnap snapshot -q "$pid" -o to/x.usnap 2>err || got=$?
	judged $got
	failed=$((failed + got))
	wait_until 20 eval '[ "$(grep -c ^ready oddproc.out)" -eq 2 ]'
	untouched "$pid" "$(outside "$pid" | sed 's/^tracer .*/tracer 0/; s/^registered .*/registered 0/')"
	kill -KILL "$pid"
	wait "$pid" 2>/dev/null || true
done
echo "exec: $failed of $n snapshots failed"

# Over and over, by one thread or another: none of the stops is in the way of it.
start_workload execloop
failed=0
for ((i = 0; i < 3 * n; i++)); do
	got=0
	usnap snapshot -q "$started" -o to/x.usnap 2>err || got=$?
	judged $got
	failed=$((failed + got))
done
kill -TERM "$started"
wait "$started"
longest=$(awk '/^execs/ { print $4 }' execloop.out)
cat execloop.out
echo "$failed of $((3 * n)) snapshots failed"
[ "$longest" -lt 1000000000 ] || fail "an execve() took $longest ns"

# Stopped before: still stopped after, and as it was when it goes on.
work_start --size 64M --signals --sleepers
before=$(outside "$work_pid")
halt "$work_pid"
usnap snapshot -q "$work_pid" -o to/x.usnap
consistent to/x.usnap
rm to/x.usnap
for s in /proc/"$work_pid"/task/*/status; do
	same "state in $s" "$(sed -n 's/^State:\t\(.\).*/\1/p' "$s")" T
done
kill -CONT "$work_pid"
untouched "$work_pid" "$before"

# Stopped and continued all the time meanwhile.
(
	while kill -STOP "$work_pid"; do
		sleep 0.0$((RANDOM % 5 + 1))
		kill -CONT "$work_pid"
		sleep 0.0$((RANDOM % 9 + 1))
	done
) 2>/dev/null &
stopper=$!
adopt $stopper
for ((i = 0; i < n; i++)); do
	usnap snapshot -q "$work_pid" -o to/x.usnap
	consistent to/x.usnap
	rm to/x.usnap
done
kill $stopper
wait $stopper 2>/dev/null || true
kill -CONT "$work_pid"
untouched "$work_pid" "$before"
work_over

# A thread that waits for a vfork()ed child cannot be stopped; the others must not pay for it.
odd vfork
pid=$started
before=$(outside "$pid")
got=0
timeout 60 "$UFFD_SNAP" snapshot -q "$pid" -o to/x.usnap 2>err || got=$?
judged $got
untouched "$pid" "$before"
[ $got -eq 0 ] || cat err

# The first thread has ended, another lives.
odd dead-leader
pid=$started got=0
usnap snapshot -q "$pid" -o to/x.usnap 2>err || got=$?
judged $got
[ $got -eq 0 ] || cat err

# Whoever maps memory waits while the flags of mappings are read: once.
need strace
start_workload witness
strace -f -e trace=openat -o trace "$UFFD_SNAP" snapshot -q "$started" -o to/x.usnap
judged 0
same 'readings of smaps' "$(grep -c '"smaps"' trace)" 1

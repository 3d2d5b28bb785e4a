#!/bin/bash
# A thread that ends while a snapshot protects its control block is joined, be rseq(2) in use or not; and so in the restored process.
# timeout: 200
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

need jq
told=0

# joins RSEQ: snapshots of a process whose threads end and are joined all the time.
joins() {
	local i
	workload_env=("GLIBC_TUNABLES=glibc.pthread.rseq=$1")
	start_workload joinwork
	workload_env=()
	for ((i = 0; i < $(times 4 150); i++)); do
		usnap snapshot -q "$started" -o j.usnap
		told=$((told + $(stat_of j.usnap ended_told | sed 's/null/0/')))
	done
	kill -TERM "$started"
	wait "$started" || fail "rseq $1: $(cat joinwork.out)"
	same 'last line' "$(tail -n 1 joinwork.out)" ok
}

joins 0
joins 1

# One that ends in the middle of a snapshot, and has not written to the page since it was protected.
workload_env=('GLIBC_TUNABLES=glibc.pthread.rseq=0')
start_workload joinwork late
workload_env=()
usnap snapshot -q --rate 1M "$started" -o j.usnap &
snapshot=$!
adopt $snapshot
wait_until 20 grep -qE '^VmFlags.* uw' "/proc/$started/smaps"
sleep 0.2
kill -USR1 "$started"
wait $snapshot
wait_until 60 grep -qx 'ok\|failed' joinwork.out
kill -TERM "$started"
wait "$started" || fail "a thread that has ended is waited for: $(cat joinwork.out)"

# Of the process without rseq(2): what nobody was told of at T0 is not in the image.
workload_env=('GLIBC_TUNABLES=glibc.pthread.rseq=0')
start_workload joinwork
workload_env=()
pid=$started
for ((i = 0; i < $(times 1 20); i++)); do
	usnap snapshot -q "$pid" -o j.usnap
	kill -KILL "$pid"
	wait "$pid" 2>/dev/null || true
	usnap restore -q --detach j.usnap >pid
	pid=$(cat pid)
	adopt "$pid"
done
kill -TERM "$pid"
wait_until 60 grep -qx 'ok\|failed' joinwork.out
same 'last line' "$(tail -n 1 joinwork.out)" ok
echo "$told threads had ended without a word"

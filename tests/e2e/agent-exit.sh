#!/bin/bash
# With UFFD_SNAP_ON_EXIT=wait a process that ends, or becomes another, does so when its snapshot is complete; else it does not wait.
# timeout: 120
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

need jq

# snapshot_of_the_dying END: its status in $status; the process has ended by itself.
snapshot_of_the_dying() {
	local pid snapshot
	start_workload giveback 48 "$1"
	pid=$started
	usnap snapshot -q --rate 12M "$pid" -o e.usnap 2>err &
	snapshot=$!
	adopt $snapshot
	wait_until 20 grep -qE '^VmFlags.* uw' "/proc/$pid/smaps"
	sleep 1
	kill -USR2 "$pid"
	status=0
	wait $snapshot || status=$?
	wait "$pid" || fail "$1: the process ended with $?"
}

for end in return _exit exec; do
	workload_env=("LD_PRELOAD=$AGENT" UFFD_SNAP_ON_EXIT=wait)
	snapshot_of_the_dying $end
	[ $status -eq 0 ] || fail "$end: $(cat err)"
	usnap verify -q e.usnap
	[ "$(pages_of e.usnap)" -gt 12288 ] || fail "$end: $(pages_of e.usnap) pages in the image"
	rm e.usnap
done
workload_env=("LD_PRELOAD=$AGENT")
snapshot_of_the_dying return
[ $status -ne 0 ] || fail "a snapshot of a process that has ended succeeded"
says err 'it has ended or runs another program now'
[ ! -e e.usnap ] || fail "a failed snapshot left an image"

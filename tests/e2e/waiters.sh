#!/bin/bash
# Threads that wait where the kernel writes for them go on after a snapshot as without one, and in the restored process.
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

need jq

echo 'Mutexes with priority inheritance'
start_workload pimutex
for i in 1 2 3 4 5; do
	usnap snapshot -q "$started" -o "image$i.usnap"
	kill -0 "$started" || fail "the process ended in snapshot $i: $(cat pimutex.err)"
done
usnap verify -q image*.usnap
kill -USR1 "$started"
wait "$started" || fail "status $?: $(cat pimutex.err)"
same 'what it says' "$(tail -n 1 pimutex.out)" ok

echo 'And restored'
: >restored.out
restored=$(usnap restore -q --detach --fd 1="$PWD/restored.out" image3.usnap 2>err) || fail "restore: $(cat err)"
adopt "$restored"
kill -USR1 "$restored"
wait_until 20 grep -q ok restored.out

#!/bin/bash
# What a process shares with another since a fork stays shared, and memory that the kernel may drop is no obstacle.
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

need jq python3

echo 'Shared since a fork'
cat >shares.py <<'END'
import os, signal, sys
data = bytearray(os.urandom(1 << 20) * 64)
child = os.fork()
if child == 0:
    signal.pause()
print("ready", child, flush=True)
signal.pause()
END
start python3 shares.py
# shellcheck disable=SC2154 # of lib.sh
wait_until 20 grep -q ready "$started_log"
child=$(sed -n 's/^ready //p' "$started_log")
adopt "$child"
own() { awk '/^Private_(Clean|Dirty):/ {n += $2} END {print n + 0}' "/proc/$1/smaps_rollup"; }
before=$(own "$started")
usnap snapshot -q "$started" -o shared.usnap
usnap verify -q shared.usnap
after=$(own "$started")
[ $((after - before)) -lt 4096 ] || fail "the process has $((after - before)) KiB more to itself than before"
kill -KILL "$child" "$started"

echo 'Memory that may be dropped'
cat >drops.py <<'END'
import ctypes, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
def droppable():
    at = libc.mmap(None, 1 << 16, 3, 0x28, -1, 0)
    if at in (None, 2**64 - 1):
        print("none", flush=True)
        sys.exit()
    ctypes.memset(at, 7, 1 << 16)
    return at
droppable()
print("ready", flush=True)
while True:
    # New ones too, also while it is taken.
    at = droppable()
    time.sleep(0.0005)
    libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(1 << 16))
END
start python3 drops.py
wait_until 20 grep -q 'ready\|none' "$started_log"
if grep -q ready "$started_log"; then
	for i in 1 2 3 4 5 6; do
		usnap snapshot -q "$started" -o drops.usnap
		usnap verify -q drops.usnap
	done
	usnap snapshot -q --kill "$started" -o drops.usnap
	restored=$(usnap restore -q --detach drops.usnap)
	adopt "$restored"
	sleep 0.2
	kill -0 "$restored" || fail 'the restored process has ended'
	kill -KILL "$restored"
else
	echo 'this kernel has none'
fi

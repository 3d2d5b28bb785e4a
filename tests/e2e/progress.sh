#!/bin/bash
# Progress is shown on a terminal and wiped at the end; piped, there is not a byte of it.
. "$(dirname "$0")/../lib.sh"
need script python3

# Half a GiB that does not compress to nothing, so that it takes a moment.
python3 -c '
import os, time
block = os.urandom(1 << 20)
heap = [bytearray(block) for _ in range(512)]
print("ready", flush=True)
time.sleep(120)' >python.out &
target=$!
adopt $target
wait_until 60 grep -q ready python.out

exits 0 usnap snapshot "$target" -o piped.usnap
says_not err $'\r'
exits 0 usnap verify piped.usnap
same 'stderr of verify' "$(cat err)" ''

on_terminal() {
	# script(1) gives the command a terminal for everything.
	TERM=xterm script -qec "$*" /dev/null >terminal </dev/null
	tr '\r' '\n' <terminal >lines
}
on_terminal "$UFFD_SNAP" snapshot "$target" -o t.usnap
grep -Eq 'MiB of .*%' lines || fail "no progress on a terminal: $(cat -v terminal)"
on_terminal "$UFFD_SNAP" snapshot -q "$target" -o t.usnap
same 'output with -q' "$(cat lines)" ''
TERM=dumb script -qec "$UFFD_SNAP snapshot $target -o t.usnap" /dev/null >terminal </dev/null
if grep -q '%' terminal; then fail 'progress on a terminal that cannot show it'; fi

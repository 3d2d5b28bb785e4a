#!/bin/bash
# A program with the agent has itself taken at intervals and on a signal, also as a daemon and after a restore, and notices nothing.
# timeout: 120
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"
. "$TESTS/lib-restore.sh"
. "$TESTS/lib-programs.sh"

need jq python3
AGENT=$B/libuffd-snap-agent.so
export UFFD_SNAP_STORE=$PWD/store

listed() { usnap list -q "$1" 2>/dev/null || true; }
images() { listed "$1" | wc -l; }
newest() { listed "$1" | tail -n 1; }
_newer() { [ "$(newest "$1")" != "$2" ] && [ -n "$(newest "$1")" ]; }
newer() { wait_until 20 _newer "$1" "$(newest "$1")"; }

# service PID: who takes its snapshots.
service() {
	local p
	for p in $(pgrep -f 'run --background --pid'); do
		tr '\0' ' ' 2>/dev/null <"/proc/$p/cmdline" | grep -q -- "--pid $1:" && echo "$p"
	done
	return 0
}
_served() { [ -n "$(service "$1")" ]; }
_unserved() { ! _served "$1"; }

# ---- at intervals ----------------------------------------------------------------------------

# It has no child, no signal and no descriptor that it did not make.
cat >program.py <<'END'
import os, signal, sys, time
seen = []
signal.signal(signal.SIGCHLD, lambda *a: seen.append("SIGCHLD"))
fds = sorted(os.listdir("/proc/self/fd"))
print("descriptors", *fds, flush=True)
print("ready", os.getpid(), flush=True)
while not os.path.exists("end"):
    try:
        seen.append("child %d" % os.waitpid(-1, os.WNOHANG)[0])
    except ChildProcessError:
        pass
    time.sleep(0.01)
print("seen", *seen, flush=True)
END
# What is to go: an image that none of those to come refers to.
begin before "$WORKLOADS/witness"
wait_until 10 grep -q '^ready' before.log
for ((i = 0; i < 2; i++)); do
	usnap snapshot -q --name timed --full-every 1 "$pid"
done
kill -KILL "$pid"
first=$(listed timed | head -n 1)
_pruned() { ! listed timed | grep -qxF "$first"; }
as_ready() { env LD_PRELOAD="$AGENT" "$@"; }
touch end
as_ready python3 program.py >plain </dev/null
rm end
begin timed env LD_PRELOAD="$AGENT" UFFD_SNAP_NAME=timed UFFD_SNAP_EVERY=1s UFFD_SNAP_KEEP='--keep-last 2 --max-size=1G' \
	python3 program.py
wait_until 10 grep -q '^ready' timed.log
wait_until 10 _served "$pid"
helper=$(service "$pid")
same 'descriptors' "$(grep descriptors timed.log)" "$(grep descriptors plain)"
[ "$(sed -n 's/^PPid:\t//p' "/proc/$helper/status")" != "$pid" ] || fail 'the helper is a child of the program'
same 'its directory' "$(readlink "/proc/$helper/cwd")" /
same 'its standard error' "$(readlink "/proc/$helper/fd/2")" /dev/null
for ((i = 0; i < 3; i++)); do
	newer timed
done
wait_until 10 _pruned
same 'in ps' "$(usnap ps --json | jq -r ".processes[] | select(.pid == $pid) | [.ready, .name, .last_t0_ms != null] | @csv")" 'true,"timed",true'
# A second one is one too many.
exits 0 env UFFD_SNAP_EVERY=1s "$UFFD_SNAP" run --background --pid "$pid"
same 'helpers' "$(service "$pid")" "$helper"
touch end
wait_until 10 grep -q '^seen' timed.log
same 'what it has seen' "$(grep '^seen' timed.log)" 'seen'
wait_until 5 _gone "$helper"
rm end

# What fails is told of where the program tells of its own.
: >file
begin broken env LD_PRELOAD="$AGENT" UFFD_SNAP_NAME=broken UFFD_SNAP_EVERY=1s UFFD_SNAP_STORE="$PWD/file" "$WORKLOADS/witness"
wait_until 10 grep -q "cannot open store '$PWD/file'" broken.log
kill -KILL "$pid"
wait_until 5 _unserved "$pid"
begin wrong env LD_PRELOAD="$AGENT" UFFD_SNAP_EVERY=sometimes "$WORKLOADS/witness"
wait_until 10 grep -q "cannot use 'sometimes' as UFFD_SNAP_EVERY" wrong.log
kill -KILL "$pid"

# ---- on a signal, through a wrapper, and after a restore --------------------------------------

begin asked env LD_PRELOAD="$AGENT" UFFD_SNAP_NAME=asked UFFD_SNAP_SIGNAL=USR2 sh -c 'exec "$0"' "$WORKLOADS/witness"
wait_until 10 grep -q '^ready' asked.log
wait_until 10 _served "$pid"
same 'helpers of a program behind a wrapper' "$(service "$pid" | wc -l)" 1
same 'images before the signal' "$(images asked)" 0
kill -USR2 "$pid"
newer asked
kill -USR2 "$pid"
newer asked
same 'images' "$(images asked)" 2
kill -KILL "$pid"
killed "$pid"
wait_until 5 _unserved "$pid"
pid=$(timeout 60 "$UFFD_SNAP" restore -q --detach asked 2>restore.err) || fail "restore: $(cat restore.err)"
adopt "$pid"
wait_until 10 _served "$pid"
same 'name after a restore' "$(usnap ps --json | jq -r ".processes[] | select(.pid == $pid and .ready).name")" asked
# Counted once, not what was counted before T0.
sleep 0.5
same 'images after the restore' "$(images asked)" 2
kill -USR2 "$pid"
newer asked
kill -KILL "$pid"
killed "$pid"
wait_until 5 _unserved "$pid"

# ---- a daemon -----------------------------------------------------------------------------

cat >daemon.py <<'END'
import os, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
null = os.open("/dev/null", os.O_RDWR)
for fd in range(3): os.dup2(null, fd)
open("daemon.pid.new", "w").write(str(os.getpid()))
os.rename("daemon.pid.new", "daemon.pid")
while True: time.sleep(0.05)
END
# Whoever waits for the end of its output does not wait for a helper.
said=$(timeout 20 env LD_PRELOAD="$AGENT" UFFD_SNAP_NAME=daemon UFFD_SNAP_EVERY=2s python3 daemon.py 2>&1 </dev/null) ||
	fail 'its output does not end'
same 'what it says' "$said" ''
wait_until 10 test -s daemon.pid
pid=$(cat daemon.pid)
adopt "$pid"
newer daemon
same 'process of the image' "$(tar xOf store/daemon/latest snapshot.json | jq .target.pid)" "$pid"
kill -KILL "$pid"
wait_until 5 eval "! pgrep -f 'run --background --pid' >/dev/null || _unserved $pid"

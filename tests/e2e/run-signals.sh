#!/bin/bash
# Signals that are no wish for an end do not end the supervision; a restore killed alone, an image that cannot be read and a stop from the terminal do no harm.
# timeout: 120
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"
. "$TESTS/lib-restore.sh"

need python3 jq setpriv
export UFFD_SNAP_STORE=$PWD/store

cat >program.py <<'END'
import os, signal, sys, time
if sys.argv[1] == "reads": signal.signal(signal.SIGHUP, lambda *a: None)
print("begin", os.getpid(), file=open(sys.argv[2], "a"), flush=True)
while True: time.sleep(0.01)
END
_began() { [ "$(wc -l <"$1")" -ge "$2" ]; }
# last FILE: the PID of the one that began last; it is ended with the test.
last() { sed -n '$s/^begin //p' "$1"; }

# ---- SIGHUP -----------------------------------------------------------------------------

# Whoever has its files read again with it wants it to be there.
: >reads
"$UFFD_SNAP" run --name reads --restart -- python3 program.py reads reads 2>reads.err </dev/null &
run=$!
adopt $run
wait_until 10 _began reads 1
kill -HUP $run
sleep 0.2
kill -KILL "$(last reads)"
wait_until 10 _began reads 2
kill -TERM $run
status=0
wait $run || status=$?
same 'status after SIGTERM' $status 143
_began reads 3 && fail 'started again after SIGTERM'

# It was ignored when run was started, as under nohup: it ends no wait.
: >nohup.began
(
	trap '' HUP
	exec "$UFFD_SNAP" run --name nohup --restart -- python3 program.py no nohup.began 2>nohup.err </dev/null
) &
run=$!
adopt $run
wait_until 10 _began nohup.began 1
kill -HUP $run
sleep 0.2
kill -KILL "$(last nohup.began)"
wait_until 10 _began nohup.began 2
kill -TERM $run
wait $run || true

# Of one that it ends it is the end.
: >ends
"$UFFD_SNAP" run --name ends --restart -- python3 program.py no ends 2>ends.err </dev/null &
run=$!
adopt $run
wait_until 10 _began ends 1
kill -HUP $run
status=0
wait $run || status=$?
same 'status after SIGHUP' $status 129

# ---- the restore that stands in is killed -----------------------------------------------------

_imaged() { [ -n "$(usnap list -q "$1" 2>/dev/null)" ]; }
: >back
begin_run() {
	"$UFFD_SNAP" run --name back --restore-or-start "$@" -- python3 program.py no back 2>>back.err </dev/null &
	run=$!
	adopt $run
}
begin_run --every 1s
wait_until 10 _began back 1
wait_until 10 _imaged back
kill -KILL "$(last back)"
wait $run || true
begin_run --restart
_back() { grep -q 'brought back' back.err; }
wait_until 20 _back
program=$(sed -n 's/.* as process //p' back.err)
adopt "$program"
restore=$(pgrep -P $run -f 'uffd-snap restore')
[ "$restore" -gt 0 ]
kill -KILL "$restore"
sleep 0.5
alive $run || fail "run has ended with the restore: $(cat back.err)"
alive "$program" || fail 'the program has ended with the restore'
same 'parent of the program' "$(sed -n 's/^PPid:\t//p' "/proc/$program/status")" $run
kill -TERM $run
status=0
wait $run || status=$?
same 'status of the program' $status 143
same 'starts of the program' "$(wc -l <back)" 1

# ---- an image that may not be read ------------------------------------------------------------

if [ "$(id -u)" -eq 0 ]; then
	as=(setpriv --bounding-set '-dac_override,-dac_read_search')
else
	as=()
fi
chmod 000 "$(usnap list --json back | jq -r '.images[-1].file')"
exits 1 "${as[@]}" "$UFFD_SNAP" run --name back --restore-or-start -- touch begun
says err 'Permission denied'
says err "cannot bring back 'back', and it is not started anew"
[ ! -e begun ] || fail 'started without its data'

# ---- an image that does not come back by itself ---------------------------------------------------

# The child is there in the newest images alone.
cat >forks.py <<'END'
import os, time
print("begin", os.getpid(), file=open("forks", "a"), flush=True)
while not os.path.exists("fork"): time.sleep(0.01)
if not os.fork(): os.execvp("sleep", ["sleep", "1000"])
while True: time.sleep(0.01)
END
: >forks
begin_forks() {
	"$UFFD_SNAP" run --name forks --restore-or-start "$@" -- python3 forks.py 2>forks.err </dev/null &
	run=$!
	adopt $run
}
begin_forks --every 1s
wait_until 10 _began forks 1
# more: two images since, one of which began since.
nr_images() { { usnap list -q "$1" 2>/dev/null || true; } | wc -l; }
_more() { [ "$(nr_images forks)" -ge $((had + 2)) ]; }
more() {
	had=$(nr_images forks)
	wait_until 20 _more
}
more
touch fork
program=$(last forks)
wait_until 10 pgrep -P "$program"
child=$(pgrep -P "$program")
adopt "$child"
more
_warned() { grep -q "cannot be brought back by itself: children: it has children" forks.err; }
wait_until 20 _warned
kill -KILL "$program"
wait $run || true
kill -KILL "$child"
same 'warnings' "$(grep -c 'cannot be brought back by itself' forks.err)" 1
rm fork
begin_forks
_forks_back() { grep -q "'forks' is as it was .* before its newest image" forks.err; }
wait_until 20 _forks_back
says forks.err "skipped: 'forks@"
program=$(sed -n "s/.*brought back.* as process //p" forks.err)
adopt "$program"
kill -KILL "$program"
wait $run || true
same 'starts of the program' "$(wc -l <forks)" 1

# ---- a last image -------------------------------------------------------------------------------

# What has been done since the last interval is there after a stop and a start.
cat >counts.py <<'END'
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *a: sys.exit(0))
print("begin", file=open("counts", "a"), flush=True)
n = 0
while True:
    n += 1
    with open("count", "w") as f: f.write("%d\n" % n)
    time.sleep(0.01)
END
: >counts
begin_counts() {
	"$UFFD_SNAP" run --name counts --restore-or-start --every 1h -- python3 counts.py 2>>counts.err </dev/null &
	run=$!
	adopt $run
}
_counts() { [ "$(cat count)" -ge "$1" ]; }
begin_counts
wait_until 10 _counts 50
kill -TERM $run
wait $run || fail "status $? after SIGTERM: $(cat counts.err)"
same 'images' "$(usnap list -q counts | wc -l)" 1
echo 0 >count
begin_counts
wait_until 10 _counts 50
same 'starts of the program' "$(wc -l <counts)" 1
grep -q 'differs' counts.err && fail "the command is the same: $(cat counts.err)"
# One at a time has the name.
exits 1 usnap run --name counts --restore-or-start -- true
says err "another 'run' has this name"
# In a hurry.
kill -TERM $run
kill -INT $run
wait $run || true
# Sent to the program, it says nothing to run.
begin_counts
_back_again() { [ "$(grep -c "brought back 'counts@" counts.err)" -eq 2 ]; }
wait_until 10 _back_again
program=$(sed -n "s/.*brought back.* as process //p" counts.err | tail -n 1)
adopt "$program"
before=$(usnap list -q counts | wc -l)
kill -TERM "$program"
wait $run || fail "status $?: $(cat counts.err)"
same 'images' "$(usnap list -q counts | wc -l)" "$before"
# It goes on with the old one.
"$UFFD_SNAP" run --name counts --restore-or-start -- python3 counts.py --new 2>>counts.err </dev/null &
run=$!
adopt $run
wait_until 10 grep -q 'the one that is given now differs' counts.err
program=$(sed -n "s/.*brought back.* as process //p" counts.err | tail -n 1)
adopt "$program"
kill -TERM $run
wait $run || fail "status $?: $(cat counts.err)"
# Told to end while somebody removes images, it does not wait for that, and starts nothing.
start flock -F -x store/counts/.in-use sh -c 'echo locked; exec sleep 1000'
# shellcheck disable=SC2154 # of lib.sh
wait_until 10 grep -q locked "$started_log"
"$UFFD_SNAP" run --name counts --restore-or-start -- touch begun 2>>counts.err </dev/null &
run=$!
adopt $run
wait_until 10 grep -q '^SigBlk:.*[1-9a-f]' /proc/$run/status
kill -TERM $run
_ended() { ! alive $run; }
wait_until 10 _ended
status=0
wait $run || status=$?
same 'status while it waits' $status 143
stop "$started"
[ ! -e begun ] || fail 'started all the same'
usnap rm -q --all counts
[ ! -e store/counts ] || fail "what is left: $(ls -A store/counts)"

# So it has before there is a store, however that is written.
mkdir real
ln -s real link
there=(--name there --restore-or-start)
"$UFFD_SNAP" run "${there[@]}" --store link//./new/store/ -- sh -c ': >there; exec sleep 1000' 2>there.err </dev/null &
run=$!
adopt $run
wait_until 10 test -e there
mkdir -p real/new/store
exits 1 usnap run "${there[@]}" --store real/new/store -- true
says err "another 'run' has this name"
kill -TERM $run
wait $run || true

# ---- an image of what is about to fail ------------------------------------------------------------

cat >fails.py <<'END'
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *a: sys.exit(0))
bad = False
while True:
    bad |= os.path.exists("poison")
    open("state", "w").write("%d\n" % bad)
    if bad and os.path.exists("die"): sys.exit(9)
    time.sleep(0.01)
END
_state() { [ "$(cat state)" = "$1" ]; }
: >state
"$UFFD_SNAP" run --name fails --restore-or-start --restart -- python3 fails.py 2>fails.err </dev/null &
run=$!
adopt $run
wait_until 10 _state 0
usnap snapshot -q fails --name fails
touch poison
wait_until 10 _state 1
usnap snapshot -q fails --name fails
rm poison
touch die
wait_until 20 grep -q "going back to an older image" fails.err
wait_until 20 _state 0
says fails.err "'fails' is as it was"
same 'brought back' "$(grep -c "brought back 'fails@" fails.err)" 3
kill -TERM $run
wait $run || fail "status $?: $(cat fails.err)"

# ---- a log ----------------------------------------------------------------------------------------

cat >logs.py <<'END'
import os, time
if os.path.exists("own.log"): os.dup2(os.open("own.log", os.O_WRONLY | os.O_APPEND), 1)
open("logs.pid", "w").write("%d\n" % os.getpid())
n = 0
while True:
    n += 1
    os.write(1, b"line %d\n" % n)
    time.sleep(0.01)
END
nr_lines() { grep -c '^line' "$1" || true; }
_lines() { [ "$(nr_lines "$1")" -ge "$2" ]; }
logs() {
	exec "$UFFD_SNAP" run --name logs --restore-or-start --restart -- python3 logs.py 2>>logs.err </dev/null
}
# logging FILE: it runs, is to write to FILE, and does.
logging() {
	run=$!
	adopt $run
	wait_until 20 _lines "$1" $(($(nr_lines "$1") + 5))
}
# again FILE: killed, it comes back, and writes to FILE.
nr_back() { grep -c "brought back 'logs@" logs.err || true; }
_back_times() { [ "$(nr_back)" -eq "$1" ]; }
again() {
	local nr
	nr=$(nr_back)
	kill -KILL "$program"
	wait_until 20 _back_times $((nr + 1))
	program=$(sed -n "s/.*brought back.* as process //p" logs.err | tail -n 1)
	adopt "$program"
	wait_until 10 _lines "$1" $(($(nr_lines "$1") + 5))
}
stopped() {
	kill -TERM $run
	wait $run || true
}
: >logs.err
# A file that does not append: nothing of after T0 is written over.
: >prog.log
logs >prog.log &
logging prog.log
program=$(cat logs.pid)
adopt "$program"
usnap snapshot -q "$program" --name logs
wait_until 10 _lines prog.log 100
again prog.log
head -n 100 prog.log | cmp - <(seq -f 'line %g' 100) || fail 'lines were written over'
# Rotated, by a copy, and by another name with a new file in its place.
: >prog.log
again prog.log
mv prog.log prog.log.1
: >prog.log
again prog.log.1
stopped
logs >>prog.log &
logging prog.log
stopped
same 'brought back' "$(nr_back)" 4
# Where the program itself had sent it.
usnap rm -q --all logs
: >own.log
: >prog.log
logs >>prog.log &
logging own.log
program=$(cat logs.pid)
adopt "$program"
usnap snapshot -q "$program" --name logs
again own.log
stopped
same 'in the log of run' "$(cat prog.log)" ''
# Damaged is not missing.
file=$(usnap list --json logs | jq -r '.images[-1].file')
printf XXXXXXXXXXXXXXXX | dd of="$file" bs=1 seek=$(($(stat -c %s "$file") / 2)) conv=notrunc status=none
exits 0 usnap run --name logs --restore-or-start -- true
says err "skipped: 'logs@"
says err "there is no image of 'logs' that is whole: starting it"

# ---- a stop from the terminal ---------------------------------------------------------------

# The target would be stopped with it, at its next write.
start python3 -c '
import time
a = bytearray(32 << 20)
for i in range(0, len(a), 4096): a[i] = 1
print("ready", flush=True)
time.sleep(1000)'
# shellcheck disable=SC2154 # of lib.sh
wait_until 10 grep -q ready "$started_log"
"$UFFD_SNAP" snapshot -q --rate 4M "$started" -o slow.usnap &
slow=$!
adopt $slow
_running() { usnap ps --json | jq -e ".processes[] | select(.pid == $started) | .running"; }
wait_until 10 _running
kill -TSTP $slow
sleep 0.2
[[ $(sed -n 's/^State:\t\(.\).*/\1/p' /proc/$slow/status) != T ]] || fail 'the snapshot stops'
kill -TERM $slow
wait $slow || true

#!/bin/bash
# ps shows who is ready, how large, taken when and being taken now; to a user the own processes; it believes no file of others.
# timeout: 60
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

need jq python3 setpriv
AGENT=$B/libuffd-snap-agent.so

# of PID FIELD
of() { usnap ps --json | jq -r ".processes[] | select(.pid == $1) | .$2"; }
_is() { [ "$(of "$1" "$2")" = "$3" ]; }

start env LD_PRELOAD="$AGENT" UFFD_SNAP_NAME=ready-one "$WORKLOADS/witness"
ready=$started
wait_until 10 _is "$ready" ready true
start python3 -c '
import time
a = bytearray(64 << 20)
for i in range(0, len(a), 4096): a[i] = 1
print("ready", flush=True)
time.sleep(1000)'
big=$started
# shellcheck disable=SC2154 # of lib.sh
wait_until 10 grep -q ready "$started_log"

same 'name' "$(of "$ready" name)" ready-one
same 'not ready' "$(of "$big" ready)" false
same 'no name' "$(of "$big" name)" null
heap=$(of "$big" heap_bytes)
[ "$heap" -ge $((64 << 20)) ] && [ "$heap" -lt $((128 << 20)) ] || fail "heap of 64 MiB: $heap"
same 'start' "$(of "$big" start_ticks)" "$(sed 's/.*) //' "/proc/$big/stat" | awk '{print $20}')"
exits 0 usnap ps
says out 'PID'
grep -q "^ *$ready  yes    ready-one " out || fail "no line of $ready: $(head -n 5 out)"
grep -q "^ *$big  -      - " out || fail "no line of $big"
exits 0 usnap ps --ready
says out ready-one
! grep -q "^ *$big " out || fail 'ps --ready shows another'
exits 2 usnap ps --nonsense
exits 2 usnap ps 12

# ---- snapshots ----------------------------------------------------------------------------

same 'last snapshot' "$(of "$big" last_t0_ms)" null
"$UFFD_SNAP" snapshot -q --rate 16M "$big" -o slow.usnap &
slow=$!
adopt $slow
wait_until 20 _is "$big" running true
same 'who takes it' "$(of "$big" running_pid)" $slow
wait $slow
same 'after it' "$(of "$big" running)" false
same 'file' "$(of "$big" last_file)" "$PWD/slow.usnap"
t0=$(tar xOf slow.usnap snapshot.json | jq '.t0.realtime_ns / 1000000 | floor')
same 'time' "$(of "$big" last_t0_ms)" "$t0"
# One that is killed does not run for ever, and takes nothing of what was known.
"$UFFD_SNAP" snapshot -q --rate 16M "$big" -o killed.usnap &
slow=$!
adopt $slow
wait_until 20 _is "$big" running true
kill -KILL $slow
wait $slow || true
same 'after a kill' "$(of "$big" running)" false
same 'file after a kill' "$(of "$big" last_file)" "$PWD/slow.usnap"

# ---- another process under a known number -----------------------------------------------------

ticks=$(of "$big" start_ticks)
usnap snapshot -q "$big:$ticks" -o same.usnap
exits 1 usnap snapshot -q "$big:$((ticks + 2))" -o other.usnap
says err 'not the one that was started'
exits 2 usnap snapshot -q "$big:" -o other.usnap
[ ! -e other.usnap ] || fail 'an image of another process'

# ---- names -----------------------------------------------------------------------------------

usnap snapshot -q --store store ready-one
same 'name in the store' "$(usnap list -q --store store | sed 's/@.*//')" ready-one
usnap snapshot -q --store store "$ready"
same 'by PID' "$(usnap list -q --store store ready-one | wc -l)" 2
exits 1 usnap snapshot -q no-such-name -o no.usnap

# That of a unit, as snapshot --unit has it.
start env LD_PRELOAD="$AGENT" UFFD_SNAP_NAME='app@a\x2db' "$WORKLOADS/witness"
wait_until 10 _is "$started" name app-a-x2db
stop "$started"

# ---- files of others ---------------------------------------------------------------------------

[ "$(id -u)" -eq 0 ] || exit 0
rundir=/run/uffd-snap
[ -e "$rundir/ready-$ready-$(of "$ready" start_ticks)" ] || fail "no entry in $rundir"
same 'mode of the directory' "$(stat -c '%u %a' $rundir)" '0 711'
: >"$rundir/ready-999999999-1"
: >"$rundir/taken-$big-1"
: >"$rundir/README"
theirs=/tmp/uffd-snap-54329
rm -rf $theirs
on_exit 'rm -rf $theirs $rundir/README'
mkdir -m 700 $theirs
printf 'name=wrong\nbeacon=1000\n' >"$theirs/ready-$big-$ticks"
mkfifo "$theirs/ready-$$-$(of $$ start_ticks)" "$theirs/taken-$big-$ticks"
printf 'x=\n%s' "$(head -c 100000 /dev/zero | tr '\0' A)" >"$theirs/ready-1-$(of 1 start_ticks)"
chown -R 54329 $theirs
same 'ready by the file of another user' "$(timeout 20 "$UFFD_SNAP" ps --json | jq ".processes[] | select(.pid == $big) | .ready")" false
for left in "$rundir/ready-999999999-1" "$rundir/taken-$big-1"; do
	[ ! -e "$left" ] || fail "'$left' is left of a process that is gone"
done
[ -e $rundir/README ] || fail 'a file that is none of ours is gone'

# ---- a user ----------------------------------------------------------------------------------

# By these the user's own agent would take what is started here for the child of one that is ready.
rm -rf $theirs
place=$(mktemp -d /var/tmp/usnap-test.XXXXXX)
on_exit 'rm -rf "$place" $theirs $rundir/README'
chmod 755 "$place"
install -m 755 "$UFFD_SNAP" "$AGENT" "$WORKLOADS/witness" "$place"
mkdir -m 700 "$place/run"
chown 54329 "$place/run"
user=(setpriv --reuid 54329 --regid 54329 --clear-groups env XDG_RUNTIME_DIR="$place/run")
"${user[@]}" "$place/uffd-snap" --version >/dev/null 2>&1 || exit 0
start "${user[@]}" LD_PRELOAD="$place/libuffd-snap-agent.so" UFFD_SNAP_NAME=theirs "$place/witness"
_theirs() { [ "$("${user[@]}" "$place/uffd-snap" ps --json | jq -c '[.processes[] | select(.ready) | [.pid, .name]]')" = "[[$started,\"theirs\"]]" ]; }
wait_until 10 _theirs
"${user[@]}" "$place/uffd-snap" ps --json >list
[ "$(jq ".processes[] | select(.pid == $big)" list)" = '' ] || fail 'a user sees a process of root'
# Where the user's directory is not to be seen, the process itself tells.
same 'to root' "$(of $started name)" theirs
same 'found by name' "$(usnap snapshot -q theirs -o theirs.usnap && tar xOf theirs.usnap snapshot.json | jq .target.pid)" $started

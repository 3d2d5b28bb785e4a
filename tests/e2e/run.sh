#!/bin/bash
# run passes status, signals and stops on; what it runs has the name alone, is taken at intervals, and is followed as a daemon.
# timeout: 120
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"
. "$TESTS/lib-restore.sh"

need jq python3
store=$PWD/store

# ---- as if it were not there ------------------------------------------------------------

exits 0 usnap run -- echo hello
same 'output' "$(cat out)" hello
same 'messages' "$(cat err)" ''
exits 7 usnap run sh -c 'exit 7'
exits 143 usnap run -- sh -c 'kill -TERM $$; sleep 9'
exits 127 usnap run -- ./nonesuch
says err "cannot run './nonesuch': No such file or directory"
: >plain
exits 126 usnap run -- ./plain
says err "cannot run './plain': Permission denied"
same 'standard input' "$(echo in | usnap run cat)" in
# Each start has them, a file and a pipe alike.
printf 'one\ntwo\n' | usnap run --restart -- sh -c 'read -r l; echo "got $l"; [ "$l" = two ]' >out 2>err
same 'output of two starts' "$(cat out)" $'got one\ngot two'
same 'output of two starts in a pipe' \
	"$(usnap run --restart -- sh -c 'echo begun; [ -e begun ] || { : >begun; exit 1; }' 2>pipe.err | cat)" \
	$'begun\nbegun'
exits 0 usnap run --every 5s --help
says out 'usage: uffd-snap run'
exits 0 usnap run sh -c 'echo "$1"' sh --help
same 'help of the command' "$(cat out)" --help
exits 2 usnap run
exits 2 usnap run --every never -- true
exits 2 usnap run --keep-last x -- true
exits 0 usnap run --keep-last 3 -- true
says err '--keep-last has no effect: without --every'
exits 0 env UFFD_SNAP_SIGNAL=USR1 "$UFFD_SNAP" run --keep-last 3 -- true
says_not err 'no effect'
exits 2 env UFFD_SNAP_KEEP='keep five' "$UFFD_SNAP" run -- true
exits 2 usnap run --pid 1
exits 1 usnap run --pid 999999999 --every 1s

# supervised [OPTION]... -- COMMAND...: in the background; $run, what it says in "said".
supervised() {
	: >said
	"$UFFD_SNAP" run "$@" >said 2>said.err </dev/null &
	run=$!
	adopt $run
}
_says() { grep -q "^$1" said; }
_in_state() { [[ $(sed -n 's/^State:\t\(.\).*/\1/p' "/proc/$1/status") == [$2] ]]; }
ended() {
	local status=0
	wait "$run" || status=$?
	same "exit status, $1" "$status" "$2"
}

cat >told.sh <<'END'
trap 'echo got USR1' USR1
trap 'echo got HUP' HUP
trap 'echo got TERM; exit 3' TERM
echo ready $$
while :; do sleep 0.05; done
END
supervised -- sh told.sh
wait_until 10 _says ready
program=$(sed -n 's/^ready //p' said)
for sig in USR1 HUP; do
	kill -$sig $run
	wait_until 10 _says "got $sig"
done
kill -STOP "$program"
wait_until 10 _in_state $run T
kill -CONT $run
wait_until 10 _in_state $run S
wait_until 10 _in_state "$program" SR
kill -TERM $run
ended 'SIGTERM' 3
supervised -- sh told.sh
wait_until 10 _says ready
kill -KILL "$(sed -n 's/^ready //p' said)"
ended 'killed' 137
same 'messages' "$(cat said.err)" ''

# ---- names ------------------------------------------------------------------------------

# named PID: its name, "-" for none, "" when it is not ready.
named() { usnap ps --json | jq -r ".processes[] | select(.pid == $1 and .ready) | .name // \"-\""; }
_named() { [ "$(named "$1")" = "$2" ]; }

# A wrapper that ends in the program, and what that runs.
cat >parent.sh <<'END'
env | grep -E '^(LD_PRELOAD|UFFD_SNAP_)' >child.env
(env | grep -E '^(LD_PRELOAD|UFFD_SNAP_)' >grandchild.env)
sleep 1000 &
echo ready $$ $!
wait
END
supervised --name parent -- env -u UFFD_SNAP_FULL sh -c 'exec bash parent.sh'
wait_until 10 _says ready
read -r _ program child <said
adopt "$child"
same 'name of the program' "$(named "$program")" parent
same 'name of its child' "$(named "$child")" ''
same 'environment of its children' "$(cat child.env grandchild.env)" ''
usnap snapshot -q parent -o parent.usnap
same "process of the image" "$(tar xOf parent.usnap snapshot.json | jq .target.pid)" "$program"
kill -KILL "$program"
ended 'killed' 137
kill -KILL "$child"

# Also when the entry in the run directory is gone.
cat >late.sh <<'END'
echo ready $$
until [ -e go ]; do sleep 0.05; done
sleep 1000 &
echo child $!
wait
END
mkdir -m 700 xdg
run_dirs=("/run/uffd-snap" "$PWD/xdg/uffd-snap" "/tmp/uffd-snap-$(id -u)")
export XDG_RUNTIME_DIR=$PWD/xdg
supervised --name late -- bash late.sh
wait_until 10 _says ready
program=$(sed -n 's/^ready //p' said)
for d in "${run_dirs[@]}"; do
	rm -f "$d/ready-$program-"*
done
touch go
wait_until 10 _says child
child=$(sed -n 's/^child //p' said)
adopt "$child"
same 'name of a late child' "$(named "$child")" ''
kill -KILL "$program" "$child"
ended 'killed' 137
unset XDG_RUNTIME_DIR

supervised --name family -- env UFFD_SNAP_INHERIT=1 bash parent.sh
wait_until 10 _says ready
read -r _ program child <said
adopt "$child"
wait_until 10 _named "$child" family
same 'name of the program' "$(named "$program")" family
kill -KILL "$program" "$child"
ended 'killed' 137

# With the agent in the environment of all, as of a unit: the command has it too, and is no program.
: >said
LD_PRELOAD=$B/libuffd-snap-agent.so UFFD_SNAP_NAME=outer "$UFFD_SNAP" run --name inner -- "$WORKLOADS/witness" >said </dev/null &
run=$!
adopt $run
wait_until 10 _says ready
program=$(pgrep -P $run)
wait_until 10 _named "$program" inner
same 'name of the command' "$(named $run)" ''
kill -TERM $run
ended 'SIGTERM' 0

# ---- at intervals -----------------------------------------------------------------------

: >taken
supervised --name timed --store "$store" --every 1s --keep-last 2 --full-every 1 --on-success 'echo $UFFD_SNAP_FILE >>taken' \
	-- "$WORKLOADS/witness"
_taken() { [ "$(wc -l <taken)" -ge "$1" ]; }
wait_until 20 _taken 4
kill -TERM $run
ended 'SIGTERM' 0
[ "$(usnap list --store "$store" -q timed | wc -l)" -le 3 ] || fail "nothing was pruned: $(usnap list --store "$store")"
usnap verify -q --store "$store" timed
same 'messages' "$(cat said.err)" ''

# ---- daemons ----------------------------------------------------------------------------

# Once and twice forked, by hand and by libc.
cat >daemon.py <<'END'
import ctypes, os, sys, time
how = sys.argv[1]
if how == "libc":
    ctypes.CDLL(None).daemon(1, 1)
else:
    if os.fork(): os._exit(0)
    os.setsid()
    if how == "twice" and os.fork(): os._exit(0)
print("ready", os.getpid(), flush=True)
while True: time.sleep(0.05)
END
for how in once twice libc; do
	supervised --name daemon -- python3 daemon.py $how
	wait_until 10 _says ready
	program=$(sed -n 's/^ready //p' said)
	adopt "$program"
	wait_until 10 _named "$program" daemon
	alive $run || fail "run has ended ($how): $(cat said.err)"
	# Only when it has found out.
	sleep 0.3
	kill -TERM $run
	ended "daemon, $how" 143
	_gone "$program" || fail "the daemon is left ($how)"
done

# A session alone makes no daemon.
supervised --name leader -- python3 -c '
import subprocess
p = subprocess.Popen(["sleep", "1000"], start_new_session=True)
print("ready", p.pid, flush=True)
p.wait()'
wait_until 10 _says ready
child=$(sed -n 's/^ready //p' said)
adopt "$child"
same 'name of a child with a session' "$(named "$child")" ''
kill -KILL "$child"
ended 'end' 0

# shellcheck shell=bash
# Helpers for the scripts in tests/e2e, tests/stress and tests/bench. Begin with
#
#   #!/bin/bash
#   # What is promised, in one line.
#   # timeout: 60                       (optional; seconds, 120 without)
#   . "$(dirname "$0")/../lib.sh"
#
# tests/run starts a script in a fresh directory; started by hand, it makes
# one of its own. A command that fails ends the test. Processes started with
# "start" are killed, by their PID, when the script ends.

set -euo pipefail
export LC_ALL=C

TESTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
TOP=$(dirname "$TESTS")
B=${B:-$TOP/build}
UFFD_SNAP=${UFFD_SNAP:-$B/uffd-snap}
AGENT=${AGENT:-$B/libuffd-snap-agent.so}
WORKLOADS=$B/tests/workloads
BENCHES=$B/tests/bench
CHECKERS=$B/tests/checkers
export TESTS TOP B UFFD_SNAP AGENT WORKLOADS BENCHES CHECKERS

_pids=()
_own_dir=
_on_exit=()

# on_exit COMMAND: when the script ends, after its processes; in place of what was given before.
on_exit() { _on_exit=("$1"); }

_at_exit() {
	local status=$? p
	set +e
	trap - ERR
	for p in "${_pids[@]-}"; do
		[ -n "$p" ] && kill -KILL "$p" 2>/dev/null
	done
	for p in "${_pids[@]-}"; do
		[ -n "$p" ] && wait "$p" 2>/dev/null
	done
	[ ${#_on_exit[@]} -eq 0 ] || eval "${_on_exit[0]}"
	if [ -n "$_own_dir" ]; then
		cd / || true
		if [ $status -eq 0 ] || [ $status -eq 77 ]; then
			rm -rf "$_own_dir"
		else
			echo "kept: $_own_dir" >&2
		fi
	fi
	exit $status
}
trap _at_exit EXIT
trap 'echo "failed: $BASH_SOURCE:$LINENO: $BASH_COMMAND" >&2' ERR
set -o errtrace

# Not in the source tree: by hand, from wherever one stands.
case $PWD/ in
*/uffd-snap-tests.*/*) ;;
*)
	_own_dir=$(mktemp -d "${TMPDIR:-/tmp}/uffd-snap-tests.XXXXXX")
	cd "$_own_dir"
	;;
esac

fail() {
	trap - ERR
	echo "failed: $*" >&2
	exit 1
}

skip() {
	trap - ERR
	echo "$*"
	exit 77
}

# need COMMAND...: skips the test where one is missing; in CI, which installs all, it fails.
need() {
	local c
	for c in "$@"; do
		command -v "$c" >/dev/null && continue
		[ -z "${CI:-}" ] || fail "$c is not installed"
		skip "$c is not installed"
	done
}

# start COMMAND [ARG]...: in the background; PID in $started, output in the
# file $started_log.
started='' started_log=''
start() {
	started_log=$PWD/started.${#_pids[@]}.log
	: >"$started_log"
	"$@" >"$started_log" 2>&1 </dev/null &
	started=$!
	_pids+=("$started")
}

# adopt PID: to be killed at the end like what was started here.
adopt() {
	# kill(1) takes 0 and -1 for everybody.
	[[ $1 =~ ^[1-9][0-9]*$ && $1 -gt 1 ]] || fail "no PID: '$1'"
	_pids+=("$1")
}

# stop PID: ends it and waits for it.
stop() {
	kill -TERM "$1" 2>/dev/null || true
	wait "$1" 2>/dev/null || true
}

# wait_until SECONDS COMMAND...: repeats the command until it succeeds.
wait_until() {
	local limit=$1 end
	shift
	end=$((SECONDS + limit))
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || fail "not within $limit s: $*"
		sleep 0.02
	done
}

# start_workload NAME [ARG]...: one of tests/workloads, in the environment
# "${workload_env[@]}"; returns when it has printed "ready". PID in $started,
# its output in NAME.out.
workload_env=()
start_workload() {
	local name=$1
	shift
	: >"$name.out"
	env "${workload_env[@]}" "$WORKLOADS/$name" "$@" >"$name.out" 2>"$name.err" </dev/null &
	started=$!
	_pids+=("$started")
	wait_until 60 _ready_or_gone "$name" "$started"
	# One with a short life may have been ready and be gone.
	grep -q '^ready' "$name.out" || fail "$name ended before it was ready: $(cat "$name.err")"
}

_ready_or_gone() { grep -q '^ready' "$1.out" || ! kill -0 "$2" 2>/dev/null; }

# start_redis [OPTION]...: a redis-server on a private socket, without
# persistence. PID in $redis_pid, socket in $redis_sock.
redis_pid='' redis_sock=''
start_redis() {
	need redis-server redis-cli
	redis_sock=$PWD/redis.sock
	# A path of more than 107 bytes does not fit a socket address.
	[ ${#redis_sock} -lt 108 ] || redis_sock=$(mktemp -u /tmp/usnap-redis.XXXXXX)
	redis-server --port 0 --unixsocket "$redis_sock" --save '' --appendonly no --dir "$PWD" \
		--daemonize no "$@" >redis.log 2>&1 </dev/null &
	redis_pid=$!
	_pids+=("$redis_pid")
	wait_until 30 redis-cli -s "$redis_sock" ping
}

rcli() { redis-cli -s "$redis_sock" "$@"; }

# gdb, to run a snapshot in; its ticks (src/process/tracee.c) stop nothing.
# shellcheck disable=SC2034 # for the tests
gdb_snapshot=(gdb -nx -batch -ex 'set debuginfod enabled off' -ex 'handle SIG63 nostop noprint')

# usnap ARG...: the command under test.
usnap() { "$UFFD_SNAP" "$@"; }

# exits CODE COMMAND...: runs it, output in "out" and "err", and fails unless
# it exits with CODE.
exits() {
	local want=$1 got=0
	shift
	"$@" >out 2>err </dev/null || got=$?
	[ "$got" -eq "$want" ] || {
		sed 's/^/out: /' out | head -n 20
		sed 's/^/err: /' err | head -n 20
		fail "exit status $got instead of $want: $*"
	}
}

# says FILE TEXT: FILE contains TEXT, literally.
says() {
	grep -qF -- "$2" "$1" || {
		sed "s/^/$1: /" "$1" | head -n 20
		fail "not in '$1': $2"
	}
}

says_not() {
	! grep -qF -- "$2" "$1" || {
		sed "s/^/$1: /" "$1" | head -n 20
		fail "in '$1', and should not be: $2"
	}
}

# same WHAT GOT WANTED
same() { [ "$2" = "$3" ] || fail "$1: '$2' instead of '$3'"; }

# block_of_manual FILE N: the Nth block of the examples of man/FILE.
block_of_manual() {
	awk -v want="$2" '
		/^\.Sh / { inside = ($2 == "EXAMPLES") }
		inside && /^\.Bd/ { n++; on = 1; next }
		/^\.Ed/ { on = 0 }
		on && n == want' "$TOP/man/$1" | sed 's/\\e/\\/g'
}

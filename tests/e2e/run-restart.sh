#!/bin/bash
# Redis under run --restore-or-start is killed again and again under load, and comes back at its address with all that the last image has.
# timeout: 120
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"
. "$TESTS/lib-restore.sh"
. "$TESTS/lib-programs.sh"

need redis-server redis-cli jq
n=$(times 3 30)
store=$PWD/store
# Nobody else's, should another test run at the same time.
name=db-$$
port=$(free_port)
sock=$PWD/s
[ ${#sock} -lt 100 ] || sock=$(mktemp -u /tmp/usnap-redis.XXXXXX)
rcli() { timeout 20 redis-cli -p "$port" "$@"; }

_taken_since() { [ "$(usnap list --json --store "$store" "$name" | jq '.images[-1].t0_ms')" -gt "$1" ]; }
file_of() { usnap list --json --store "$store" "$name" | jq -r '.images[-1].file'; }

# supervise [OPTION]...: as a unit file would.
supervise() {
	"$UFFD_SNAP" run --name "$name" --store "$store" --every "$(times 1s 2s)" --keep-last 3 --restore-or-start "$@" -- \
		redis-server --bind 127.0.0.1 --port "$port" --unixsocket "$sock" --save '' --appendonly no --dir "$PWD" \
		>>redis.log 2>>run.err </dev/null &
	run=$!
	adopt $run
}
# serving: its PID in $server, killed at the end if it outlives run.
serving() {
	server=$(timeout 20 redis-cli -p "$port" info server | tr -d '\r' | sed -n 's/^process_id://p')
	same 'process by its name' "$(usnap ps --json | jq -r ".processes[] | select(.ready and .name == \"$name\") | .pid")" "$server"
	adopt "$server"
}

# The clients come by one address, are checked by the other, and in turn.
load() {
	where=(--port "$port")
	[ $((g % 2)) = 0 ] || where=(--unix "$sock")
	rm -f history load.out
	"$WORKLOADS/kvhistory" "${where[@]}" --run "$g" --write history >load.out 2>load.err &
	writer=$!
	adopt $writer
	wait_until 30 grep -q ready load.out
}

# killed_under_load: with at least one image of this load; what it was then is in $last.
killed_under_load() {
	local since
	load
	since=$(date +%s%3N)
	wait_until 30 _taken_since "$since"
	sleep "0.$((RANDOM % 10))"
	kill -KILL "$server"
	wait $writer || fail "$(cat load.out load.err)"
}

# back: all that was written before T0 of the last image is there, and nothing of after it.
back() {
	wait_until 30 rcli ping
	serving
	last=$(sed -n "s/^uffd-snap: brought back '\(.*\)' as process.*/\1/p" run.err | tail -n 1)
	same "generation $g: image" "$(usnap info --store "$store" --json "$last" | jq -r .snapshot.id)" \
		"$(usnap info --json "$image" | jq -r .snapshot.id)"
	where=(--unix "$sock")
	[ $((g % 2)) = 0 ] || where=(--port "$port")
	timeout 60 "$WORKLOADS/kvhistory" "${where[@]}" --run "$g" --check history --t0 "$(t0_of "$image")" >check.out 2>&1 ||
		fail "generation $g: $(cat load.out check.out)"
}

supervise
wait_until 30 rcli ping
serving
says run.err "there is no image of '$name': starting it"
redis_fill "$(times 20000 200000)" 100
for ((g = 1; g <= n; g++)); do
	killed_under_load
	status=0
	wait $run || status=$?
	same 'status of run' $status 137
	image=$(file_of)
	supervise
	back
done
same 'starts of the server' "$(grep -c 'Ready to accept' redis.log)" 1

# Killed alone, run leaves the server; it is not made twice.
kill -KILL $run
wait $run || true
exits 1 usnap run --name "$name" --store "$store" --restore-or-start -- redis-server --port 0
says err "it still runs, as process $server"
rcli ping >/dev/null
kill -KILL "$server"
killed "$server"
supervise
wait_until 30 rcli ping
serving

# ---- a damaged image, and a restart by itself ----------------------------------------------

kill -TERM $run
wait $run || fail "exit status $? after SIGTERM"
newer=$(file_of)
usnap list -q --store "$store" "$name" >before
damaged=$(tail -n 1 before) whole=$(tail -n 2 before | head -n 1)
# In its middle, where pages are.
printf XXXXXXXXXXXXXXXX | dd of="$newer" bs=1 seek=$(($(stat -c %s "$newer") / 2)) conv=notrunc status=none
supervise --restart
wait_until 30 rcli ping
serving
says run.err "skipped: '$name@"
last=$(sed -n "s/^uffd-snap: brought back '\(.*\)' as process.*/\1/p" run.err | tail -n 1)
same 'image before the damaged one' "$(usnap info --store "$store" --json "$last" | jq -r .snapshot.id)" \
	"$(usnap info --store "$store" --json "$whole" | jq -r .snapshot.id)"
[ "$damaged" != "$whole" ] || fail 'one image is too few'

# The newest one goes, which prune would keep.
g=$((n + 1))
killed_under_load
image=$(file_of)
# What was taken since does not refer to the damaged one.
usnap verify -q "$image"
back
alive $run || fail 'run has ended'
kill -TERM $run
wait $run || fail "exit status $? after SIGTERM"
same 'starts of the server' "$(grep -c 'Ready to accept' redis.log)" 1

# ---- what cannot be brought back is not begun anew -----------------------------------------------

start python3 -c "
import socket, time
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('127.0.0.1', $port))
s.listen()
print('ready', flush=True)
time.sleep(1000)"
# shellcheck disable=SC2154 # of lib.sh
wait_until 10 grep -q ready "$started_log"
exits 1 usnap run --name "$name" --store "$store" --restore-or-start -- redis-server --port 0
says err "cannot bring back '$name'"

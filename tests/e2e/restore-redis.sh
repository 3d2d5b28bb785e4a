#!/bin/bash
# redis-server comes back under load and at rest: its keys are those of T0, its clients find it again, it saves, and can be taken again.
# timeout: 180
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"
. "$TESTS/lib-restore.sh"
. "$TESTS/lib-programs.sh"

need redis-server redis-cli redis-check-aof jq
n=$(times 2 20)

rcli() { timeout 20 redis-cli -s "$sock" "$@"; }
digest() { rcli debug digest; }
info() { rcli info "$1" | tr -d '\r' | sed -n "s/^$2://p"; }
_info_is() { [ "$(info "$1" "$2")" = "$3" ]; }

# redis NAME [OPTION]...
redis() {
	local name=$1
	shift
	mkdir "$name"
	cd "$name"
	port=$(free_port)
	sock=$PWD/s
	[ ${#sock} -lt 100 ] || sock=$(mktemp -u /tmp/usnap-redis.XXXXXX)
	begin redis redis-server --bind 127.0.0.1 --port "$port" --unixsocket "$sock" --save '' \
		--dir "$PWD" --enable-debug-command yes "$@"
	wait_until 30 rcli ping
	redis_fill "$(times 20000 200000)" 100
	rcli eval 'for i = 1, 100000 do redis.call("rpush", "big-list", i) end' 0 >/dev/null
	rcli eval 'for i = 1, 100000 do redis.call("hset", "big-hash", "f" .. i, i) end' 0 >/dev/null
	where=(--unix "$sock")
}

# other_address: the clients come through the other listener.
other_address() {
	if [ "${where[0]}" = --unix ]; then
		where=(--port "$port")
	else
		where=(--unix "$sock")
	fi
}

# Clients write meanwhile. What they see when the server is gone is the end of their connection.
under_load() {
	local load
	rm -f history load.out
	"$WORKLOADS/kvhistory" "${where[@]}" --run "$g" --write history >load.out 2>load.err &
	load=$!
	adopt $load
	wait_until 30 grep -q ready load.out
	sleep 0.2
	if [ "$1" = killed ]; then
		snapshot_kill load.usnap
	else
		usnap snapshot -q "$pid" -o load.usnap
		sleep 0.2
		kill -KILL "$pid"
		killed "$pid"
	fi
	wait $load || fail "$(cat load.out load.err)"
	restore_image load.usnap
	other_address
	timeout 60 "$WORKLOADS/kvhistory" "${where[@]}" --run "$g" --check history --t0 "$(t0_of load.usnap)" \
		>check.out 2>&1 || fail "generation $g: $(cat load.out check.out)"
	# The connections of then were closed by the peer, and the server has noticed.
	wait_until 10 _info_is clients connected_clients 1
	rm load.usnap
}

at_rest() {
	local before
	before=$(digest)
	again
	same "digest of generation $g" "$(digest)" "$before"
	rm again.usnap
}

# What a server does all day.
works() {
	"$WORKLOADS/kvload" "${where[@]}" --clients 50 --seconds 0.5 --limit 10000 >kvload.out 2>&1 ||
		fail "generation $g: $(cat kvload.out)"
	rcli bgsave >/dev/null
	wait_until 30 _info_is persistence rdb_bgsave_in_progress 0
	same 'BGSAVE' "$(info persistence rdb_last_bgsave_status)" ok
	rcli set "generation" "$g" >/dev/null
}

# Its threads: lists are freed by one, the file is written by another.
threads_work() {
	local freed
	freed=$(info memory lazyfreed_objects)
	rcli unlink big-list big-hash >/dev/null
	wait_until 20 eval "[ \$(info memory lazyfreed_objects) -gt $freed ]"
	wait_until 20 _info_is memory lazyfree_pending_objects 0
}

reload() {
	local before
	before=$(digest)
	same 'DEBUG RELOAD' "$(rcli debug reload)" OK
	same 'digest after a reload' "$(digest)" "$before"
}

finish() {
	figures "$1"
	rcli shutdown nosave >/dev/null 2>&1 || true
	within 20 _gone "$pid" || fail "redis-server does not end"
	[ ! -e "$sock" ] || fail "the socket is left behind"
	says_not redis.log 'CRASHED'
	says_not redis.log 'ASSERTION'
	cd ..
}

# ---- without a file -------------------------------------------------------------

redis plain
ready_lines=$(grep -c Ready redis.log)
for ((g = 1; g <= n; g++)); do
	# Every other time it runs on after T0: that must not show.
	under_load "$([ $((g % 2)) = 0 ] && echo killed || echo alive)"
	works
	at_rest
	same 'generation' "$(rcli get generation)" $g
done
threads_work
reload
same 'starts of the server' "$(grep -c Ready redis.log)" "$ready_lines"
finish 'without append-only file'

# ---- with an append-only file and threads for the connections ------------------------

redis aof --appendonly yes --appendfsync everysec --io-threads 3 --io-threads-do-reads yes
for ((g = 1; g <= $(times 2 20); g++)); do
	under_load killed
	works
	at_rest
done
threads_work
# The file says what the memory says.
before=$(digest)
same 'DEBUG LOADAOF' "$(rcli debug loadaof)" OK
same 'digest of the append-only file' "$(digest)" "$before"
rcli bgrewriteaof >/dev/null
wait_until 30 _info_is persistence aof_rewrite_in_progress 0
same 'BGREWRITEAOF' "$(info persistence aof_last_bgrewrite_status)" ok
same 'DEBUG LOADAOF' "$(rcli debug loadaof)" OK
same 'digest of the new append-only file' "$(digest)" "$before"
same 'writes of the file' "$(info persistence aof_last_write_status)" ok
finish 'append-only file and I/O threads'

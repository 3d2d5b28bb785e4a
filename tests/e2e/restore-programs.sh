#!/bin/bash
# memcached with all its items and a sqlite3 shell with a database in memory come back, several times over.
# timeout: 180
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"
. "$TESTS/lib-restore.sh"
. "$TESTS/lib-programs.sh"

need memcached sqlite3 jq
n=$(times 2 20)
ulimit -v 8000000

# ---- memcached ------------------------------------------------------------------

# ask LINE...: a conversation with memcached, up to the answer to "quit".
ask() { printf '%s\r\n' "$@" quit | timeout 20 python3 ask.py "${where[@]}" | tr -d '\r'; }
cat >ask.py <<'END'
import socket, sys
s = socket.socket(socket.AF_UNIX if sys.argv[1] == "--unix" else socket.AF_INET)
s.connect(sys.argv[2] if sys.argv[1] == "--unix" else ("127.0.0.1", int(sys.argv[2])))
s.sendall(sys.stdin.buffer.read())
while data := s.recv(65536):
    sys.stdout.buffer.write(data)
END
items() { ask stats | sed -n 's/^STAT curr_items //p'; }
_items_are() { [ "$(items)" = "$1" ]; }

# memcached_there NAME: there and under load, with all its items.
memcached_there() {
	local name=$1 load before g
	mkdir "$name"
	cp ask.py "$name"
	cd "$name"
	case $name in
	unix)
		where=(--unix "$PWD/s")
		[ ${#PWD} -lt 100 ] || where=(--unix "$(mktemp -u /tmp/usnap-memcached.XXXXXX)")
		begin memcached memcached -s "${where[1]}" -t 3 -m 64 -u "$(id -un)"
		;;
	tcp)
		where=(--port "$(free_port)")
		begin memcached memcached -l 127.0.0.1 -p "${where[1]}" -U 0 -t 4 -m 64 -u "$(id -un)"
		;;
	esac
	wait_until 20 items
	for ((g = 1; g <= n; g++)); do
		"$WORKLOADS/kvhistory" --memcached "${where[@]}" --run "$g" --write history >load.out 2>load.err &
		load=$!
		adopt $load
		wait_until 30 grep -q ready load.out
		sleep 0.2
		snapshot_kill load.usnap
		wait $load || fail "$(cat load.out load.err)"
		restore_image load.usnap
		timeout 60 "$WORKLOADS/kvhistory" --memcached "${where[@]}" --run "$g" --check history \
			--t0 "$(t0_of load.usnap)" >check.out 2>&1 ||
			fail "memcached, generation $g: $(cat load.out check.out)"
		"$WORKLOADS/kvload" --memcached "${where[@]}" --clients 50 --seconds 0.3 --limit 10000 \
			>kvload.out 2>&1 || fail "memcached, generation $g: $(cat kvload.out)"
		ask "set stays 0 1000 1" y >/dev/null
		before=$(items)
		# That one may have gone already on a machine that is slow.
		ask "set gone 0 3 1" x >/dev/null
		again
		after=$(items)
		[ "$after" -ge "$before" ] && [ "$after" -le $((before + 1)) ] ||
			fail "$after items in generation $g after $before"
		same 'an item with a time' "$(ask 'get stays' | sed -n 2p)" y
		# Its clock goes on.
		wait_until 20 eval "[ \"\$(ask 'get gone')\" = END ]"
	done
	figures "memcached ($name)"
	kill -TERM "$pid"
	killed "$pid"
	cd ..
}

memcached_there unix
memcached_there tcp

# ---- sqlite3 --------------------------------------------------------------------

# sql STATEMENT: what the shell at the other end of the FIFO answers.
sql() {
	local mark=mark-$RANDOM-$RANDOM
	printf '%s\n' ".print $mark-" "$1" ".print $mark" >&8
	wait_until 30 grep -q "^$mark\$" sqlite.log
	sed -n "/^$mark-\$/,/^$mark\$/p" sqlite.log | grep -v "^$mark" || true
}

mkdir sqlite
cd sqlite
mkfifo commands
# For reading and writing: the FIFO outlives the shell at its other end.
exec 8<>commands
# shellcheck disable=SC2016
begin sqlite bash -c 'exec sqlite3 :memory: <commands'
sql 'create table t(a integer primary key, b text);' >/dev/null
sql 'with recursive c(x) as (select 1 union all select x + 1 from c where x < 50000)
	insert into t select x, hex(x * 7919) from c;' >/dev/null
sql 'create index by_b on t(b);' >/dev/null
sql 'begin; insert into t values(100000, "not yet");' >/dev/null
sum=$(sql 'select count(*), sum(a), sum(length(b)) from t;')
for ((g = 1; g <= n; g++)); do
	again
	same "sum of generation $g" "$(sql 'select count(*), sum(a), sum(length(b)) from t;')" "$sum"
	same 'integrity' "$(sql 'pragma integrity_check;')" ok
	sql "insert into t values(100000 + $g, 'generation'); delete from t where a = 100000 + $g;" >/dev/null
done
# The transaction of then is still open.
same 'rollback' "$(sql 'rollback; select count(*) from t;')" 50000
figures sqlite3
printf '.quit\n' >&8
killed "$pid"

#!/bin/bash
# The recipe for SQLite: a database in memory comes back after a crash of its program, with an open transaction.
# timeout: 90
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"
. "$TESTS/lib-agent.sh"
. "$TESTS/lib-programs.sh"
. "$TESTS/lib-recipe.sh"

need sqlite3
mkfifo commands
# For reading and writing: the FIFO outlives the shell at its other end.
exec 8<>commands
# sql STATEMENT: what the shell at the other end of the FIFO answers.
sql() {
	local mark=mark-$RANDOM-$RANDOM
	printf '%s\n' ".print $mark-" "$1" ".print $mark" >&8
	wait_until 30 grep -q "^$mark\$" sqlite.log
	sed -n "/^$mark-\$/,/^$mark\$/p" sqlite.log | grep -v "^$mark" || true
}
# The line of a service of one's own, with the shell for the service.
recipe python-counter.service "s|--name counter|-q --name sqlite|; s|-- .*|-- sqlite3 -init /dev/null :memory:|"
up() {
	"${recipe[@]}" >>sqlite.log 2>&1 <commands 8>&- &
	run=$!
	_pids+=("$run")
}

up
sql 'create table t(a integer primary key, b text);' >/dev/null
agent_in "$(server sqlite3)" || fail 'the agent is not in the program'
sql 'with recursive c(x) as (select 1 union all select x + 1 from c where x < 50000)
	insert into t select x, hex(x * 7919) from c;' >/dev/null
sql 'create index by_b on t(b);' >/dev/null
sql 'begin; insert into t values(100000, "not yet");' >/dev/null
for ((g = 1; g <= $(times 2 10); g++)); do
	sql "insert into t values(200000 + $g, 'generation');" >/dev/null
	sum=$(sql 'select count(*), sum(a), sum(length(b)) from t;')
	imaged sqlite
	crash sqlite3
	up
	same "sum of generation $g" "$(sql 'select count(*), sum(a), sum(length(b)) from t;')" "$sum"
	same 'integrity' "$(sql 'pragma integrity_check;')" ok
done
same 'rollback' "$(sql 'rollback; select count(*) from t;')" 50000
printf '.quit\n' >&8
wait "$run" || fail "exit status $?"

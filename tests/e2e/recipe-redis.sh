#!/bin/bash
# The recipe for Redis: by the line of its unit it comes back after a crash, with its data, and ends in order.
# timeout: 90
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"
. "$TESTS/lib-agent.sh"
. "$TESTS/lib-programs.sh"
. "$TESTS/lib-recipe.sh"

need redis-server redis-cli
port=$(free_port)
printf '%s\n' 'bind 127.0.0.1' "port $port" "dir $PWD" 'enable-debug-command yes' 'pidfile ""' >redis.conf
rcli() { timeout 10 redis-cli -p "$port" "$@"; }
recipe redis-server.service.conf "s|/etc/redis/redis.conf|$PWD/redis.conf|"
understood uffd-snap-ready.conf redis-server.service

up redis
wait_until 20 rcli ping
agent_in "$(server redis-server)" || fail 'the agent is not in the server'
redis_fill 50000 100
for ((g = 1; g <= $(times 2 10); g++)); do
	same "SET in generation $g" "$(rcli set generation $g)" OK
	before=$(rcli debug digest)
	imaged redis
	crash redis-server
	up redis
	wait_until 30 rcli ping
	same "digest of generation $g" "$(rcli debug digest)" "$before"
	same "generation" "$(rcli get generation)" $g
done
same 'starts of the server' "$(grep -c 'Ready to accept' redis.log)" 1
down redis-server

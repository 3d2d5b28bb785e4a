#!/bin/bash
# The recipe for Tarantool: by the line of its unit an instance without a log comes back after a crash, with its fibers.
# timeout: 90
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"
. "$TESTS/lib-agent.sh"
. "$TESTS/lib-programs.sh"
. "$TESTS/lib-recipe.sh"

need tarantool
port=$(free_port)
mkdir data
cat >instance.lua <<END
local fiber = require('fiber')
box.cfg{listen = '127.0.0.1:$port', wal_mode = 'none', memtx_memory = 64 * 1024 * 1024, work_dir = '$PWD/data'}
local s = box.schema.space.create('s', {if_not_exists = true})
s:create_index('primary', {if_not_exists = true, parts = {1, 'unsigned'}})
s:create_index('second', {if_not_exists = true, unique = false, parts = {2, 'string'}})
box.schema.user.grant('guest', 'super', nil, nil, {if_not_exists = true})
ticks = 0
fiber.create(function() while true do ticks = ticks + 1; fiber.sleep(0.01) end end)
function fill(from, to) for i = from, to do s:replace{i, 'text ' .. i % 100, string.rep('x', 100)} end return s:len() end
function sum() local n = 0 for _, t in s:pairs() do n = n + t[1] * #t[3] end return n end
END
cat >ask.lua <<END
local c = require('net.box').connect('127.0.0.1:$port', {connect_timeout = 5})
local ok, r = pcall(c.eval, c, 'return ' .. arg[1], {}, {timeout = 10})
print(tostring(r))
os.exit(ok and 0 or 1)
END
ask() { timeout 20 tarantool ask.lua "$1" 2>&1; }
recipe 'tarantool@.service.conf' "s|/etc/tarantool/instances.enabled/%i.lua|$PWD/instance.lua|; s|%i|instance|"

up tarantool
wait_until 20 ask 1
agent_in "$(server tarantool)" || fail 'the agent is not in the server'
for ((g = 1; g <= $(times 2 10); g++)); do
	same 'tuples' "$(ask "fill($((g * 5000 - 4999)), $((g * 5000)))")" $((g * 5000))
	sum=$(ask 'sum()')
	imaged tarantool-instance
	crash tarantool
	up tarantool
	wait_until 30 ask 1
	same "sum of generation $g" "$(ask 'sum()')" "$sum"
	same 'by the second index' "$(ask "box.space.s.index.second:count('text 7')")" $((g * 50))
	ticks=$(ask ticks)
	sleep 0.2
	[ "$(ask ticks)" -gt "$ticks" ] || fail 'its fibers stand still'
done
down tarantool

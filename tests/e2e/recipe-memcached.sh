#!/bin/bash
# The recipe for memcached: by the line of its unit it comes back after a crash with all its items.
# timeout: 90
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"
. "$TESTS/lib-agent.sh"
. "$TESTS/lib-programs.sh"
. "$TESTS/lib-recipe.sh"

need memcached python3
port=$(free_port)
user=
[ "$(id -u)" -ne 0 ] || user='-u root'
recipe memcached.service.conf "s|-p 11211|-p $port $user|"

cat >items.py <<'END'
import socket, sys
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 10)
f = s.makefile("rwb")
what, first, last = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
for i in range(first, last):
    value = b"%d-" % i * 50
    if what == "put":
        f.write(b"set key%d 0 0 %d noreply\r\n%s\r\n" % (i, len(value), value))
    else:
        f.write(b"get key%d\r\n" % i)
        f.flush()
        head = f.readline()
        if head != b"VALUE key%d 0 %d\r\n" % (i, len(value)) or f.readline() != value + b"\r\n":
            sys.exit("wrong: key%d: %r" % (i, head))
        f.readline()
f.write(b"version\r\n")
f.flush()
print(f.readline().decode().strip())
END
items() { timeout 20 python3 items.py "$port" "$@"; }

up memcached
wait_until 20 items get 0 0
agent_in "$(server memcached)" || fail 'the agent is not in the server'
for ((g = 1; g <= $(times 2 10); g++)); do
	items put $((g * 5000 - 5000)) $((g * 5000)) >/dev/null
	imaged memcached
	crash memcached
	up memcached
	wait_until 30 items get 0 0
	items get 0 $((g * 5000)) >items.out || fail "generation $g: $(cat items.out memcached.log)"
done
down memcached

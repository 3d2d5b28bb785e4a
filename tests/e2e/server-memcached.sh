#!/bin/bash
# memcached under load takes snapshot after snapshot; no answer is wrong or late; a value is in the image.
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

need memcached jq
user=()
[ "$(id -u)" -ne 0 ] || user=(-u root)
start memcached -s mc.sock -a 0600 -t 3 -m 128 "${user[@]}"
pid=$started
wait_until 20 test -S mc.sock
"$WORKLOADS/kvload" --unix mc.sock --memcached --clients 50 >load.out 2>load.err &
load=$!
adopt $load
wait_until 20 grep -q ready load.out
for ((i = 0; i < $(times 5 20); i++)); do
	usnap snapshot -q "$pid" -o m.usnap
	usnap verify -q m.usnap
done
kill -TERM $load
wait $load || fail "$(cat load.out load.err)"
cat load.out
tar xOf m.usnap --wildcards 'pages/*.zst' | zstd -dqc >pages
grep -qa 'value-[0-9]*-[0-9]*-[0-9]*-' pages || fail "no value in the image"
kill -0 "$pid"

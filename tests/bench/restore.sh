#!/bin/bash
# Restoring a Redis beside its own loading of the same data, and beside zstd and fresh memory.
# timeout: 600
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"
. "$TESTS/lib-bench.sh"

need jq zstd redis-cli
n=$(times_bench 3 5)
keys=$(times_bench 400000 5000000)
dir=$PWD/data
mkdir "$dir"
start_redis --loglevel warning --dir "$dir" --enable-debug-command yes
redis_fill "$keys" 300
rcli save >/dev/null
human=$(rcli info memory | tr -d '\r' | sed -n 's/^used_memory_rss_human://p')
digest=$(rcli debug digest)
usnap snapshot -q --kill "$redis_pid" -o r.usnap
wait "$redis_pid" 2>/dev/null || true
rm -f "$redis_sock"

# Until a client gets the right answer to its first question, ns since $1.
first_answer() {
	until [ "$(redis-cli -s "$redis_sock" get filler:1 2>/dev/null | head -c 1)" ]; do :; done
	echo $(($(now) - $1))
}
gone() { ! kill -0 "$1" 2>/dev/null; }

: >restored
: >loaded
: >'done'
: >decoded
: >filled
tar xOf r.usnap --wildcards 'pages/*.zst' >pages.zst
bytes=$(zstd -dc pages.zst | wc -c)
for ((i = 0; i < n; i++)); do
	from=$(now)
	pid=$(usnap restore -q --detach r.usnap)
	adopt "$pid"
	echo $(($(now) - from)) >>'done'
	first_answer "$from" >>restored
	[ "$(redis-cli -s "$redis_sock" debug digest)" = "$digest" ] || fail "restored data differ"
	kill -KILL "$pid"
	wait_until 20 gone "$pid"
	rm -f "$redis_sock"

	from=$(now)
	redis-server --port 0 --unixsocket "$redis_sock" --save '' --loglevel warning --dir "$dir" >load.log 2>&1 &
	pid=$!
	adopt $pid
	until redis-cli -s "$redis_sock" ping 2>/dev/null | grep -q PONG; do :; done
	first_answer "$from" >>loaded
	kill -KILL $pid
	wait $pid 2>/dev/null || true
	rm -f "$redis_sock"

	from=$(now)
	zstd -dq -T0 -c pages.zst >/dev/null
	echo $(($(now) - from)) >>decoded
	"$BENCHES/freshmem" "$bytes" >>filled
done
paste decoded filled | awk '{printf "%.0f\n", $1 + $2}' >both
echo "redis-server, $keys keys, $human resident; image $(($(stat -c %s r.usnap) >> 20)) MiB, RDB $(($(stat -c %s \
	"$dir/dump.rdb") >> 20)) MiB; files in the page cache; $n runs in turns; median (least ... most)."
echo
echo "| | seconds |"
echo "|---|---|"
echo "| restore: first answer | $(spread 1e9 restored) |"
echo "| restore: last page, the command has returned | $(spread 1e9 'done') |"
echo "| redis-server loads its RDB file: first answer | $(spread 1e9 loaded) |"
echo "| zstd -d -T0 of the pages | $(spread 1e9 decoded) |"
echo "| fresh memory, one thread | $(spread 1e9 filled) |"
echo "| these two together | $(spread 1e9 both) |"
echo
awk -v r="$(median restored)" -v l="$(median loaded)" -v d="$(median 'done')" -v z="$(median both)" \
	'BEGIN {printf "RDB / restore %.2f; restore / (zstd + fill) %.2f\n", l / r, d / z}'

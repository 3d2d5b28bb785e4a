#!/bin/bash
# Latency of Redis clients around T0 beside that around BGSAVE of the same server.
# timeout: 300
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"
. "$TESTS/lib-bench.sh"

need jq
n=$(times_bench 3 20)
keys=$(times_bench 200000 2000000)
start_redis --loglevel warning
redis_fill "$keys" 300

# load RATE: clients, for as long as the two take turns. Leaves a table row for each.
load() {
	local rate=$1 load
	rm -f slow.log load.out
	"$WORKLOADS/kvload" --unix "$redis_sock" --clients 50 --rate "$rate" --limit 10000 \
		--log slow.log >load.out 2>load.err &
	load=$!
	adopt $load
	wait_until 20 grep -q ready load.out
	: >snap.spans
	: >save.spans
	: >quiet.spans
	: >pauses
	for ((i = 0; i < n; i++)); do
		echo "$(now) $(sleep 1 && now)" >>quiet.spans
		from=$(now)
		usnap snapshot -q "$redis_pid" -o r.usnap
		echo "$from $(now)" >>snap.spans
		stat_of r.usnap pause_ns >>pauses
		rm r.usnap
		sleep 0.5
		from=$(now)
		rcli bgsave >/dev/null
		wait_until 120 eval "redis-cli -s '$redis_sock' info persistence | grep -q rdb_bgsave_in_progress:0"
		echo "$from $(now)" >>save.spans
		sleep 0.5
	done
	kill -TERM $load
	wait $load || fail "$(cat load.out load.err)"
	for kind in quiet snap save; do
		while read -r from to; do
			awk -v f="$from" -v t="$to" '$1 >= f && $1 <= t + 1e7 && $2 > m {m = $2}
				END {print m + 0}' slow.log
		done <$kind.spans >$kind.longest
		awk '{print $2 - $1}' $kind.spans >$kind.took
	done
	echo "| nothing | $rate | $(spread 1e6 quiet.longest) | - | - |"
	echo "| snapshot | $rate | $(spread 1e6 snap.longest) | $(spread 1e6 pauses) | $(spread 1e9 snap.took) |"
	echo "| BGSAVE | $rate | $(spread 1e6 save.longest) | $(redis-cli -s "$redis_sock" info stats |
		awk -F: '/latest_fork_usec/ {printf "%.2f (the last)", $2 / 1000}') | $(spread 1e9 save.took) |"
}

echo "redis-server, $keys keys, $(rcli info memory | tr -d '\r' | sed -n 's/^used_memory_rss_human://p') resident," \
	"50 clients of mixed commands; $n times; median (least ... most)."
echo
echo "| during | commands a second | longest answer, ms | pause, ms | took, s |"
echo "|---|---|---|---|---|"
load 10000
[ -z "${BENCH_FULL:-}" ] || load 30000

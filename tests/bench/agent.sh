#!/bin/bash
# What the agent costs while no snapshot runs: allocation, discards and Redis, with it and without.
# timeout: 1200
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"
. "$TESTS/lib-bench.sh"

need redis-server redis-benchmark
n=$(times_bench 3 21)
count=$(times_bench 60000 400000)

# compare WHAT UNIT COMMAND...: a table row, of runs with and without the agent in turn. The command
# prints one number.
compare() {
	local what=$1 unit=$2 i
	shift 2
	rm -f with without
	for ((i = 0; i < n; i++)); do
		"$@" '' >>without
		"$@" "$AGENT" >>with
	done
	echo "| $what, $unit | $(spread 1 without) | $(spread 1 with) |" \
		"$(awk -v a="$(median without)" -v b="$(median with)" 'BEGIN {printf "%+.1f %%", (b / a - 1) * 100}') |"
}

allocate() { env ${3:+LD_PRELOAD="$3"} "$BENCHES/allocbench" "$1" "$2"; }

# redis COMMAND AGENT: requests a second.
redis() {
	local pid sock=$PWD/b.sock
	env ${2:+LD_PRELOAD="$2"} redis-server --port 0 --unixsocket "$sock" --save '' \
		--appendonly no --dir "$PWD" --loglevel warning >redis.log 2>&1 </dev/null &
	pid=$!
	adopt $pid
	wait_until 20 redis-cli -s "$sock" ping
	redis-benchmark -s "$sock" -t "$1" -n "$(times_bench 15000 300000)" -c 20 -P 4 -r 100000 \
		-d 200 --csv 2>/dev/null | awk -F'","' 'NR > 1 {print $2}'
	kill -TERM $pid
	wait $pid || true
}

echo "$n runs of each in turn; median (least ... most)"
echo
echo "| | without | with the agent | median |"
echo "|---|---|---|---|"
compare 'malloc and free' ns allocate malloc "$count"
compare 'mmap, touch, munmap' ns allocate munmap "$((count / 4))"
compare 'touch, madvise' ns allocate madvise "$((count / 4))"
compare 'redis-benchmark set' 1/s redis set
compare 'redis-benchmark get' 1/s redis get

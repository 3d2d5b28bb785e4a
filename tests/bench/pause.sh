#!/bin/bash
# The pause, as the tool has it and as a thread of the process sees it, beside fork() of the same process.
# timeout: 900
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"
. "$TESTS/lib-bench.sh"

need jq
n=$(times_bench 3 20)

# seen LOG T0 PAUSE: the largest gap that ends from 10 ms before T0 to 20 ms after the pause.
seen() { awk -v t="$2" -v p="$3" '$1 > t - 1e7 && $1 < t + p + 2e7 && $2 > m {m = $2} END {print m + 0}' "$1"; }

echo "Process with 4 busy threads, 3 that write at random and one that reads the clock; $n snapshots, then $n fork(); median (least ... most), ms."
echo
echo "| memory | pause by the tool | largest gap seen by a thread | fork() | gap during fork() |"
echo "|---|---|---|---|---|"
for size in $(times_bench '64M 256M' '256M 4G'); do
	work_start --size "$size" --threads 3 --stride 4096 --clock paced --gap-log gaps
	: >pauses
	: >t0
	for ((i = 0; i < n; i++)); do
		usnap snapshot -q "$work_pid" -o p.usnap
		t0_of p.usnap >>t0
		stat_of p.usnap pause_ns >>pauses
		rm p.usnap
	done
	sleep 0.2
	for ((i = 0; i < n; i++)); do
		now >>forked
		kill -USR1 "$work_pid"
		sleep 0.3
	done
	work_end
	sed -n 's/^fork //p' cutwork.out >forks
	paste t0 pauses | while read -r t p; do seen gaps "$t" "$p"; done >outside
	while read -r t; do seen gaps "$t" 100000000; done <forked >fork-gaps
	echo "| $size | $(spread 1e6 pauses) | $(spread 1e6 outside) | $(spread 1e6 forks) | $(spread 1e6 fork-gaps) |"
	rm -f forked
done

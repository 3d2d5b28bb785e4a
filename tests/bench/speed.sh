#!/bin/bash
# A snapshot of an idle process beside zstd -1 -T2 of the same bytes, in turns.
# timeout: 300
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"
. "$TESTS/lib-bench.sh"

need zstd jq
n=$(times_bench 3 7)
bytes=$(times_bench $((256 << 20)) $((2 << 30)))
"$BENCHES/mixdata" "$bytes" dump >mixdata.out 2>&1 </dev/null &
pid=$!
adopt $pid
wait_until 120 grep -q ready mixdata.out
: >ours
: >theirs
for ((i = 0; i < n; i++)); do
	rm -f s.usnap
	"$WORKLOADS/runstat" run.json "$UFFD_SNAP" snapshot -q --threads 2 "$pid" -o s.usnap
	jq .ns run.json >>ours
	jq .max_rss_kib run.json >>rss
	rm -f dump.zst
	sync -f .
	"$WORKLOADS/runstat" run.json zstd -q -1 -T2 dump -o dump.zst
	jq .ns run.json >>theirs
	sync -f .
done
usnap verify -q s.usnap
echo "Idle process, $((bytes >> 20)) MiB of mixed data; $n runs in turns; median (least ... most)."
echo
echo "| | seconds | MiB written |"
echo "|---|---|---|"
echo "| uffd-snap snapshot, synced to disk | $(spread 1e9 ours) | $(($(stat -c %s s.usnap) >> 20)) |"
echo "| zstd -1 -T2, not synced | $(spread 1e9 theirs) | $(($(stat -c %s dump.zst) >> 20)) |"
echo
awk -v a="$(median ours)" -v b="$(median theirs)" 'BEGIN {printf "ratio %.2f\n", a / b}'

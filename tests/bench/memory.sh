#!/bin/bash
# Peak memory of the snapshotter, with a fast and with a slow output.
# timeout: 300
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"
. "$TESTS/lib-bench.sh"

need jq
echo "Process with 4 threads that write at random; peak RSS of the snapshotter, MiB."
echo
echo "| memory | pool | output | pages | peak | pool + 40 bytes a page + 48 MiB | longest wait of a writer, ms |"
echo "|---|---|---|---|---|---|---|"

# row SIZE POOL OUTPUT
row() {
	local pages rss
	work_start --size "$1"
	if [ "$3" = slow ]; then
		"$WORKLOADS/runstat" run.json "$UFFD_SNAP" snapshot -q --memory "$2M" "$work_pid" -o - |
			"$WORKLOADS/throttle" 20000000 m.usnap
	else
		"$WORKLOADS/runstat" run.json "$UFFD_SNAP" snapshot -q --memory "$2M" "$work_pid" -o m.usnap
	fi
	kill -TERM "$work_pid"
	wait "$work_pid" || fail "$(cat cutwork.err)"
	pages=$(pages_of m.usnap)
	rss=$(jq .max_rss_kib run.json)
	echo "| $1 | $2M | $3 | $pages | $((rss / 1024)) | $(($2 + pages * 40 / 1048576 + 48)) | $(sed -n \
		's/^lane.*longest wait \([0-9]*\) us/\1/p' cutwork.out | sort -n | tail -n 1 |
		awk '{printf "%.1f", $1 / 1000}') |"
	rm m.usnap
}
for size in $(times_bench 128M '256M 1G 4G'); do
	row "$size" 64 fast
	row "$size" 64 slow
	row "$size" 16 slow
done

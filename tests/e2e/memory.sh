#!/bin/bash
# The snapshotter's memory stays within pool + 40 bytes a page + 48 MiB, with a slow output too.
# timeout: 180
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

need jq
work_start --size "$(times 256M 2G)" --signals

# within IMAGE POOL_MIB: by what runstat has seen.
within() {
	local rss pages limit
	rss=$(jq .max_rss_kib run.json)
	pages=$(pages_of "$1")
	limit=$(($2 * 1024 + pages * 40 / 1024 + 48 * 1024))
	echo "pool $2 MiB, $pages pages: peak $rss KiB of at most $limit"
	[ "$rss" -le "$limit" ] || fail "$rss KiB"
}

for pool in 64 16; do
	"$WORKLOADS/runstat" run.json "$UFFD_SNAP" snapshot -q --memory ${pool}M "$work_pid" -o m.usnap
	consistent m.usnap
	within m.usnap $pool
	"$WORKLOADS/runstat" run.json "$UFFD_SNAP" snapshot -q --memory ${pool}M "$work_pid" -o - |
		"$WORKLOADS/throttle" 20000000 m.usnap
	consistent m.usnap
	within m.usnap $pool
done
# Writers wait for the slow output then, and no longer than for their turn.
kill -TERM "$work_pid"
wait "$work_pid" || fail "$(cat cutwork.err)"
sed -n 's/^lane.*longest/slow output: longest/p' cutwork.out

#!/bin/bash
# Increments after 0, 0.1, 1, 10 and 100% of the pages have changed, beside the full snapshot.
# timeout: 600
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"
. "$TESTS/lib-bench.sh"

need jq
n=$(times_bench 3 5)
bytes=$(times_bench $((256 << 20)) $((4 << 30)))
_said() { [ -s digest ]; }
change() {
	echo "$1" >share
	rm -f digest
	kill -USR1 "$pid"
	wait_until 120 _said
}
# take FILE [OPTION]...: times it; ns and pause in files of that name.
take() {
	local file=$1 what=$2
	shift 2
	rm -f "$file"
	"$WORKLOADS/runstat" run.json "$UFFD_SNAP" snapshot -q --threads 2 "$pid" -o "$file" "$@"
	jq .ns run.json >>"$what.ns"
	jq .max_rss_kib run.json >>"$what.rss"
	stat_of "$file" pause_ns >>"$what.pause"
	sync -f .
}

start_workload pagechange "$bytes"
pid=$started
for ((i = 0; i < n; i++)); do
	take full.usnap full
done
compressed=$(stat_of full.usnap compressed) raw=$(stat_of full.usnap raw)
echo "$((bytes >> 20)) MiB of memory, nothing else runs; $n runs each; median (least ... most)."
echo
echo "| changed | seconds | of a full snapshot | file, MiB | of changed pages + index | pause, ms | memory, MiB |"
echo "|---|---|---|---|---|---|---|"
row() {
	awk -v what="$1" -v t="$(spread 1e9 "$2.ns")" -v ns="$(median "$2.ns")" -v full="$(median full.ns)" \
		-v file="$3" -v ideal="$4" -v pause="$(spread 1e6 "$2.pause")" -v rss="$(median "$2.rss")" \
		'BEGIN {printf "| %s | %s | %.2f | %.1f | %.2f | %s | %d |\n", what, t, ns / full, file / 1048576,
			file / ideal, pause, rss / 1024}'
}
index() { tar xOf "$1" commit.json | jq '.members["index.zst"].bytes'; }
row 'full snapshot' full "$(stat -c %s full.usnap)" $((compressed + $(index full.usnap)))
for share in 0 100 1000 10000 100000; do
	for ((i = 0; i < n; i++)); do
		usnap snapshot -q "$pid" -o parent.usnap
		[ $share -eq 0 ] || change $share
		take increment.usnap $share --parent parent.usnap
	done
	changed=$((bytes / 4096 * share / 100000))
	ideal=$((changed * 4096 * (compressed >> 10) / (raw >> 10) + $(index increment.usnap)))
	row "$(awk -v s=$share 'BEGIN {printf "%g%%", s / 1000}')" $share "$(stat -c %s increment.usnap)" $ideal
done
usnap verify -q increment.usnap

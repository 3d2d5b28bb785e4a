# shellcheck shell=bash
# Helpers of the benchmarks: source it after lib.sh and lib-work.sh.

# times_bench SHORT FULL
times_bench() { if [ -n "${BENCH_FULL:-}" ]; then echo "$2"; else echo "$1"; fi; }

# spread UNIT_NS FILE: "median (least ... most)" of a column of nanoseconds.
spread() {
	sort -n "$2" | awk -v u="$1" '{v[NR] = $1 / u}
		END {if (NR) printf "%.2f (%.2f ... %.2f)", v[int((NR + 1) / 2)], v[1], v[NR]; else printf "-"}'
}

median() { sort -n "$1" | awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)]}'; }

#!/bin/bash
# redis-server under 50 clients of mixed commands takes snapshot after snapshot; no answer is wrong or late; its keys are in the image.
# timeout: 180
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

need gdb jq
n=$(times 5 20)
start_redis --loglevel warning
redis_fill "$(times 100000 1000000)" 100
rcli set the-key "a value that $$ knows" >/dev/null
"$WORKLOADS/kvload" --unix "$redis_sock" --clients 50 --log slow.log >load.out 2>load.err &
load=$!
adopt $load
wait_until 20 grep -q ready load.out
before=$(outside "$redis_pid" | grep -v 'socket:')

for ((i = 0; i < n; i++)); do
	usnap snapshot -q "$redis_pid" -o r.usnap
	usnap verify -q r.usnap
	t0_of r.usnap >>t0
	stat_of r.usnap pause_ns >>pauses
done
# Beside what the server does by itself.
save=$(now)
rcli bgsave >/dev/null
wait_until 60 eval "redis-cli -s '$redis_sock' info persistence | grep -q rdb_bgsave_in_progress:0"
sleep 0.2
kill -TERM $load
wait $load || fail "$(cat load.out load.err)"
cat load.out
same "what is left" "$(outside "$redis_pid" | grep -v 'socket:')" "$before"

# around T0: the longest answer that ended within half a second.
around() { awk -v t="$1" '$1 >= t && $1 < t + 5e8 && $2 > m {m = $2} END {printf "%.1f", m / 1e6}' slow.log; }
echo "pause of the snapshots, us: $(awk '{printf "%d ", $1 / 1000}' pauses)"
echo "longest answer around T0, ms: $(while read -r t; do printf '%s ' "$(around "$t")"; done <t0)"
echo "longest answer around BGSAVE, ms: $(around "$save")"

# The values are there, and the debugger finds them.
usnap core r.usnap -o r.core
cat >find.gdb <<-END
	set pagination off
	python
	import gdb
	needle = b"a value that $$ knows"
	found = [line for line in gdb.execute("info files", to_string=True).splitlines()
	         if " is load" in line]
	hits = 0
	for line in found:
	    start, end = [int(x, 16) for x in line.split(" is ")[0].split(" - ")]
	    try:
	        hits += gdb.selected_inferior().search_memory(start, end - start, needle) is not None
	    except gdb.MemoryError:
	        pass
	print("hits:", hits)
	end
	print 1
END
gdb -nx -batch -c r.core -x find.gdb "$(readlink "/proc/$redis_pid/exe")" >gdb.out 2>&1 || true
grep -q '^hits: [1-9]' gdb.out || fail "gdb does not find the value: $(tail -n 5 gdb.out)"
gdb -nx -batch -c r.core "$(readlink "/proc/$redis_pid/exe")" -ex 'info threads' -ex bt >bt.out 2>&1
grep -qE '^#[1-9]' bt.out || fail "no backtrace: $(cat bt.out)"
# shellcheck disable=SC2016 # gdb's $1
if gdb -nx -batch -c r.core "$(readlink "/proc/$redis_pid/exe")" -ex 'print server.dirty' 2>/dev/null |
	grep -q '^\$1 = [0-9]'; then
	echo "server.dirty can be read"
fi
rcli ping >/dev/null

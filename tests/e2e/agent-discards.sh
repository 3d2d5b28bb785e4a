#!/bin/bash
# With the agent every snapshot of a process that gives memory back at hundreds a second is right at the first attempt.
# timeout: 900
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

need gdb jq

# allocator NAME LIBRARY [VAR=VALUE]...: what to preload, and the environment in which it gives
# memory back at once.
allocator() {
	local library=$2
	what=$1
	shift 2
	if [ -n "$library" ]; then
		library=$(ldconfig -p | sed -n "s|.*$library.* => ||p" | head -n 1)
		[ -n "$library" ] || skip "the allocator $what is not installed"
	fi
	workload_env=("LD_PRELOAD=$AGENT${library:+:$library}" "$@")
}

# first_time N KIND SIZE: n snapshots, none of them torn.
first_time() {
	local n=$1 kind=$2 i before asks=0
	local env=("${workload_env[@]}")
	workload_env=()
	rm -f cutwork.out cutwork.err witness.out
	start_workload witness
	witness=$started
	workload_env=("${env[@]}")
	start_workload cutwork --size "$3" --discard "$kind" --signals
	work_pid=$started
	header=$(sed -n 's/^header //p' cutwork.out)
	before=$(outside "$work_pid")
	# More of them where nothing happened to be given back.
	for ((i = 0; i < n || (asks == 0 && i < 20); i++)); do
		usnap snapshot -q --no-hold "$work_pid" -o d.usnap || fail "$what, $kind: snapshot $i"
		consistent d.usnap
		same "$what, $kind: torn attempts" "$(stat_of d.usnap torn) $(stat_of d.usnap torn_reason)" \
			'0 null'
		asks=$((asks + $(stat_of d.usnap asks)))
		rm d.usnap
	done
	untouched "$work_pid" "$before"
	work_end
	[ $asks -gt 0 ] || fail "$what, $kind: nothing was held back"
	printf '%-9s %-8s %d snapshots, %d discards held back\n' "$what" "$kind" "$i" "$asks"
}

# returned: memory that is freed during a snapshot is in the image, and goes back to the kernel.
returned() {
	local snapshot before after
	start_workload giveback 64
	work_pid=$started
	before=$(awk '/^RssAnon/ {print $2}' "/proc/$work_pid/status")
	usnap snapshot -q --no-hold --rate 16M "$work_pid" -o r.usnap &
	snapshot=$!
	adopt $snapshot
	wait_until 20 grep -qE '^VmFlags.* uw' "/proc/$work_pid/smaps"
	sleep 1
	kill -USR1 "$work_pid"
	wait $snapshot || fail "$what: the snapshot failed"
	wait_until 20 grep -q freed giveback.out
	same "$what: torn attempts" "$(stat_of r.usnap torn)" 0
	[ "$(pages_of r.usnap)" -gt 16384 ] || fail "$what: $(pages_of r.usnap) pages in the image"
	[ "$(stat_of r.usnap asked_pages)" -gt 0 ] || fail "$what: nothing was held back"
	for ((i = 0; i < 100; i++)); do
		after=$(awk '/^RssAnon/ {print $2}' "/proc/$work_pid/status")
		[ "$after" -gt $((before / 4)) ] || break
		sleep 0.1
	done
	[ "$after" -le $((before / 4)) ] || fail "$what: of $before KiB $after are still there"
	printf '%-9s of %d KiB %d are left after they were freed, %d discards held back\n' "$what" \
		"$before" "$after" "$(stat_of r.usnap asks)"
	kill -KILL "$work_pid"
	wait "$work_pid" 2>/dev/null || true
	rm r.usnap
}

# meanwhile: memory that goes between its copy and the end of its protection does no harm. The sweep
# begins with the half that is freed.
meanwhile() {
	start_workload giveback 64 half
	"${gdb_snapshot[@]}" \
		-ex 'tbreak fault_finish if s->end - s->start > 32 << 20 && addr - s->start > 1 << 20' \
		-ex run -ex "shell kill -USR1 $started" -ex 'call (int)usleep(6000000)' \
		-ex 'shell cat giveback.out' -ex continue \
		--args "$UFFD_SNAP" snapshot -q --no-hold "$started" -o g.usnap >gdb.out 2>&1 </dev/null
	grep -qx freed gdb.out || fail "nothing was freed: $(cat gdb.out)"
	same "$what: torn attempts" "$(stat_of g.usnap torn) $(stat_of g.usnap torn_reason)" '0 null'
	usnap verify -q g.usnap
	kill -KILL "$started"
	wait "$started" 2>/dev/null || true
}

all() {
	first_time "$(times 2 100)" all "$(times 16M 128M)"
	first_time "$more" malloc "$(times 16M 128M)"
	returned
}

more=$(times 2 20)
allocator glibc ''
for kind in munmap mremap dontneed free fixed brk; do
	first_time "$more" "$kind" "$(times 8M 128M)"
done
meanwhile
all
allocator jemalloc libjemalloc.so.2 MALLOC_CONF=dirty_decay_ms:0,muzzy_decay_ms:0
all
allocator tcmalloc libtcmalloc_minimal.so.4 TCMALLOC_RELEASE_RATE=10000 \
	TCMALLOC_AGGRESSIVE_DECOMMIT=1
all
allocator mimalloc libmimalloc.so.2 MIMALLOC_PAGE_RESET=1 MIMALLOC_RESET_DELAY=0 \
	MIMALLOC_ABANDONED_PAGE_RESET=1 MIMALLOC_DECOMMIT_DELAY=0
all

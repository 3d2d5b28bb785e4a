# shellcheck shell=bash
# Helpers around the workloads: source it after lib.sh.

CHECKERS=$B/tests/checkers

full() { [ -n "${UFFD_SNAP_FULL:-}" ]; }

# times SHORT FULL: how often, in a normal run and in a full one.
times() { if full; then echo "$2"; else echo "$1"; fi; }

# now: CLOCK_MONOTONIC, ns.
now() { "$WORKLOADS/monotonic"; }

# work_start [ARG]...: cutwork, running; $work_pid and $header.
work_pid='' header='' witness='' lockwaits=''
work_start() {
	rm -f cutwork.out cutwork.err witness.out
	start_workload witness
	# shellcheck disable=SC2154 # lib.sh
	witness=$started
	start_workload cutwork "$@"
	work_pid=$started
	header=$(sed -n 's/^header //p' cutwork.out)
}

# work_watch: what its threads wait for locks on mappings (lockwaits.c) is known to within_a_second.
work_watch() {
	start_workload lockwaits "$work_pid"
	lockwaits=$started
}

_longest() { sed -n 's/.*longest wait \([0-9]*\) us.*/\1/p' "$@" | sort -n | tail -n 1; }

# within_a_second FILE: no thread of a workload waited longer than a second. A machine that stands
# still proves nothing: what a process beside it waited is added for each turn that a writer waits
# for: of the one that saves its page, of the one that takes what is saved, of its child, its own; and
# what one of its own threads, or its child, waited for locks that are no matter of a snapshot (lockwaits.c).
within_a_second() {
	local worst allowed locks=0 sayings=("$1" witness.out)
	stop "$witness"
	if [ -n "$lockwaits" ]; then
		stop "$lockwaits"
		locks=$(_longest lockwaits.out)
		sayings+=(lockwaits.out)
		lockwaits=''
	fi
	worst=$(_longest "$1")
	allowed=$((1000000 + 4 * $(_longest witness.out) + locks))
	[ "${worst:-0}" -le $allowed ] ||
		fail "a thread waited $worst us, of at most $allowed: $(cat "${sayings[@]}" && _told_by_images)"
}

# What images that are still there know of waits, us.
_told_by_images() {
	local image
	for image in ./*.usnap; do
		[ -s "$image" ] || continue
		tar -xOf "$image" stats.json 2>/dev/null |
			jq -r --arg name "$image" '"\($name): the longest fault \(.faults.max_ns / 1000 | floor), the longest write \(
				(.output.longest_write_ns // 0) / 1000 | floor)"' || true
	done
}

# work_over: stops the workload; its own checks must have held.
work_over() {
	local status=0
	kill -TERM "$work_pid" || fail "the workload is gone: $(cat cutwork.err)"
	wait "$work_pid" || status=$?
	[ $status -eq 0 ] || fail "the workload was disturbed (exit $status): $(cat cutwork.err cutwork.out)"
	same 'last line of the workload' "$(tail -n 1 cutwork.out)" ok
}

# work_end: and none of its threads waited, for one that only snapshots have stopped.
work_end() {
	work_over
	within_a_second cutwork.out
}

_all_stopped() { ! grep -h '^State:' "/proc/$1"/task/*/status | grep -qv 'T (stopped)'; }

# halt PID: stops every thread of it.
halt() {
	kill -STOP "$1"
	wait_until 20 _all_stopped "$1"
}

# redis_fill KEYS BYTES: keys "filler:1" ... with values of so many bytes.
redis_fill() {
	local from
	for ((from = 1; from <= $1; from += 20000)); do
		rcli eval 'for i = ARGV[1], ARGV[2] do
				redis.call("set", "filler:" .. i, i .. string.rep(string.char(97 + i % 26), ARGV[3]))
			end' 0 "$from" "$((from + 19999 < $1 ? from + 19999 : $1))" "$2" >/dev/null
	done
	[ "$(rcli dbsize)" -ge "$1" ] || fail "redis-server has $(rcli dbsize) keys"
}

# consistent IMAGE: whole, and of one instant.
consistent() {
	_before_others "$UFFD_SNAP" verify -q "$1" >verify.out 2>&1 || fail "verify: $(cat verify.out)"
	_before_others "$CHECKERS/cutcheck" "$1" "$header" >cutcheck.out 2>&1 ||
		fail "'$1' is not consistent: $(cat cutcheck.out)"
}

# A workload that takes every processor would make each check take several times as long.
_before_others() {
	if [ "$(id -u)" -eq 0 ]; then nice -n -15 "$@"; else "$@"; fi
}

# stat_of IMAGE NAME: a figure of stats.json, wherever it stands in there.
stat_of() {
	tar xOf "$1" stats.json | jq -r --arg n "$2" '[.. | objects | select(has($n)) | .[$n]][0]'
}

# pages_of IMAGE: how many it stores.
pages_of() { tar xOf "$1" commit.json | jq .pages; }

t0_of() { tar xOf "$1" snapshot.json | jq -r .t0.monotonic_ns; }

# outside PID: what a snapshot must leave as it was.
outside() {
	local p=/proc/$1
	echo "tracer $(sed -n 's/^TracerPid:\t//p' "$p/status")"
	sed -n '/^SigIgn/p; /^SigCgt/p' "$p/status"
	echo "descriptors"
	find "$p/fd" -mindepth 1 -printf '%f %l\n' 2>/dev/null | sort
	echo "registered $(awk '/^VmFlags/ && / (um|uw|ui)( |$)/ {n++} END {print n + 0}' "$p/smaps")"
	echo "state $(sed -n 's/^State:\t\(.\).*/\1/p' "$p/status" | tr RSD r)"
}

# threads_of PID: their names; of a workload whose threads do not come and go.
threads_of() { cat "/proc/$1"/task/*/comm | sort | uniq -c; }

_has_userfaultfd() { find "$1/fd" -lname '*userfaultfd*' 2>/dev/null | grep -q .; }

# apart_are N PID: so many threads of a snapshot under way do not have the userfaultfd; the same when
# called again, for others come to their end meanwhile.
_apart=''
apart_are() {
	local task before=$_apart
	_has_userfaultfd "/proc/$2" || return 1
	_apart=''
	for task in "/proc/$2/task"/*; do
		_has_userfaultfd "$task" || _apart+="${task##*/} "
	done
	[ "$_apart" = "$before" ] && [ "$(wc -w <<<"$_apart")" -eq "$1" ]
}

_as_before() { [ "$(outside "$1")" = "$2" ]; }

# untouched PID BEFORE: nothing of a snapshot is left in the process.
untouched() {
	local i
	for i in 1 2 3 4 5 6 7 8 9 10; do
		if _as_before "$1" "$2"; then
			return 0
		fi
		sleep 0.1
	done
	diff <(echo "$2") <(outside "$1") >untouched.diff || true
	fail "something is left in the process: $(cat untouched.diff)"
}

# no_image DIRECTORY: empty, hidden files included.
no_image() { same "files in '$1'" "$(ls -A "$1")" ''; }

# cut N WHAT SIZE [ARG]...: snapshots in a row of a workload with these options,
# each consistent. They are looked at when it has ended: what a thread waits for
# is a snapshot then, and not a check that takes the processors.
cut() {
	local n=$1 what=$2 size=$3 i torn=0 held=0 pauses=()
	shift 3
	work_start --size "$size" --signals --sleepers "$@"
	work_watch
	for ((i = 0; i < n; i++)); do
		usnap snapshot -q "$work_pid" -o "cut.$i.usnap" || fail "$what: snapshot $i"
	done
	work_end
	for ((i = 0; i < n; i++)); do
		consistent "cut.$i.usnap"
		pauses+=("$(stat_of "cut.$i.usnap" pause_ns)")
		torn=$((torn + $(stat_of "cut.$i.usnap" torn)))
		[ "$(stat_of "cut.$i.usnap" held)" = false ] || held=$((held + 1))
		rm "cut.$i.usnap"
	done
	printf '%-16s %d snapshots, median pause %d us, %d torn attempts, %d held\n' "$what" "$n" \
		$(($(printf '%s\n' "${pauses[@]}" | sort -n | sed -n "$((n / 2 + 1))p") / 1000)) \
		"$torn" "$held"
}

#!/bin/bash
# What cannot be taken is refused by the name of the cause, and is not touched.
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

mkdir to

# refused CODE TEXT PID [COMMAND]...: of a snapshot of PID, by COMMAND if given.
refused() {
	local code=$1 text=$2 pid=$3 before=''
	shift 3
	[ ! -e "/proc/$pid/smaps" ] || before=$(outside "$pid")
	exits "$code" "$@" "$UFFD_SNAP" snapshot "$pid" -o to/x.usnap
	says err 'uffd-snap: cannot '
	grep -qiE -- "$text" err || fail "not in the message, '$text': $(cat err)"
	[ -z "$before" ] || untouched "$pid" "$before"
	no_image to
}

hinted() { says err 'hint: '; }

# No such process: one that has just ended.
sh -c 'exit 0' &
gone=$!
wait $gone
refused 1 'no such process' $gone
refused 1 "none fits name" nonsense
exits 2 usnap snapshot 0 -o to/x.usnap
exits 2 usnap snapshot -o to/x.usnap
exits 2 usnap snapshot 1 2 -o to/x.usnap

kernel=''
for p in /proc/[0-9]*; do
	if grep -qs '^Kthread:.1' "$p/status"; then
		kernel=${p#/proc/}
		break
	fi
done
[ -z "$kernel" ] || refused 1 'kernel thread' "$kernel"

start_workload oddproc zombie
refused 1 'zombie|ended' "$(sed -n 's/^pid //p' oddproc.out)"

# Itself: the shell becomes the command.
got=0
# shellcheck disable=SC2016 # that shell's
sh -c 'exec "$UFFD_SNAP" snapshot $$ -o to/x.usnap' 2>err || got=$?
same 'exit status of itself' $got 1
grep -qiE 'itself|this very command' err || fail "$(cat err)"
no_image to

start_workload oddproc quiet
pid=$started

# 32-bit.
echo 'int pause(void); int main(void) { for (;;) pause(); }' >small.c
if gcc -m32 -o small32 small.c 2>/dev/null; then
	start ./small32
	sleep 0.2
	refused 1 '32' "$started"
fi

# Traced.
if command -v gdb >/dev/null; then
	trace() {
		rm -f attached
		start gdb -nx -batch -p "$pid" -ex 'shell touch attached' -ex 'shell sleep 1000'
		gdb=$started
		wait_until 20 test -e attached
	}
	# gdb waits for its shell: both have to go.
	trace_no_more() {
		pkill -KILL -P "$gdb" 2>/dev/null || true
		kill -KILL "$gdb" 2>/dev/null || true
		wait "$gdb" 2>/dev/null || true
	}
	trace
	exits 1 usnap snapshot "$pid" -o to/x.usnap
	says err gdb
	hinted
	no_image to
	same tracer "$(sed -n 's/^TracerPid:\t//p' "/proc/$pid/status")" "$gdb"
	trace_no_more

	# Since it was looked at.
	start "${gdb_snapshot[@]}" -ex 'break tracees_seize' -ex run \
		-ex 'shell touch looked; while [ ! -e go ]; do sleep 0.02; done' -ex 'delete 1' -ex continue \
		--args "$UFFD_SNAP" snapshot "$pid" -o to/x.usnap
	snapshot=$started
	log=$started_log
	wait_until 60 test -e looked
	trace
	touch go
	wait "$snapshot" || true
	trace_no_more
	grep -qF "it is being traced by gdb (pid $gdb)" "$log" || fail "$(cat "$log")"
	no_image to
fi

start_workload oddproc uffd
before=$(outside "$started")
exits 1 usnap snapshot "$started" -o to/x.usnap
says err userfaultfd
untouched "$started" "$before"
no_image to

# Somebody else writes to its memory, and does not stop with it.
start_workload oddproc sharer
sharer=$(sed -n 's/^pid //p' oddproc.out)
before=$(outside "$started")
for args in '' --no-hold --kill; do
	# shellcheck disable=SC2086 # an option or nothing
	exits 1 usnap snapshot $args "$started" -o to/x.usnap
	says err "process $sharer (oddproc) shares its memory"
	hinted
	untouched "$started" "$before"
	no_image to
done
# Both see it: also from the other side.
exits 1 usnap snapshot "$sharer" -o to/x.usnap
says err "process $started (oddproc) shares its memory"
kill -KILL "$sharer"
wait_until 20 sh -c "grep -q '^State:.Z' /proc/$sharer/status || [ ! -e /proc/$sharer ]"
exits 0 usnap snapshot -q "$started" -o alone.usnap

# As somebody who may not.
if [ "$(id -u)" -eq 0 ] && command -v setpriv >/dev/null; then
	open=$(mktemp -d /tmp/uffd-snap-open.XXXXXX)
	chmod 777 "$open"
	install -m 755 "$UFFD_SNAP" "$open/uffd-snap"
	for args in '' '--no-hold'; do
		got=0
		# shellcheck disable=SC2086 # an option or nothing
		setpriv --reuid=65534 --regid=65534 --clear-groups "$open/uffd-snap" snapshot $args \
			"$pid" -o "$open/x.usnap" >out 2>err || got=$?
		same 'exit status without permission' $got 1
		grep -qi 'not permitted\|permission' err || fail "$(cat err)"
		hinted
	done
	same 'files of nobody' "$(ls -A "$open")" uffd-snap
	rm -r "$open"
fi

# Two at a time: the first one wins, and is not disturbed.
work_start --size 64M
before=$(outside "$work_pid")
_registered() { grep -qE '^VmFlags.* (um|uw)( |$)' "/proc/$work_pid/smaps"; }
# Slow enough to be met at its work: writers would save their pages faster than any rate.
halt "$work_pid"
"$UFFD_SNAP" snapshot -q --rate 16M "$work_pid" -o first.usnap 2>first.err &
first=$!
adopt $first
wait_until 20 _registered
kill -STOP $first
kill -CONT "$work_pid"
exits 1 usnap snapshot "$work_pid" -o to/x.usnap
says err 'cannot '
grep -qE "it is being taken by process $first\$" err || fail "$(cat err)"
hinted
no_image to
exits 0 usnap snapshot -q "$work_pid" -o to/x.usnap --skip-if-busy --on-failure 'touch told'
same 'output of a skipped run' "$(cat out err)" ''
[ ! -e told ] || fail 'a skipped run was told of'
no_image to
# The first one, between its lock and its name in the file; and one that has no list.
taken=$(find /run/uffd-snap "${XDG_RUNTIME_DIR:-/nonexistent}/uffd-snap" "/tmp/uffd-snap-$(id -u)" \
	-name "taken-$work_pid-*" 2>/dev/null || true)
[ -f "$taken" ] || fail "the first snapshot is listed here: '$taken'"
: >"$taken"
exits 1 usnap snapshot "$work_pid" -o to/x.usnap
says err 'it is being taken by another snapshot'
hinted
exits 0 usnap snapshot -q "$work_pid" -o to/x.usnap --skip-if-busy
no_image to
rm "$taken"
exits 1 usnap snapshot "$work_pid" -o to/x.usnap
grep -qE "another snapshot of it is running|it is being traced by uffd-snap \(pid $first\)" err ||
	fail "$(cat err)"
no_image to
kill -CONT $first
wait $first || fail "the first snapshot suffered: $(cat first.err)"
consistent first.usnap
untouched "$work_pid" "$before"

# Where nothing can be written.
mkdir dir
for where in /nonexistent/x.usnap dir /proc/x.usnap ''; do
	got=0
	usnap snapshot "$work_pid" -o "$where" >out 2>err || got=$?
	[ $got -eq 1 ] || [ $got -eq 2 ] || fail "exit status $got for output '$where'"
	[ -s err ] || fail "nothing said about '$where'"
	untouched "$work_pid" "$before"
done
same 'files in dir' "$(ls -A dir)" ''
[ -z "$(ls -A .)" ] || ls -A >listing
! grep -q '\.part' listing || fail "something is left: $(cat listing)"
work_over

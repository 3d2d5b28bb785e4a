#!/bin/bash
# A full disk, a closed or broken output: the cause is named, no image is left, the process runs on untouched.
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

mkdir to
work_start --size 96M --signals --sleepers
before=$(outside "$work_pid")
threads=$(threads_of "$work_pid")

after() {
	untouched "$work_pid" "$before"
	same threads "$(threads_of "$work_pid")" "$threads"
	no_image to
}

# A limit on file size, at several places.
for kib in 1 64 1024 2048; do
	got=0
	(
		trap '' XFSZ
		ulimit -f $kib
		exec "$UFFD_SNAP" snapshot -q "$work_pid" -o to/x.usnap
	) 2>err || got=$?
	same "exit status under a limit of $kib KiB" $got 1
	says err 'cannot write'
	says err 'File too large'
	after
done

# A full disk. An older image of the name stays what it was.
if [ "$(id -u)" -eq 0 ] && unshare -m true 2>/dev/null; then
	cat >full.sh <<-'END'
		mount -t tmpfs -o size=1m none to || exit 99
		echo old >to/x.usnap
		"$UFFD_SNAP" snapshot -q "$1" -o to/x.usnap
		echo $? >status
		ls -A to >left
		cp to/x.usnap old
	END
	got=0
	unshare -m bash full.sh "$work_pid" 2>err || got=$?
	if [ $got -ne 99 ]; then
		same 'exit status on a full disk' "$(cat status)" 1
		says err 'cannot write'
		says err 'No space left on device'
		same 'files left' "$(cat left)" x.usnap
		same 'the older image' "$(cat old)" old
	fi
	after
fi

got=0
usnap snapshot -q "$work_pid" -o - >/dev/full 2>err || got=$?
same 'exit status on /dev/full' $got 1
says err 'No space left on device'
after

got=0
usnap snapshot "$work_pid" -o full.usnap >/dev/full 2>err || got=$?
same 'exit status when nobody can be told' $got 1
says err "image 'full.usnap' is complete, though nobody was told"
says err 'No space left on device'
usnap verify -q full.usnap
rm full.usnap
after

# The summary is no part of the image, whatever the pipe is called.
usnap snapshot "$work_pid" -o /dev/stdout 2>err | cat >pipe.usnap
usnap verify -q pipe.usnap
says err 'of memory in'
rm pipe.usnap
after

# Closed from the start, and in the middle.
got=0
usnap snapshot -q "$work_pid" -o - >&- 2>err || got=$?
same 'exit status on a closed stdout' $got 1
says err 'cannot '
after
for bytes in 0 100 100000 2000000; do
	got=0
	{
		usnap snapshot -q "$work_pid" -o - 2>err || got=$?
		echo $got >status
	} | head -c $bytes >part.usnap
	[ "$(cat status)" -ne 0 ] || fail "a broken pipe went unnoticed after $bytes bytes"
	[ "$(cat status)" -ne 1 ] || says err 'cannot write'
	! usnap verify -q part.usnap 2>/dev/null || fail "half an image is taken for one"
	after
done

# One that nobody reads: given up when it is time, or when somebody wants it.
mkfifo stalled
exec 8<>stalled
got=0
timeout 60 "$UFFD_SNAP" snapshot -q --timeout 2 "$work_pid" -o - >stalled 2>err || got=$?
same 'exit status with an output that stalls' $got 1
says err 'not done within 2 s'
after
exec 8<&-

# With nothing open at all: an image or none, and harmless.
for quiet in -q ''; do
	# shellcheck disable=SC2086 # an option or nothing
	usnap snapshot $quiet "$work_pid" -o to/x.usnap <&- >&- 2>&- || true
	if [ -e to/x.usnap ]; then
		consistent to/x.usnap
		rm to/x.usnap
	fi
	after
done
work_end

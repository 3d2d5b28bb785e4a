#!/bin/bash
# An output that accepts nothing: the image does not wait for the disk, and nobody for what SIGKILL leaves of a snapshot.
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

need gcc python3
cat >stuck.c <<-'END'
	#define _GNU_SOURCE
	#include <fcntl.h>
	#include <unistd.h>

	int sync_file_range(int fd, off64_t offset, off64_t len, unsigned flags)
	{
		(void)fd, (void)offset, (void)len, (void)flags;
		close(open("asked", O_WRONLY | O_CREAT, 0600));
		while (access("go", F_OK))
			usleep(10000);
		return 0;
	}
END
gcc -shared -fPIC -O2 -Wall -Werror stuck.c -o stuck.so
# More than all buffers hold, and not to be compressed.
start python3 -c 'import os, time
x = [os.urandom(1 << 20) for i in range(64)]
print("ready", flush=True)
time.sleep(1000)'
# shellcheck disable=SC2154 # lib.sh
pid=$started
wait_until 60 grep -q ready "$started_log"
before=$(outside "$pid")
mkdir to

after() {
	untouched "$pid" "$before"
	no_image to
}

LD_PRELOAD=$PWD/stuck.so "$UFFD_SNAP" snapshot -q --memory 8M "$pid" -o to/x.usnap 2>err &
snapshotter=$!
adopt $snapshotter
wait_until 60 test -e to/x.usnap
untouched "$pid" "$before"
[ -e asked ] || fail 'nothing was sent to the disk early'
touch go
wait $snapshotter || fail "snapshot: $(cat err)"
usnap verify -q to/x.usnap
rm to/x.usnap go

# killed_while THREADS COMMAND...: so many threads of the snapshot may stay beyond SIGKILL. They have
# nothing that the process waits for, nor what somebody else does who started it.
killed_while() {
	local nr=$1 task fd
	shift
	"$@" 2>err &
	snapshotter=$!
	adopt $snapshotter
	wait_until 20 apart_are "$nr" $snapshotter
	for task in $_apart; do
		for fd in 0 2; do
			same "descriptor $fd of thread $task" "$(readlink "/proc/$snapshotter/task/$task/fd/$fd")" /dev/null
		done
	done
	kill -KILL $snapshotter
	wait $snapshotter || true
	after
}

# The one that writes, and the one that sends on to the disk.
killed_while 2 env LD_PRELOAD="$PWD/stuck.so" "$UFFD_SNAP" snapshot -q --memory 8M --rate 4M "$pid" -o to/x.usnap
mkfifo blocked
exec 8<>blocked
to_blocked() { exec "$UFFD_SNAP" snapshot -q --memory 8M "$pid" -o - >blocked 8<&-; }
killed_while 1 to_blocked
exec 8<&-

#!/bin/bash
# A disk that accepts nothing for now: neither the process nor the image waits for that.
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
LD_PRELOAD=$PWD/stuck.so "$UFFD_SNAP" snapshot -q --memory 8M "$pid" -o to/x.usnap 2>err &
snapshotter=$!
adopt $snapshotter
wait_until 60 test -e to/x.usnap
untouched "$pid" "$before"
kill -0 $snapshotter || fail 'nothing was sent to the disk early'
touch go
wait $snapshotter || fail "snapshot: $(cat err)"
usnap verify -q to/x.usnap
rm to/x.usnap go

# The thread that sends, too, may stay beyond SIGKILL: it has nothing that the process waits for.
LD_PRELOAD=$PWD/stuck.so "$UFFD_SNAP" snapshot -q --memory 8M --rate 4M "$pid" -o to/x.usnap &
snapshotter=$!
adopt $snapshotter
wait_until 20 apart_are 2 "$snapshotter"
kill -KILL $snapshotter
wait $snapshotter || true
untouched "$pid" "$before"
no_image to

#!/bin/bash
# The size of a core file follows what is populated, also through a pipe; wrong use is refused.
. "$(dirname "$0")/../lib.sh"

need gdb

start_workload coredemo sparse
usnap snapshot -q -o demo.usnap "$started"

usnap core -q -o ours.core demo.usnap >out 2>err
same "said with -q" "$(cat out err)" ""
[ "$(stat -c %b ours.core)" -lt 20480 ] || fail "more than 10 MiB on disk: $(ls -ls ours.core)"

usnap core -o - demo.usnap 2>err | cat >piped.core
[ ! -s err ] || fail "a message beside the stream: $(cat err)"
[ "$(stat -c %s piped.core)" -lt 20971520 ] || fail "more than 20 MiB piped: $(ls -l piped.core)"

for core in ours.core piped.core; do
	gdb -nx -batch -ex 'print demo_sparse[0]' -ex 'print demo_sparse[549755813893]' \
		-ex 'print demo_sparse[1099511627775]' -ex 'print demo_sparse[1000000000]' \
		-ex 'print demo_sparse[700000000000]' "$WORKLOADS/coredemo" $core >gdb.out 2>&1
	same "$core" "$(grep '^\$' gdb.out | cut -d' ' -f3 | tr '\n' ' ')" "1 2 3 0 0 "
done

# Wrong use: the message names the cause, nothing is written.
exits 2 usnap core
says err 'no image given'
exits 2 usnap core a b
exits 2 usnap core --frobnicate demo.usnap
says err "unknown option '--frobnicate'"
exits 1 usnap core missing.usnap
says err missing.usnap
exits 1 usnap core -o demo.usnap demo.usnap
says err 'it is the image itself'
exits 1 usnap core -o missing/x.core demo.usnap
says err missing
exits 1 usnap core -o /dev/full demo.usnap
says err "cannot write '/dev/full': No space left on device"

# Damage: exit status 3, and no core file.
size=$(stat -c %s demo.usnap)
cp demo.usnap bad.usnap
offset=$(grep -obUaP '\x28\xb5\x2f\xfd' demo.usnap | head -n 1 | cut -d: -f1)
[ "$offset" -lt "$size" ]
printf '\377\377\377\377' | dd of=bad.usnap bs=1 seek=$((offset + 40)) conv=notrunc status=none
exits 3 usnap core -o bad.core bad.usnap
[ ! -e bad.core ] || fail "a core file of a damaged image"
same "left over" "$(find . -name '.*.part*')" ""

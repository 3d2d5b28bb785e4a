#!/bin/bash
# tests/golden/make.sh DIR: golden images by build/uffd-snap, for a format version that has none.
#
# Makes DIR/full.usnap, DIR/child.usnap, which continues it, and three that say to be of a newer
# format. Once committed they are never made again: that today's images can be read is shown by
# every other test.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
usnap=$(realpath "${B:-$here/../../build}/uffd-snap")
out=$(realpath "$1")
dir=$(mktemp -d /tmp/golden.XXXXXX)
trap 'rm -rf "$dir"' EXIT
cd "$dir"

gcc -O1 -static -no-pie -pthread -o golden "$here/golden.c"
gcc -O1 -D_GNU_SOURCE -I"$here/../../src" -o renumber "$here/renumber.c" -lxxhash -lzstd
mkfifo in
# In nobody's environment, on nobody's machine, without what we have inherited.
cat >steps <<'STEPS'
hostname golden
for fd in /proc/self/fd/*; do
	fd=${fd##*/}
	[ "$fd" -lt 3 ] || [ "$fd" -eq 255 ] || eval "exec $fd>&-"
done
exec 3<>in
env -i ./golden <&3 >out 2>&1 3>&- &
wait_for() { until grep -q "$1" out; do sleep 0.1; done; }
wait_for first
"$1" snapshot -q $! --level 19 -o full.usnap
echo >&3
wait_for second
"$1" snapshot -q $! --level 19 --parent full.usnap -o child.usnap
echo >&3
wait
STEPS
setsid unshare --uts bash -eu steps "$usnap"
for member in snapshot.json index.zst commit.json; do
	./renumber full.usnap "$member" 9 >"newer-${member%.*}.usnap"
done
mkdir -p "$out"
mv -- *.usnap "$out"

#!/bin/bash
# On a full disk snapshot, merge, prune and push lose nothing, say how much room was needed, and go on when there is some.
# timeout: 120
# What is mounted goes with the namespace.
if [ -z "${OWN_MOUNTS:-}" ]; then
	unshare -m true 2>/dev/null || {
		echo 'needs to mount file systems'
		exit 77
	}
	OWN_MOUNTS=1 exec unshare -m bash "$0"
fi
. "$(dirname "$0")/../lib.sh"
need jq rclone

start_workload pagechange $((8 << 20))
echo 3000 >share
_said() { [ -s digest ]; }
change() {
	rm -f digest
	kill -USR1 "$1"
	wait_until 60 _said
}
pid=$started

mkdir small remote
mount -t tmpfs -o size=11m,mode=700 none small
mount -t tmpfs -o size=1m,mode=700 none remote
export UFFD_SNAP_STORE=$PWD/small/store RCLONE_CONFIG=$PWD/rclone.conf TZ=UTC
printf '[r]\ntype = local\n' >rclone.conf
whole() {
	exits 0 usnap verify -q --all
	usnap list --json | jq -e 'all(.images[]; .readable and (has("missing") | not))' >/dev/null ||
		fail "after '$1' an image is incomplete"
}
left() { find small -name '.*.part'; }
sums() { (cd small/store/p && sha256sum ./*-*.usnap); }

# Until there is no room for another full one.
exits 0 usnap snapshot -q "$pid" --name p
exits 0 usnap snapshot -q "$pid" --name p --full-every 1
before=$(sums)
fallocate -l "$(($(df --output=avail -B1 small | tail -n 1) - (2 << 20)))" small/other
exits 1 usnap snapshot -q "$pid" --name p --full-every 1
says err 'No space left on device'
says err 'all of it needs about'
same 'after a snapshot, left over' "$(left)" ''
same 'images' "$(sums)" "$before"
whole snapshot

# Increments are small; what merges them is not.
for _ in 1 2 3; do
	change "$pid"
	exits 0 usnap snapshot -q "$pid" --name p
done
fallocate -l "$(($(df --output=avail -B1 small | tail -n 1) - (1 << 20)))" small/more
exits 1 usnap merge -q p -o small/merged.usnap
says err 'No space left on device'
says err 'merging needs up to'
[ ! -e small/merged.usnap ] || fail 'half a merged image'
# What nothing refers to goes at once, and gives room.
exits 0 usnap prune -q --keep-last 4
fallocate -l "$(($(df --output=avail -B1 small | tail -n 1) - (1 << 20)))" small/most
before=$(sums)
exits 1 usnap prune -q --merge --keep-last 2
says err 'No space left on device'
says err 'merging needs up to'
same 'after a prune, left over' "$(left)" ''
same 'images after a prune' "$(sums)" "$before"
whole prune

exits 1 usnap push -q p r:"$PWD/remote"
says err space
says err 'what is missing there needs'
whole push

# With room, all goes on.
rm small/other small/more small/most
exits 0 usnap snapshot -q "$pid" --name p
exits 0 usnap prune -q --merge --keep-last 2
same 'images' "$(usnap list --json p | jq '.images | length')" 2
whole 'room again'
mount -o remount,size=100m remote
exits 0 usnap push -q p r:"$PWD/remote"
for f in small/store/p/*-*.usnap; do
	cmp "$f" "remote/$(cd remote && find . -name "${f##*/}")"
done
same 'left over' "$(left)$(find remote -name '*.part*')" ''

#!/bin/bash
# An ordinary user who may open /dev/userfaultfd snapshots, restores and supervises a redis-server of his own.
# timeout: 120
[ -n "${PRIVATE_DEV:-}" ] || [ "$(id -u)" -ne 0 ] || exec env PRIVATE_DEV=1 unshare -m --propagation private "$0"
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"
. "$TESTS/lib-restore.sh"
. "$TESTS/lib-agent.sh"
. "$TESTS/lib-programs.sh"
. "$TESTS/lib-recipe.sh"

need redis-server redis-cli jq setpriv setfacl setcap
[ "$(id -u)" -eq 0 ] || skip 'only root can become another user'
[ -e /dev/userfaultfd ] || skip 'there is no /dev/userfaultfd'

# A device of the test's own in place of the real one, and what another user can reach.
place=$(mktemp -d /var/tmp/usnap-test.XXXXXX)
on_exit 'umount -l "$place/dev" /dev/userfaultfd 2>/dev/null; rm -rf "$place"'
chmod 755 "$place"
mkdir "$place/dev" "$place/bin"
mount -t tmpfs -o mode=755 none "$place/dev"
mknod -m 600 "$place/dev/userfaultfd" c $((0x$(stat -c %t /dev/userfaultfd))) $((0x$(stat -c %T /dev/userfaultfd)))
mount --bind "$place/dev/userfaultfd" /dev/userfaultfd
cp "$UFFD_SNAP" "$place/bin/uffd-snap"
cp "$AGENT" "$place/bin"
chmod 755 "$place"/bin/*
UFFD_SNAP=$place/bin/uffd-snap
AGENT=$place/bin/$(basename "$AGENT")

uid=54325
for d in home run work; do
	mkdir -m 700 "$place/$d"
	chown $uid:$uid "$place/$d"
done
cd "$place/work"
as=(setpriv --reuid "$uid" --regid "$uid" --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs
	env HOME="$place/home" XDG_RUNTIME_DIR="$place/run" XDG_STATE_HOME="$place/home")
user() { "${as[@]}" "$@"; }
user "$UFFD_SNAP" --version >/dev/null 2>&1 || skip "another user cannot reach $place"
user unshare --user --map-current-user --pid --fork --mount-proc true 2>/dev/null ||
	skip 'no user namespaces for ordinary users here'
# What runs as that user writes into files of that user.
touch redis.log begin.pid out err
chown $uid redis.log begin.pid out err

sock=$place/work/s
rcli() { timeout 10 redis-cli -s "$sock" "$@"; }
options=(--port 0 --unixsocket "$sock" --save '' --appendonly no --dir "$place/work" --enable-debug-command yes)

# ---- a snapshot, an increment, a restore ------------------------------------------------

begin redis "${as[@]}" redis-server "${options[@]}"
wait_until 20 rcli ping
same 'user of the server' "$(stat -c %u "/proc/$pid")" $uid

if [ "$(cat /proc/sys/vm/unprivileged_userfaultfd)" = 0 ]; then
	exits 1 user "$UFFD_SNAP" check "$pid"
	says out 'setfacl -m u:USER:r /dev/userfaultfd'
	exits 1 user "$UFFD_SNAP" snapshot -q "$pid" -o no.usnap
	says err '/dev/userfaultfd'
fi
setfacl -m u:$uid:r /dev/userfaultfd
exits 0 user "$UFFD_SNAP" check "$pid"
says out 'a snapshot of this process can work'

redis_fill 20000 100
user "$UFFD_SNAP" snapshot -q "$pid" -o full.usnap
rcli set after full >/dev/null
before=$(rcli debug digest)
user "$UFFD_SNAP" snapshot -q --kill "$pid" -o more.usnap --parent full.usnap
killed "$pid"
same 'owner of the image' "$(stat -c '%u %a' more.usnap)" "$uid 600"
[ "$(stat -c %s more.usnap)" -lt "$(stat -c %s full.usnap)" ] || fail 'the second image is no increment'
user "$UFFD_SNAP" verify -q more.usnap
pid=$(user "$UFFD_SNAP" restore -q --detach more.usnap 2>restore.err) || fail "restore: $(cat restore.err)"
adopt "$pid"
wait_until 20 rcli ping
same 'digest after the restore' "$(rcli debug digest)" "$before"
same 'user of the restored server' "$(stat -c %u "/proc/$pid")" $uid
same 'its capabilities outside' "$(user cat "/proc/$pid/status" | sed -n 's/^CapEff:\t//p')" 0000000000000000
# What was restored can be taken again.
user "$UFFD_SNAP" snapshot -q "$pid" -o again.usnap
user "$UFFD_SNAP" verify -q again.usnap
kill -KILL "$pid"
killed "$pid"
rm -f ./*.usnap "$sock"

# ---- by itself: nobody but the server asks for an image --------------------------------------

begin redis "${as[@]}" LD_PRELOAD="$AGENT" UFFD_SNAP_NAME=self UFFD_SNAP_EVERY=1s UFFD_SNAP_STORE="$place/work/store" \
	redis-server "${options[@]}"
wait_until 20 rcli ping
rcli set by itself >/dev/null
imaged self
kill -KILL "$pid"
killed "$pid"
pid=$(user "$UFFD_SNAP" restore -q --detach --store "$place/work/store" self 2>restore.err) ||
	fail "restore: $(cat restore.err)"
adopt "$pid"
wait_until 20 rcli ping
same 'a key of the server that took itself' "$(rcli get by)" itself
kill -KILL "$pid"
killed "$pid"
rm -f "$sock"

# ---- supervised -----------------------------------------------------------------------------

: >redis.log
recipe redis-server.service.conf "s|/etc/redis/redis.conf .*||"
recipe+=("${options[@]}")
up redis "${as[@]}"
wait_until 20 rcli ping
pid=$(server redis-server)
agent_in "$pid" || fail 'the agent is not in the server'
redis_fill 20000 100
for ((g = 1; g <= $(times 2 10); g++)); do
	rcli set generation $g >/dev/null
	before=$(rcli debug digest)
	imaged redis
	crash redis-server
	up redis "${as[@]}"
	wait_until 30 rcli ping
	same "digest of generation $g" "$(rcli debug digest)" "$before"
	same "user in generation $g" "$(stat -c %u "/proc/$(server redis-server)")" $uid
done
same 'starts of the server' "$(grep -ci 'ready to accept' redis.log)" 1
user "$UFFD_SNAP" ps --json >ps.json
jq -e '[.. | objects | select(.name? == "redis")] | length > 0' ps.json >/dev/null || fail "ps: $(cat ps.json)"
down redis-server

# ---- file capabilities ------------------------------------------------------------------------

setfacl -b /dev/userfaultfd
install -m 755 "$UFFD_SNAP" "$place/bin/uffd-snap-all"
caps=$(sed -n 's/^setcap \([a-z_,+]*\) .*/\1/p' "$TOP/man/uffd-snap-agent.7")
setcap "$caps" "$place/bin/uffd-snap-all"
as=(setpriv --reuid "$uid" --regid "$uid" --clear-groups)
if user "$place/bin/uffd-snap-all" --version >/dev/null 2>&1; then
	start setpriv --reuid 54326 --regid 54326 --clear-groups "$WORKLOADS/witness"
	wait_until 20 grep -q ready "$started_log"
	exits 0 user "$place/bin/uffd-snap-all" check "$started"
	user "$place/bin/uffd-snap-all" snapshot -q "$started" -o theirs.usnap
	usnap verify -q theirs.usnap
	same 'owner of the image' "$(stat -c %u theirs.usnap)" $uid
	# The command's own files in /proc belong to root. What it restores has none of its rights.
	touch own.log own.err
	chown $uid own.log own.err
	begin own "${as[@]}" "$WORKLOADS/witness"
	wait_until 20 grep -q ready own.log
	user "$place/bin/uffd-snap-all" snapshot -q --kill "$pid" -o own.usnap
	killed "$pid"
	for how in --same-pid --pid-namespace; do
		pid=$(user "$place/bin/uffd-snap-all" restore -q --detach $how own.usnap 2>restore.err) ||
			fail "restore $how: $(cat restore.err)"
		adopt "$pid"
		same "its capabilities, $how" "$(sed -n 's/^Cap\(Prm\|Eff\|Inh\|Amb\):\t//p' "/proc/$pid/status" | sort -u)" 0000000000000000
		kill -KILL "$pid"
		killed "$pid"
	done
else
	echo 'file capabilities have no effect here'
fi

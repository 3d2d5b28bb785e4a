#!/bin/bash
# A real cron daemon takes and prunes snapshots with the lines of the example, and so does what the systemd service runs.
# timeout: 200
# waits: yes
. "$(dirname "$0")/../lib.sh"

[ "$(id -u)" -eq 0 ] || skip 'cron needs root'
need cron unshare setpriv redis-server jq
unshare -m true 2>/dev/null || skip 'no mount namespace can be made'

cp "$WORKLOADS/witness" ./usnapcron
./usnapcron >ready 2>&1 &
pid=$!
adopt $pid
wait_until 10 grep -q ready ready
export UFFD_SNAP_STORE=$PWD/store

# --- cron -----------------------------------------------------------------------

# The example's lines, each minute, with this store: the command is where they expect it.
sed -e "s|^UFFD_SNAP_STORE=.*|UFFD_SNAP_STORE=$PWD/store|" -e 's|^\*/5 |* |' -e 's|^2 \* |* * |' \
	"$TOP/scripts/examples/uffd-snap.cron" >lines.cron
grep -c /usr/local/bin/uffd-snap lines.cron | grep -qx 3 || fail 'the example has other lines than expected'
# Takes mail for what is printed.
printf '#!/bin/sh\ncat >>%q/mail\n' "$PWD" >sendmail
chmod 755 sendmail
cat >under <<END
set -e
mount --make-rprivate /
for d in /etc/cron.d /etc/cron.hourly /etc/cron.daily /etc/cron.weekly /etc/cron.monthly /var/spool/cron /run \
	/usr/local/bin; do
	[ ! -d \$d ] || mount -t tmpfs none \$d
done
mkdir -p /var/spool/cron/crontabs
: >empty
[ ! -e /etc/crontab ] || mount --bind empty /etc/crontab
[ ! -e /usr/sbin/sendmail ] || mount --bind sendmail /usr/sbin/sendmail
install -m 644 lines.cron /etc/cron.d/uffd-snap
install -m 755 "$UFFD_SNAP" /usr/local/bin/uffd-snap
/usr/bin/redis-server --port 0 --unixsocket $PWD/r.sock --save '' --dir $PWD >redis.log 2>&1 </dev/null &
exec cron -f
END
# Both lines come in the same minute here: there is something to be pruned.
usnap snapshot -q --exe "$PWD/usnapcron" --name redis
# The only redis-server is ours there.
start unshare -m -p --fork --kill-child=KILL --mount-proc bash under
cron_pid=$started
taken() { [ "$(usnap list -q redis | wc -l)" -eq 2 ]; }
wait_until 90 taken
kill -0 $cron_pid || fail "cron ended: $(cat "$started_log")"
kill -KILL $cron_pid
wait $cron_pid || true
[ ! -s mail ] || fail "cron had something to tell: $(cat mail)"
usnap verify -q redis
exits 0 usnap list redis
says out ' full '
exits 0 usnap info --json redis
same 'process taken' "$(jq -r .process.comm out)" redis-server

# --- systemd ------------------------------------------------------------------------

# Its variables and the lines it runs, as it would expand them, with its capabilities.
unit="$TOP/scripts/examples/uffd-snap@.service"
caps=$(sed -n 's/^CapabilityBoundingSet=//p' "$unit" | tr A-Z a-z | sed 's/cap_/+/g; s/ /,/g')
sed -n 's/^Environment=//p' "$unit" | sed 's/^"\(.*\)"$/\1/' >variables
UFFD_SNAP_OPTIONS=$(sed -n 's/^UFFD_SNAP_OPTIONS=//p' variables)
UFFD_SNAP_KEEP=$(sed -n 's/^UFFD_SNAP_KEEP=//p' variables)
sed -n 's/^ExecStart=//p' "$unit" >lines
same 'lines of the service' "$(wc -l <lines)" 2
# An instance of a unit, in its control group, and under a filter as that of Debian's Redis.
instance=usnapcron@my.$$
group=''
for d in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
	mkdir "$d/$instance.service" 2>/dev/null || continue
	group=$d/$instance.service
	[ ! -e "$group/cgroup.procs" ] || break
	rmdir "$group"
	group=''
done
[ -n "$group" ] || {
	[ -z "${CI:-}" ] || fail 'no control group can be made'
	skip 'no control group can be made: the service is not tested'
}
on_exit 'rmdir "$group"'
start "$WORKLOADS/underfilter" 1 membarrier "$WORKLOADS/witness"
target=$started
# shellcheck disable=SC2154 # of lib.sh
wait_until 10 grep -q ready "$started_log"
echo "$target" >"$group/cgroup.procs"
# What the service may write to, of what it needs.
mkdir -p store
read -r runtime < <(sed -n 's/^RuntimeDirectory=//p' "$unit")
mode=$(sed -n 's/^RuntimeDirectoryMode=//p' "$unit")
cat >confined <<END
set -e
mount --make-rprivate /
mkdir -p -m $mode /run/$runtime
mount --bind /run/$runtime /run/$runtime
mount --bind $PWD/store $PWD/store
mount -o remount,bind,ro /run 2>/dev/null || true
mount -o remount,bind,ro /
exec "\$@"
END
while read -r line; do
	line=${line//%i/$instance}
	line=${line/\/usr\/local\/bin\/uffd-snap/$UFFD_SNAP}
	line=${line/\$UFFD_SNAP_OPTIONS/$UFFD_SNAP_OPTIONS}
	line=${line/\$UFFD_SNAP_KEEP/$UFFD_SNAP_KEEP}
	# shellcheck disable=SC2086 # words, as systemd splits them
	exits 0 env -i UFFD_SNAP_STORE="$PWD/store" unshare -m bash confined setpriv --bounding-set "-all,$caps" --inh-caps=-all \
		--no-new-privs $line
	same "output of $line" "$(cat out err)" ''
done <lines
# As uffd-snap-ready.conf has the agent name it, and ps tells of it.
name=usnapcron-my.$$
usnap verify -q "$name"
same 'images of the unit' "$(usnap list -q "$name" | wc -l)" 1
same 'image that ps knows' "$(usnap ps --json | jq -r ".processes[] | select(.pid == $target) | .last_file")" \
	"$(readlink -f store/"$name")/$(readlink store/"$name"/latest)"
exits 0 usnap snapshot -q --unit "$instance.service" --full-every 1
exits 1 usnap snapshot -q --unit usnapcron@my
says err 'none fits'
exits 0 usnap prune -q --unit "$instance" --keep-last 1
same 'images of the unit' "$(usnap list -q "$name" | wc -l)" 1
# The environment file sets the same variables.
# shellcheck disable=SC2013 # one word a line
for v in $(sed -n 's/=.*//; /^UFFD/p' "$TOP/scripts/examples/uffd-snap.env"); do
	grep -q "\\b$v\\b" "$unit" || fail "$v is not in the service"
done
if command -v systemd-analyze >/dev/null; then
	for f in "$unit" "${unit%.service}.timer"; do
		sed "s|/usr/local/bin/uffd-snap|$UFFD_SNAP|; s|man:.*|man:uffd-snap(1)|" "$f" >"$(basename "$f")"
	done
	systemd-analyze verify './uffd-snap@.service' 2>analysis || true
	! grep -E 'Unknown|Failed to parse' analysis || fail 'systemd does not understand the unit'
fi
kill -0 $pid

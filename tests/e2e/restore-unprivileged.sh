#!/bin/bash
# An ordinary user restores an image of an own process; where that cannot be, check and restore say what is missing.
# timeout: 120
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-restore.sh"
need jq setpriv unshare
[ "$(id -u)" = 0 ] || skip "only root can become another user"

# Another user must reach all of it.
place=$(mktemp -d /var/tmp/usnap-test.XXXXXX)
on_exit 'rm -rf "$place"'
chmod 755 "$place"
install -m 755 "$UFFD_SNAP" "$place/uffd-snap"
install -m 755 "$WORKLOADS"/restore_* "$place"
uid=54321
user=(setpriv --reuid "$uid" --regid "$uid" --clear-groups)
with_groups=(setpriv --reuid "$uid" --regid "$uid" --groups "$uid,54322")
"${user[@]}" "$place/uffd-snap" --version >/dev/null 2>&1 || skip "another user cannot reach $place"
"${user[@]}" unshare --user --map-current-user --pid --fork --mount-proc true 2>/dev/null || can_not=1

# back NAME COMMAND...: a case of a workload, of that user, snapshotted by root and restored by the user.
back() {
	local program=$1 case=$2 pid
	shift 2
	mkdir "$place/$case"
	chown $uid:$uid "$place/$case"
	cd "$place/$case" || exit 1
	"$@" touch go log
	"$@" setsid -f bash -c 'echo $$ >pid && exec "$0" "$1" >>log 2>&1' "$place/$program" "$case" </dev/null
	within 10 test -s pid || fail "$case: not started"
	pid=$(cat pid)
	adopt "$pid"
	within 30 grep -q '^ready' log || fail "$case: not ready: $(cat log)"
	usnap snapshot -q --kill "$pid" -o image.usnap
	chown $uid image.usnap
	within 10 _gone "$pid" || fail "$case: the process outlived its snapshot"
	if [ -n "${can_not:-}" ]; then
		exits 1 "$@" "$place/uffd-snap" restore -q --detach image.usnap
		says err 'pid-namespace'
		cd - >/dev/null || exit 1
		return
	fi
	restored=$("$@" "$place/uffd-snap" restore -q --detach image.usnap 2>/dev/null </dev/null) ||
		fail "$case: $("$@" "$place/uffd-snap" restore --detach image.usnap 2>&1)"
	adopt "$restored"
	[[ $(sed -n 's/^NSpid:.*\t//p' "/proc/$restored/status") == "$pid" ]] || fail "$case: it is not $pid for itself"
	same "$case: user" "$(stat -c %u "/proc/$restored")" $uid
	same "$case: capabilities" "$(sed -n 's/^CapEff:\t//p' "/proc/$restored/status")" 0000000000000000
	echo go >go
	within 60 test -s result || fail "$case: no answer: $(cat log)"
	same "$case" "$(cat result)" ok
	cd - >/dev/null || exit 1
}

back restore_memory heap "${user[@]}"
back restore_memory malloc "${with_groups[@]}"
back restore_threads many-threads "${user[@]}"
listed=$("$place/restore_files" --list 2>/dev/null | awk '{print $1}') || listed=
for case in offset pipe epoll; do
	grep -qx $case <<<"$listed" && back restore_files $case "${user[@]}"
done

# check says what a restore has here, for root and for an ordinary user.
exits 0 usnap check --json
for name in 'choosing PIDs' 'PID namespaces' 'time namespaces' 'PR_SET_MM_MAP'; do
	same "$name for root" "$(jq -r --arg n "$name" '.checks[] | select(.name == $n) | .state' out)" ok
done
cd "$place" || exit 1
"${user[@]}" ./uffd-snap check --json >"$OLDPWD/out" 2>&1 || true
cd - >/dev/null || exit 1
same 'choosing PIDs for a user' "$(jq -r '.checks[] | select(.name == "choosing PIDs") | .state' out)" missing
[ -n "${can_not:-}" ] || same 'PID namespaces for a user' "$(jq -r '.checks[] | select(.name == "PID namespaces") | .state' out)" ok

# Where the system has none for ordinary users, both say so, and what to do. (Within a user
# namespace of its own the setting is ours.)
[ -z "${can_not:-}" ] || exit 0
cp "$place/heap/image.usnap" "$place/image.usnap"
chmod 644 "$place/image.usnap"
cat >none.sh <<'END'
echo 0 >/proc/sys/user/max_user_namespaces
echo 0 >/proc/sys/user/max_pid_namespaces
"$1/uffd-snap" restore --same-pid --dry-run "$1/image.usnap"
"$1/uffd-snap" restore --pid-namespace "$1/image.usnap"
END
unshare --user --map-root-user --mount bash none.sh "$place" >out 2>err </dev/null || true
says out 'the right to choose PIDs is missing'
says err 'cannot make a PID namespace'
says err max_pid_namespaces

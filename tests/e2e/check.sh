#!/bin/bash
# check says what a snapshot needs here, what is missing for an unprivileged user, and how to grant it.
# also: asan
. "$(dirname "$0")/../lib.sh"
need jq setpriv setfacl

exits 0 usnap check
says out 'a snapshot can work'
exits 0 usnap check --json
same can_snapshot "$(jq .can_snapshot out)" true
same 'required, not ok' "$(jq -c '[.checks[] | select(.required and .state != "ok") | .name]' out)" '[]'
[ "$(jq '[.checks[] | select(.without == "")] | length' out)" = 0 ] || fail "a check does not say what fails without it"

sleep 60 &
target=$!
adopt $target
wait_until 20 grep -qx sleep /proc/$target/comm
exits 0 usnap check $target
says out "process $target (sleep)"
exits 1 usnap check 2
says out 'it is a kernel thread'
exits 1 usnap check --json 999999999
same can_snapshot "$(jq .can_snapshot out)" false

# Without privileges; a sanitized build cannot be read by everybody, so a copy is used.
chmod 755 . && cp "$UFFD_SNAP" ./uffd-snap && chmod 755 ./uffd-snap
nobody=(setpriv --reuid 65534 --regid 65534 --clear-groups)
"${nobody[@]}" ./uffd-snap --version >/dev/null 2>&1 || skip "another user cannot reach $PWD"
if [ "$(cat /proc/sys/vm/unprivileged_userfaultfd)" = 0 ]; then
	exits 1 "${nobody[@]}" ./uffd-snap check
	says out 'a snapshot cannot work'
	says out 'to grant it: run as root or with CAP_SYS_PTRACE'
	exits 1 "${nobody[@]}" ./uffd-snap check $target
	says out 'it belongs to uid 0'
fi

# A process called like an attack on a terminal.
printf '#!/bin/bash\nprintf "\\033[2J" >/proc/self/comm\necho ready\nread -r _ <>fifo\n' >evil
mkfifo fifo
chmod +x evil
start ./evil
wait_until 10 grep -q ready "$started_log"
exits 0 usnap check "$started"
says_not out $'\033'
exits 0 usnap check --json "$started"
jq -e .can_snapshot out >/dev/null

#!/bin/bash
# Under the seccomp filter of a container, check names the calls to be let through, and what passes is taken and restored.
# timeout: 60
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"
. "$TESTS/lib-restore.sh"
need jq setpriv

[ "$(id -u)" -eq 0 ] || skip 'needs root'
filtered() { "$WORKLOADS/underfilter" "$@"; }
filtered 1 membarrier true || skip 'no seccomp filter can be made here'
detail() { jq -r --arg n "$1" '.checks[] | select(.name == $n) | .state + ": " + .detail' out; }
grant() { jq -r --arg n "$1" '.checks[] | select(.name == $n) | .grant' out; }

# What the default profiles refuse. docker, without capabilities of its own:
docker=1
docker_calls=userfaultfd,pidfd_getfd,kcmp,+clone3,mount,setns,unshare
exits 1 filtered $docker $docker_calls "$UFFD_SNAP" check --json
same 'of snapshots' "$(detail 'system calls of snapshots')" \
	'missing: a seccomp filter, as of a container, refuses pidfd_getfd, kcmp'
[[ $(grant 'system calls of snapshots') == *SYS_PTRACE* ]] || fail "no remedy: $(cat out)"
same 'of restores' "$(detail 'system calls of restores')" \
	'missing: a seccomp filter, as of a container, refuses clone3, unshare, setns, mount'
# podman's, with the device for the one that no capability brings:
podman_calls=userfaultfd,membarrier
exits 0 filtered 1 $podman_calls "$UFFD_SNAP" check --json
same 'of snapshots' "$(detail 'system calls of snapshots')" 'ok: all pass the seccomp filter that is in force here'
exits 0 usnap check --json
same 'without a filter' "$(detail 'system calls of snapshots')" 'ok: no seccomp filter here'

# Every call of the fragment is one that these refuse, or older profiles did.
fragment=$TOP/scripts/examples/uffd-snap-seccomp.json
for c in ${docker_calls//[,+]/ }; do
	jq -e --arg c "$c" '.syscalls[0].names | index($c)' "$fragment" >/dev/null || fail "$c is not in the fragment"
done
# Merged with a profile that has other rules for a call, it is the only one.
cat >default.json <<'END'
{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
 {"names": ["read", "kcmp"], "action": "SCMP_ACT_ALLOW"},
 {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}
END
jq --slurpfile add "$fragment" -f "$TOP/scripts/examples/uffd-snap-seccomp.jq" default.json >merged.json
same 'rules' "$(jq -c '[.syscalls[] | select(.names | index("clone3") or index("kcmp")) | .action]' merged.json)" \
	'["SCMP_ACT_ALLOW"]'
same 'the rest' "$(jq -c '.syscalls[0].names' merged.json)" '["read"]'
same 'number of rules' "$(jq '.syscalls | length' merged.json)" 2

# ---- a snapshot within -------------------------------------------------------

# inside COMMAND...: as in a container that runs a target and has COMMAND started beside it. PID in "pid".
cat >container <<'END'
"$WORKLOADS/witness" >ready 2>witness.log </dev/null &
echo $! >pid
until grep -q ready ready; do sleep 0.05; done
"$@" "$(cat pid)"
END
export WORKLOADS
inside() {
	local status=0
	rm -f pid
	"$WORKLOADS/underfilter" "$answer" "$calls" bash container "$@" >out 2>err </dev/null || status=$?
	pid=$(cat pid)
	adopt "$pid"
	return $status
}

# Its filter cannot be suspended by whoever is under one, but is known not to kill.
answer=1 calls=$podman_calls
inside "$UFFD_SNAP" snapshot -q -o in.usnap || fail "$(cat err)"
usnap verify -q in.usnap
taken=$pid
inside "$UFFD_SNAP" check --json || fail "$(cat out err)"
same 'check' "$(detail 'seccomp filters of the target')" \
	'ok: those of this container, which refuse userfaultfd, membarrier: a snapshot can do without'
usnap info --json in.usnap >info.json
tar xOf in.usnap process.json |
	jq -e '.limits_of_restore[] | select(.what == "seccomp-filter" and .severity == "note")' >/dev/null ||
	fail 'the filter is no note in the image'

# What it restores there is under the filter of whoever restores it.
kill -KILL "$pid" "$taken"
within 20 test ! -d "/proc/$taken" || fail 'the target does not end'
back=$(filtered $answer $calls "$UFFD_SNAP" restore -q --detach in.usnap 2>err) || fail "restore: $(cat err)"
adopt "$back"
same 'PID' "$(sed -n 's/^NSpid:.*\t//p' "/proc/$back/status")" "$taken"
same 'seccomp of the restored process' "$(sed -n 's/^Seccomp:\t//p' "/proc/$back/status")" 2
kill -TERM "$back"
within 20 test ! -d "/proc/$back" || fail 'the restored process does not end'

# docker's with --cap-add SYS_PTRACE.
answer=1 calls=userfaultfd,+clone3,mount,setns,unshare
inside "$UFFD_SNAP" snapshot -q -o docker.usnap || fail "$(cat err)"
usnap verify -q docker.usnap
exits 1 filtered $answer $calls "$UFFD_SNAP" restore -q --detach docker.usnap

# One that ends a process for a call of ours: not touched, and that is told.
answer=kill calls=ioprio_get
inside "$UFFD_SNAP" check --json && fail 'a filter that kills is not noticed'
[[ $(detail 'seccomp filters of the target') == 'missing: those of this container, which end a process'* ]] ||
	fail "$(cat out)"
inside "$UFFD_SNAP" snapshot -q -o killed.usnap && fail 'a snapshot under a filter that kills'
says err 'it is under a seccomp filter'
kill -0 "$pid" || fail 'the target was killed'

# One that only the target has.
cat >container <<'END'
"$WORKLOADS/underfilter" 1 membarrier "$WORKLOADS/witness" >ready 2>witness.log </dev/null &
echo $! >pid
until grep -q ready ready; do sleep 0.05; done
"$@" "$(cat pid)"
END
answer=1 calls=kcmp
inside "$UFFD_SNAP" check --json && fail 'a filter of its own is not noticed'
[[ $(detail 'seccomp filters of the target') == 'missing: there are some that this command is not under'* ]] ||
	fail "$(cat out)"
inside "$UFFD_SNAP" snapshot -q -o own.usnap && fail 'a snapshot under an unknown filter'
says err 'it is under a seccomp filter'
# From the host that is no matter.
usnap snapshot -q "$pid" -o host.usnap
exits 0 usnap check --json "$pid"
same 'from the host' "$(detail 'seccomp filters of the target')" 'ok: suspended for the calls that a snapshot makes'
kill -0 "$pid"

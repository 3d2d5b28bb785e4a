#!/bin/bash
# A restore that fails at any point leaves no process, no mount and no file, and says why; one that works brings back the right process.
# timeout: 300
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"
. "$TESTS/lib-restore.sh"
need python3 strace jq setpriv

seed=${SEED:-$RANDOM}
RANDOM=$seed
echo "seed $seed"
n=$(times 20 200)

name=victim$$
cat >victim.py <<'END'
import ctypes, hashlib, mmap, os, random, signal, socket, sys, threading, time
ctypes.CDLL(None).prctl(15, sys.argv[1].encode(), 0, 0, 0)
memory = bytearray(random.Random(1).randbytes(6 << 20))
digest = hashlib.sha256(memory).digest()
data = open("data", "r+b")
data.seek(123)
mapped = open("mapped", "r+b")
view = mmap.mmap(mapped.fileno(), 0)
listener = socket.socket(socket.AF_UNIX)
listener.bind("listener")
listener.listen(5)
inet = socket.socket()
inet.bind(("127.0.0.1", 0))
inet.listen(5)
count = [0] * 3
def work(i):
    while True:
        count[i] += 1
        time.sleep(0.01)
for i in range(3): threading.Thread(target=work, args=(i,), daemon=True).start()
def check(sig, frame):
    before = list(count)
    # As long as it takes where others want the processors.
    for i in range(100):
        time.sleep(0.1)
        if all(b > a for a, b in zip(before, count)): break
    good = (hashlib.sha256(memory).digest() == digest and data.tell() == 123
            and view[:4] == b"mapp" and listener.getsockname() == "listener"
            and all(b > a for a, b in zip(before, count)))
    with open("answer.new", "w") as f: f.write("right\n" if good else "wrong\n")
    os.rename("answer.new", "answer")
signal.signal(signal.SIGUSR1, check)
with open("ready", "w") as f: f.write("%d\n" % inet.getsockname()[1])
# Not pause(): in the instant in which a thread goes on after a stop, a signal is handled and pause() made again.
while True: time.sleep(0.05)
END
head -c 1000 /dev/zero >data
{ printf mapped; head -c 8186 /dev/zero; } >mapped
setsid python3 victim.py "$name" >log 2>&1 </dev/null &
pid=$!
adopt $pid
wait_until 20 test -s ready
port=$(cat ready)
usnap snapshot -q --kill $pid -o good.usnap
wait $pid 2>/dev/null || true
rm -f ready listener
size=$(stat -c %s good.usnap)
cp data data.orig
cp mapped mapped.orig
mkdir spare spare/tmp
export TMPDIR=$PWD/spare/tmp

# What must be as before: files with their times, mounts, processes.
listing() { find . ! -name out ! -name err ! -name trace ! -path './spare*' ! -path . -printf '%p %y %s %m\n' | sort; ls -A spare/tmp; }
mounts() { sed 's/^[0-9]* [0-9]* //' /proc/self/mountinfo | sort; }
ours() { pgrep -x "$name" || pgrep -f "restore.*$PWD/spare/image" || kill -0 "$pid" 2>&1 | grep -v 'No such'; }
_none() { [ -z "$(ours || true)" ]; }

_answered_or_gone() { [ -s answer ] || _gone "$1"; }
# answers PID: asked whether it is what it was, it has an answer; no when it dies.
answers() {
	kill -USR1 "$1" 2>/dev/null || return 1
	within 15 _answered_or_gone "$1" || fail "$what: process $1 does nothing: $(cat "/proc/$1/status")"
	[ -s answer ]
}

# outcome STATUS WHAT: of a restore with its output in "out" and "err".
good=0
outcome() {
	local status=$1 what=$2 p
	p=$(pgrep -x "$name" | head -n 1) || true
	rm -f answer
	# It may have come to life a moment before the restorer was killed; or be about to die.
	if [ -n "$p" ] && { [ "$status" -eq 0 ] || [ "$status" -ge 128 ]; } && answers "$p"; then
		same "$what: the restored process" "$(cat answer)" right
		kill -KILL "$p"
		rm -f answer listener
		good=$((good + 1))
	else
		[ "$status" -ne 0 ] || fail "$what: exit status 0, and no process"
		# Killed by a signal that it did not catch yet, or at all; 127: the program was not even loaded.
		[ "$status" -ge 127 ] || grep -q '^uffd-snap: cannot ' err ||
			fail "$what: exit status $status without a reason: $(cat err)"
	fi
	within 5 _none || fail "$what: left: $(ours; ps -o pid,ppid,stat,args -p "$(ours | head -n 1)")"
	same "$what: mounts" "$(mounts)" "$mounts_before"
	diff <(echo "$files_before") <(listing) >spare/diff || fail "$what: files (exit status $status): $(cat spare/diff; cat err)"
	rm -f spare/diff
}

# attempt WHAT COMMAND...: a restore that may fail.
attempt() {
	local what=$1 status=0
	shift
	timeout -k 5 60 "$@" >out 2>err </dev/null || status=$?
	[ $status -ne 124 ] || fail "$what: hangs"
	outcome $status "$what"
}
# must_fail WHAT TEXT COMMAND...
must_fail() {
	local what=$1 text=$2 status=0
	shift 2
	timeout -k 5 60 "$@" >out 2>err </dev/null || status=$?
	[ $status -ne 0 ] || fail "$what: did not fail"
	says err "$text"
	outcome $status "$what"
}
one_of() { local a=("$@"); echo "${a[RANDOM % ${#a[@]}]}"; }
random_below() { echo $(((RANDOM << 15 | RANDOM) % $1)); }
restore=("$UFFD_SNAP" restore -q --detach)
image=$PWD/spare/image
cp good.usnap "$image"

mounts_before=$(mounts)
files_before=$(listing)

# ---- what a user meets: each with its reason ----

attempt 'nothing in the way' "${restore[@]}" "$image"
same 'restored' $good 1

mv data spare/
files_before=$(listing)
must_fail 'a missing file' "'$PWD/data'" "${restore[@]}" "$image"
must_fail 'a missing file, in a namespace' "'$PWD/data'" "${restore[@]}" --pid-namespace "$image"
mv spare/data .
echo more >>mapped
files_before=$(listing)
must_fail 'a changed file' mapped "${restore[@]}" "$image"
cp mapped.orig mapped
touch -r mapped.orig mapped
files_before=$(listing)

python3 -c 'import socket,sys,time
s=socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(("127.0.0.1", int(sys.argv[1]))); s.listen(); print("ready", flush=True); time.sleep(100)' "$port" >spare/busy &
busy=$!
adopt $busy
wait_until 10 test -s spare/busy
must_fail 'an address in use' ":$port" "${restore[@]}" --ignore changed-file --allow-changed-files "$image"
grep -q '^hint: ' err || fail "no hint: $(cat err)"
kill $busy
wait $busy || true

# Somebody has got the PID: the process itself, restored before.
"${restore[@]}" --allow-changed-files "$image" >out 2>err || fail "not restored: $(cat err)"
got=0
"${restore[@]}" --same-pid --allow-changed-files "$image" >out 2>err || got=$?
same 'exit status with a PID in use' $got 1
says err "PID $pid is in use ($name)"
says err 'without --same-pid'
outcome 0 'beside one that failed'

must_fail 'no permission' 'cannot open' setpriv --reuid 65534 --regid 65534 --clear-groups "${restore[@]}" "$image"
head -c $((size / 2)) good.usnap >spare/half
must_fail 'half an image' 'spare/half' "${restore[@]}" "$PWD/spare/half"
rm spare/half
got=0
head -c $((size / 2)) good.usnap | "${restore[@]}" - >out 2>err || got=$?
[ $got -ne 0 ] || fail "half a stream was restored"
outcome $got 'half a stream'
restore+=(--allow-changed-files)

# ---- at random ----

flip() {
	local at byte
	at=$(random_below "$size")
	cp good.usnap "$image"
	byte=$(od -An -tu1 -j "$at" -N 1 good.usnap)
	# shellcheck disable=SC2059 # that is the point
	printf "\\x$(printf %x $((byte ^ 1 << RANDOM % 8)))" | dd of="$image" bs=1 seek="$at" conv=notrunc status=none
	attempt "byte $at flipped" "${restore[@]}" "$@" "$image"
	cp good.usnap "$image"
}
cut_stream() {
	local at got=0
	at=$(random_below "$size")
	head -c "$at" good.usnap | "${restore[@]}" - >out 2>err || got=$?
	outcome $got "a stream cut at $at"
}
little_memory() {
	local mib=$((RANDOM % 220 + 10))
	attempt "$mib MiB of address space" prlimit --as=$((mib << 20)) "${restore[@]}" "$image"
}
killed() {
	local delay
	delay=0.$(printf %04d $((RANDOM % 1500)))
	killed_after "$delay" "$@"
}
killed_after() {
	local delay=$1 sig=$2 status=0
	shift 2
	"${restore[@]}" "$@" "$image" >out 2>err </dev/null &
	local restorer=$!
	sleep "$delay"
	kill -"$sig" $restorer 2>/dev/null || true
	wait $restorer 2>/dev/null || status=$?
	outcome $status "SIG$sig after $delay s $*"
}
calls=(openat read pread64 mmap munmap clone3 memfd_create process_vm_writev ptrace poll newfstatat fstat ioctl
	prctl fcntl getdents64 pidfd_open ftruncate mprotect statx lseek close prlimit64 capget)
inject() {
	local call error most
	call=$(one_of "${calls[@]}")
	error=$(one_of ENOMEM EPERM EIO ENOSPC EINVAL)
	most=$(awk -v c="$call" '$NF == c {print $4}' spare/counts)
	[ -n "$most" ] || most=1
	local at=$((RANDOM % most + 1))
	attempt "$call $at of $most: $error" strace -o trace -e "trace=$call" -e "inject=$call:error=$error:when=$at" "${restore[@]}" "$image"
}
strace -c -o spare/counts "${restore[@]}" "$image" >out 2>err || fail "under strace: $(cat err)"
outcome 0 'under strace'

# The last calls, with which it is let go.
letting_go=$(awk '$NF == "ptrace" {print $4}' spare/counts)
for ((i = 0; i < 4; i++)); do
	what="ptrace $((letting_go - i)) of $letting_go" got=0
	strace -o trace -e trace=ptrace -e "inject=ptrace:error=EPERM:when=$((letting_go - i))" \
		"${restore[@]}" "$image" >out 2>err </dev/null || got=$?
	same "$what: status" $got 1
	says err 'cannot let go thread'
	outcome $got "$what"
	# Killed there: the threads that were let go already end with those that were not.
	what="SIGKILL at ptrace $((letting_go - i)) of $letting_go" got=0
	# strace ends as what it ran, which the shell tells.
	bash -c '"$@"; exit $?' - strace -o trace -e trace=ptrace \
		-e "inject=ptrace:signal=SIGKILL:when=$((letting_go - i))" \
		"${restore[@]}" "$image" >out 2>err </dev/null || got=$?
	same "$what: status" $got 137
	_undone() { [ "$(listing)" = "$files_before" ]; }
	within 10 _undone || true
	outcome $got "$what"
done

# One that ends at once ends the threads that are not let go yet: no failure.
cat >brief.py <<'END'
import os, threading, time
for i in range(3): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
open("ready", "w").close()
while not os.path.exists("go"): time.sleep(0.001)
os._exit(7)
END
rm -f ready
setsid python3 brief.py >spare/log 2>&1 </dev/null &
brief=$!
adopt $brief
wait_until 20 test -e ready
usnap snapshot -q --kill $brief -o spare/brief.usnap
wait $brief 2>/dev/null || true
touch go
got=0
timeout -k 5 60 strace -o trace -e trace=ptrace -e inject=ptrace:delay_enter=50000 \
	"$UFFD_SNAP" restore -q --same-pid spare/brief.usnap >out 2>err </dev/null || got=$?
same 'status of one that ends at once' $got 7
rm -f brief.py go ready
files_before=$(listing)

# In a PID namespace it ends with the restorer until that has been told of it.
start=$(date +%s%N)
"${restore[@]}" --pid-namespace "$image" >out 2>err || fail "not restored: $(cat err)"
took=$((($(date +%s%N) - start) / 1000))
outcome 0 'in a namespace'
for ((i = 0; i < $(times 10 60); i++)); do
	killed_after "$(awk -v t=$took -v r=$RANDOM 'BEGIN {printf "%.6f", t * (0.6 + 0.5 * r / 32768) / 1e6}')" \
		KILL --pid-namespace
done

for ((i = 0; i < n; i++)); do
	case $((i % 10)) in
	0) flip ;;
	1) flip --pid-namespace ;;
	2) cut_stream ;;
	3) little_memory ;;
	4) killed KILL ;;
	5) killed KILL --pid-namespace ;;
	6) killed "$(one_of TERM INT HUP)" "$(one_of --same-pid --pid-namespace)" ;;
	*) inject ;;
	esac
done
echo "$n failures injected, $good restores went well all the same"

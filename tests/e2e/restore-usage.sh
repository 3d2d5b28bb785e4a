#!/bin/bash
# restore: wrong use is exit status 2 and touches nothing; --dry-run says what would be; kinds and their list agree.
. "$(dirname "$0")/../lib.sh"
need jq mkfifo

exits 2 usnap restore
says err 'no FILE given'
exits 2 usnap restore a b
says err "cannot restore 'b' as well"
exits 2 usnap restore --frobnicate a
exits 2 usnap restore --pid-namespace --same-pid a
exits 2 usnap restore --threads 0 a
exits 2 usnap restore --threads
for fd in 3 =x 3= x=y -1=x 3x=y 99999999999=x; do
	exits 2 usnap restore --fd "$fd" a
	says err "cannot use '$fd' as --fd"
done
exits 2 usnap restore --fd 3=a --fd 3=inherit a
says err '3 was given already'
exits 2 usnap restore --ignore nonsense a
says err "cannot ignore 'nonsense'"
sed 's/.*there are //' err | tr ' ' '\n' | sort >listed

# Those that it names are those of the manual; that the sources have no others, scripts/check-kinds tells.
awk '/^\.Sh COMMANDS/ { on = 1 } /^\.Ss check/ { on = 0 } on && /^\.Cm [a-z_, -]*$/' "$TOP/man/uffd-snap.1" |
	sed 's/^\.Cm//' | tr -d ' ' | tr ',' '\n' | grep . | sort >in-manual
for kind in $(cat listed); do
	grep -qx "$kind" in-manual || fail "the manual does not list '$kind'"
done

# Not an image, and no image.
exits 1 usnap restore missing.usnap
says err "cannot open 'missing.usnap': No such file or directory"
head -c 20000 /dev/urandom >noise
got=0
usnap restore noise >out 2>err || got=$?
[ $got -eq 1 ] || [ $got -eq 3 ] || fail "exit status $got for noise"
says err "cannot read 'noise'"
got=0
usnap restore - <noise >out 2>err || got=$?
[ $got -eq 1 ] || [ $got -eq 3 ] || fail "exit status $got for noise from a pipe"
says err "cannot read 'standard input'"
got=0
usnap restore - </dev/null >out 2>err || got=$?
[ $got -ne 0 ] || fail "nothing was restored"

# A plan is made, and nothing else.
sleep 1000 &
pid=$!
adopt $pid
wait_until 20 grep -qx sleep /proc/$pid/comm
usnap snapshot -q $pid -o sleep.usnap
got=0
usnap restore --same-pid - <sleep.usnap >out 2>err || got=$?
same 'PID in use, from a pipe' "$got" 1
says err "cannot restore 'standard input': "
says_not err "'-'"
got=0
usnap restore --dry-run --same-pid - <sleep.usnap >out 2>err || got=$?
same 'the same as a dry run' "$got" 1
says out "cannot restore 'standard input' as process $pid"
exits 1 usnap restore --dry-run --same-pid sleep.usnap
says out "PID $pid is in use (sleep)"
exits 1 usnap restore --same-pid sleep.usnap
says err "PID $pid is in use (sleep)"
exits 0 usnap restore --dry-run sleep.usnap
says out 'in a new PID namespace'
exits 0 usnap restore --dry-run --json sleep.usnap
jq -e '.can_restore and .place.pid_namespace' out >/dev/null || fail "$(cat out)"
kill -KILL $pid
wait $pid || true
exits 0 usnap restore --dry-run sleep.usnap
says out "would restore 'sleep.usnap' as process $pid"
says out 'numbers: its own'
[ ! -e /proc/$pid ] || fail "a dry run made the process"
got=0
usnap restore --dry-run - <sleep.usnap >out 2>err || got=$?
same 'dry run from a pipe' "$got" 0

# What is lost is told in words, of a socket without a name too.
python3 -c '
import ctypes, os, socket, struct, time
ours, theirs = socket.socketpair()
if os.fork() != 0:
    ours.close()
    time.sleep(1000)
theirs.close()
filtered = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
filtered.bind("named")
all_of_it = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0xffffffff))
filtered.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HP", 1, ctypes.addressof(all_of_it)))
with open("sockets.new", "w") as f:
    f.write(str(os.getpid()))
os.rename("sockets.new", "sockets.pid")
time.sleep(1000)' &
adopt $!
wait_until 20 test -e sockets.pid
pid=$(cat sockets.pid)
adopt "$pid"
usnap snapshot -q "$pid" -o sockets.usnap
exits 1 usnap restore --dry-run sockets.usnap
says out ': a Unix socket; will come back closed by the peer'
says out ': unix named: its filter'

# A stream is kept where TMPDIR says; a file system is not filled to the brim for it.
mkdir small
got=0
unshare --mount --propagation private bash -c \
	'mount -t tmpfs -o size=1m tmpfs small && TMPDIR=$PWD/small exec "$0" restore --dry-run -' \
	"$UFFD_SNAP" <sleep.usnap >out 2>err || got=$?
same 'no room for a stream' "$got" 1
says err "cannot keep 'standard input' in '$PWD/small': No space left on device"
says err 'hint: TMPDIR'

# A limit of the restorer's own is told of. A file of its number is wanted, and there is none.
got=0
(ulimit -f 4 && exec "$UFFD_SNAP" restore --detach -q sleep.usnap) >out 2>err || got=$?
same 'with a limit on file sizes' "$got" 1
says err 'hint: raise the limit on file sizes'
exits 1 usnap restore --detach -q --pidfile nowhere/pid sleep.usnap
says err "cannot write 'nowhere/pid': No such file or directory"
[ ! -e /proc/$pid/exe ] || [ "$(readlink "/proc/$pid/exe")" != /usr/bin/sleep ] ||
	fail 'a process without its file was left behind'

# A pipe has one reader, who takes the first that is written for all.
mkfifo pidpipe
timeout 60 cat pidpipe >heard &
reader=$!
timeout 60 "$UFFD_SNAP" restore --detach -q --pidfile pidpipe sleep.usnap >told 2>err ||
	fail "with a pipe for the PID: $(cat err)"
wait $reader
same 'PID through a pipe' "$(cat heard)" "$(cat told)"
kill -KILL "$(cat told)"
# A link is made use of, wherever it leads.
ln -s linked linkedpid
exits 0 usnap restore --detach -q --pidfile linkedpid sleep.usnap
same 'PID through a link' "$(cat linked)" "$(cat out)"
kill -KILL "$(cat out)"


# Whoever cannot be told of it: it runs.
got=0
usnap restore --detach --pidfile ran sleep.usnap >/dev/full 2>err || got=$?
same 'restored, with a full standard output' "$got" 1
says err "process $(cat ran) runs, though nobody was told"
says err 'No space left on device'
kill -KILL "$(cat ran)"

# A program that was replaced: what the image has of it is what runs.
cp "$WORKLOADS/witness" replaced
start ./replaced
wait_until 10 grep -q ready "$started_log"
cp "$WORKLOADS/coredemo" new && mv new replaced
usnap snapshot -q --kill "$started" -o replaced.usnap
exits 0 usnap restore --dry-run replaced.usnap
says out "note: program: '$PWD/replaced (deleted)' is no longer there"
exits 0 usnap restore --detach -q replaced.usnap
cmp "/proc/$(cat out)/exe" "$WORKLOADS/witness" || fail 'another program runs'
kill -KILL "$(cat out)"

# Descriptors that are told to lead elsewhere.
exits 1 usnap restore --detach -q --fd 1="$PWD/one" sleep.usnap
says err "cannot open"
: >one
exits 0 usnap restore --detach -q --fd 1="$PWD/one" --fd 2=inherit sleep.usnap
restored=$(cat out)
adopt "$restored"
same 'descriptor 1' "$(readlink "/proc/$restored/fd/1")" "$PWD/one"
same 'descriptor 2' "$(readlink "/proc/$restored/fd/2")" "$PWD/err"
kill -KILL "$restored"

#!/bin/bash
# In the foreground, restore stands in for the process: signals, stops, exit status, pipes and the terminal pass.
# timeout: 240
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-restore.sh"
need python3

cat >told.py <<'END'
import os, signal, sys, time
def told(sig, frame):
    print("got", signal.Signals(sig).name, flush=True)
    if sig == signal.SIGTERM: sys.exit(7)
    if sig == signal.SIGUSR2: os.closerange(1, 3)
for sig in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT, signal.SIGWINCH):
    signal.signal(sig, told)
print("ready", flush=True)
while True:
    time.sleep(0.02)
END

# image NAME COMMAND...: of a process whose standard descriptors are pipes, so
# that it takes the restorer's.
image() {
	local name=$1 line pid
	shift
	coproc TAKEN { exec "$@" 2>&1; }
	pid=$TAKEN_PID
	adopt "$pid"
	read -r line <&"${TAKEN[0]}"
	same 'first line' "$line" ready
	usnap snapshot -q --kill "$pid" -o "$name.usnap"
	wait "$pid" 2>/dev/null || true
}

# front [OPTION]...: the restore of told.usnap, in the background of this
# script; $front is its PID, $process the one of the process as seen here.
front() {
	: >out
	start_restore told.usnap "$@" >out 2>err
}
start_restore() {
	"$UFFD_SNAP" restore -q "$@" </dev/null &
	front=$!
	adopt $front
}
_found() {
	process=$(pgrep -P "$front" | head -n 1)
	[ -n "$process" ] || return 1
	# With a PID namespace, its init is between.
	[[ " $* " != *--pid-namespace* ]] || process=$(pgrep -P "$process" | head -n 1)
	[ -n "$process" ] && [ "$(sed -n 's/^TracerPid:\t//p' "/proc/$process/status")" = 0 ] &&
		[[ $(cat "/proc/$process/comm") == python3 ]]
}
_in_state() { [[ $(sed -n 's/^State:\t\(.\).*/\1/p' "/proc/$1/status") == [$2] ]]; }
_says() { grep -q "^$1" out; }
ended() {
	local status=0
	wait "$front" || status=$?
	same "$1" "$status" "$2"
	_gone "$process" || fail "$1: process $process is left"
}

image told python3 told.py
for how in '' --pid-namespace; do
	# shellcheck disable=SC2086 # none or one
	front $how
	within 20 _found $how || fail "not restored ($how): $(cat err)"
	for sig in USR1 HUP WINCH; do
		within 5 _in_state "$front" S
		kill -$sig "$front"
		wait_until 5 _says "got SIG$sig"
	done

	# A stop of the process is one of the restorer's; it goes on when the restorer is told to.
	kill -STOP "$process"
	wait_until 5 _in_state "$front" T
	kill -CONT "$front"
	wait_until 5 _in_state "$front" S
	wait_until 5 _in_state "$process" SR
	kill -TERM "$front"
	ended "exit status $how" 7

	# It dies of the signal that the process died of.
	# shellcheck disable=SC2086
	front $how
	within 20 _found $how || fail "not restored ($how): $(cat err)"
	kill -KILL "$process"
	ended "killed $how" 137

	# A pipe is held open by the process alone.
	# shellcheck disable=SC2086
	{ echo $BASHPID >front.pid; exec "$UFFD_SNAP" restore -q $how told.usnap </dev/null; } 2>err | { cat >out; : >eof; } &
	wait_until 20 test -s front.pid
	front=$(cat front.pid)
	adopt "$front"
	within 20 _found $how || fail "not restored ($how): $(cat err)"
	kill -USR2 "$process"
	wait_until 5 test -e eof
	alive "$process" || fail "the process is gone"
	kill -KILL "$process"
	wait_until 5 _gone "$process"
	rm front.pid eof
done

# What the journal gives a service as its output is a connection.
cat >journal.py <<'END'
import socket, subprocess, sys
ours, theirs = socket.socketpair()
p = subprocess.Popen(sys.argv[1:], stdout=theirs, stderr=theirs)
theirs.close()
print(ours.recv(100).decode().strip(), p.pid, flush=True)
p.wait()
END
start python3 journal.py python3 told.py
# shellcheck disable=SC2154 # of lib.sh
wait_until 20 grep -q '^ready' "$started_log"
usnap snapshot -q --kill "$(sed -n 's/^ready //p' "$started_log")" -o journal.usnap
exits 0 usnap restore --dry-run journal.usnap
says out ': a Unix socket; will come back as what a restore has there'
: >out
start_restore journal.usnap >out 2>err
within 20 _found || fail "not restored: $(cat err)"
kill -USR1 "$front"
wait_until 5 _says 'got SIGUSR1'
kill -TERM "$front"
ended 'a service' 7

# In a namespace nothing outlives the restorer.
front --pid-namespace
within 20 _found --pid-namespace || fail "not restored: $(cat err)"
kill -KILL "$front"
wait "$front" || true
within 5 _gone "$process" || fail "the process outlived a killed restorer"

# --stopped waits for a debugger, or for SIGCONT.
front --stopped
wait_until 20 _found
wait_until 5 _in_state "$process" T
sleep 0.2
_in_state "$front" S || fail "the restorer has stopped as well"
kill -TERM "$front"
kill -CONT "$process"
ended --stopped 7

# --detach: on its own, and the PID is all that is printed.
for how in '' --pid-namespace; do
	# shellcheck disable=SC2086
	process=$(usnap restore -q --detach $how told.usnap </dev/null 2>err)
	adopt "$process"
	_in_state "$process" SR || fail "process $process does not run"
	kill -TERM "$process"
	within 5 _gone "$process" || fail "$process did not end"
done

# A terminal: the process reads from it, ^C and ^Z reach it once, and the shell's job control works.
cat >echoing.py <<'END'
import os, select, signal, sys
signal.signal(signal.SIGINT, lambda s, f: print("interrupted", flush=True))
# A signal between two reads is not to wait for the next line.
came, wake = os.pipe()
os.set_blocking(wake, False)
signal.set_wakeup_fd(wake)
print("ready", flush=True)
while True:
    if came in select.select([0, came], [], [])[0]:
        os.read(came, 100)
        continue
    line = sys.stdin.readline()
    if not line: break
    print("read " + line.strip(), flush=True)
sys.exit(5)
END
image echoing python3 echoing.py

cat >terminal.py <<'END'
import os, pty, re, select, sys, time
pid, fd = pty.fork()
if pid == 0:
    os.environ["PS1"] = "prompt> "
    os.environ["TERM"] = "dumb"
    os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
seen = b""
def until(what, seconds=20):
    global seen
    end = time.time() + seconds
    while True:
        at = seen.find(what)
        if at >= 0:
            seen = seen[at + len(what):]
            return
        left = end - time.time()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            sys.exit("not on the terminal: %r; but: %r" % (what, seen[-400:]))
        try:
            seen += os.read(fd, 4096)
        except OSError:
            sys.exit("the shell ended: %r" % seen[-400:])
def type(text): os.write(fd, text)
until(b"prompt> ")
type(b"%s restore -q %s echoing.usnap\n" % (sys.argv[1].encode(), sys.argv[2].encode()))
until(b"echoing.usnap")
time.sleep(1)
type(b"one\n"); until(b"read one")
type(b"\x03"); until(b"interrupted")
type(b"two\n"); until(b"read two")
if b"interrupted" in seen: sys.exit("^C came twice")
type(b"\x1a"); until(b"Stopped"); until(b"prompt> ")
type(b"echo still $((40+2))\n"); until(b"still 42")
type(b"fg\n"); until(b"restore")
time.sleep(0.5)
type(b"three\n"); until(b"read three")
type(b"\x04"); until(b"prompt> ")
type(b"echo status $?\n"); until(b"status 5")
type(b"exit\n")
END
for how in '' --pid-namespace; do
	python3 terminal.py "$UFFD_SNAP" "$how" >terminal.log 2>&1 || fail "terminal ($how): $(cat terminal.log)"
done

# The modes that the process had set are those of the terminal while it runs, and the restorer's own afterwards.
cat >raw.py <<'END'
import signal, sys, tty
tty.setraw(0)
print("ready", flush=True)
while True: signal.pause()
END
cat >modes.py <<'END'
import fcntl, os, pty, signal, subprocess, sys, termios, time
snap, how = sys.argv[1], sys.argv[2].split()
def run(command):
    # A shell between, so that the process leads neither session nor group.
    pid, fd = pty.fork()
    if pid == 0:
        os.execvp("sh", ["sh", "-c", command + "; exit $?"])
    return pid, fd
def is_raw(fd): return not termios.tcgetattr(fd)[3] & termios.ICANON
def until(what, condition):
    end = time.time() + 20
    while not condition():
        if time.time() > end: sys.exit("not within 20 s: " + what)
        time.sleep(0.02)
def child(pid, name):
    for line in subprocess.run(["ps", "-eo", "pid=,ppid=,comm="], capture_output=True, text=True).stdout.splitlines():
        p, parent, comm = line.split(None, 2)
        if int(parent) == pid and comm == name: return int(p)
    return None
if not os.path.exists("raw.usnap"):
    shell, fd = run("exec 2>&1; python3 raw.py")
    until("raw", lambda: is_raw(fd))
    until("a child", lambda: child(shell, "python3"))
    subprocess.run([snap, "snapshot", "-q", "--kill", str(child(shell, "python3")), "-o", "raw.usnap"], check=True)
    os.waitpid(shell, 0)
    os.close(fd)
shell, fd = run("%s restore -q %s raw.usnap" % (snap, " ".join(how)))
number = fcntl.ioctl(fd, 0x80045430, bytes(4)) # TIOCGPTN
keep = os.open("/dev/pts/%d" % int.from_bytes(number, sys.byteorder), os.O_RDWR | os.O_NOCTTY)
if is_raw(keep): sys.exit("raw from the start")
until("raw again", lambda: is_raw(keep))
until("a restorer", lambda: child(shell, "uffd-snap"))
restorer = child(shell, "uffd-snap")
while restorer and child(restorer, "uffd-snap"): restorer = child(restorer, "uffd-snap")
until("the process", lambda: child(restorer, "python3"))
os.kill(child(restorer, "python3"), signal.SIGKILL)
if os.waitstatus_to_exitcode(os.waitpid(shell, 0)[1]) != 137: sys.exit("another exit status")
if is_raw(keep): sys.exit("the terminal was left in raw mode")
END
need ps
for how in '' --pid-namespace; do
	timeout 60 python3 modes.py "$UFFD_SNAP" "$how" >modes.log 2>&1 || fail "modes of the terminal ($how): $(cat modes.log)"
done

# In a namespace the numbers of the restorer's own processes can be those of the restored one.
if [ "$(id -u)" -eq 0 ] && unshare --pid --fork --mount-proc true 2>/dev/null; then
	cat >ends.py <<-'END'
		import os, socket, sys, time
		s = socket.socket(socket.AF_UNIX)
		s.bind("bound")
		print("ready", flush=True)
		while not os.path.exists("end"): time.sleep(0.02)
		sys.exit(7)
	END
	cat >numbers.sh <<-'END'
		set -eu
		echo 499 >/proc/sys/kernel/ns_last_pid
		setsid python3 ends.py >ends.out 2>&1 </dev/null &
		pid=$!
		until grep -q ready ends.out; do sleep 0.05; done
		"$UFFD_SNAP" snapshot -q --kill $pid -o ends.usnap
		wait $pid || true
		touch end
		for ((n = $pid - 4; n <= $pid; n++)); do
			rm -f bound
			echo $n >/proc/sys/kernel/ns_last_pid
			status=0
			timeout -k 5 20 "$UFFD_SNAP" restore -q --pid-namespace ends.usnap >ended 2>&1 </dev/null || status=$?
			[ $status -eq 7 ] || { echo "after $n: exit status $status: $(cat ended)"; exit 1; }
		done
	END
	unshare --pid --fork --mount-proc bash numbers.sh >numbers.out 2>&1 || fail "$(cat numbers.out)"
fi

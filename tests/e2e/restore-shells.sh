#!/bin/bash
# A shell, python3 and sqlite3 at a terminal come back at another one: their state, line editing, Ctrl-C, job control, exit status.
# timeout: 120
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

need python3 sqlite3
cat >driver.py <<'END'
import os, pty, re, select, signal, subprocess, sys, time, fcntl, struct, termios

snap, generations = sys.argv[1], int(sys.argv[2])

class Terminal:
    """A new session at a new terminal."""
    def __init__(self, *command):
        self.seen = ""
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.environ.update(TERM="dumb", PS1="prompt> ", HOME=os.getcwd(), HISTFILE="")
            os.execvp(command[0], command)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("4H", 33, 77, 0, 0))
    def wait(self, pattern, seconds=30):
        end = time.monotonic() + seconds
        while not (m := re.search(pattern, self.seen)):
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.fd], [], [], left)[0]:
                sys.exit("no %r in %r" % (pattern, self.seen[-2000:]))
            try:
                data = os.read(self.fd, 4096)
            except OSError:
                data = b""
            if not data:
                sys.exit("ended without %r: %r" % (pattern, self.seen[-2000:]))
            self.seen += data.decode(errors="replace")
        self.seen = self.seen[m.end():]
        return m
    def name(self):
        # TIOCGPTN
        number = fcntl.ioctl(self.fd, 0x80045430, struct.pack("I", 0))
        return "/dev/pts/%d" % struct.unpack("I", number)
    def type(self, text):
        os.write(self.fd, text.encode())
    def end(self):
        """The status of what was started."""
        while True:
            try:
                if not os.read(self.fd, 4096):
                    break
            except OSError:
                break
        status = os.waitpid(self.pid, 0)[1]
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)

def again(t, image, pid):
    """Snapshots, kills, and restores at a new terminal."""
    subprocess.run([snap, "snapshot", "-q", "--kill", str(pid), "-o", image], check=True)
    t.end()
    return Terminal(snap, "restore", "-q", image)

def inner(t):
    """The PID of what the restorer stands in for."""
    return int(subprocess.run(["pgrep", "-P", str(t.pid)], capture_output=True, check=True).stdout)

def shell():
    """Of a job of another shell, and at its terminal again."""
    t = Terminal("bash", "--norc", "--noprofile", "-i")
    t.wait("prompt> ")
    t.type("PS1='inner> ' bash --norc --noprofile -i\r")
    t.wait("\\ninner> |\\rinner> |^inner> ")
    t.type("x=forty; f() { echo \"$x-two\"; }; echo pid-$$-\r")
    pid = int(t.wait(r"\npid-(\d+)-").group(1))
    t.wait("inner> ")
    for g in range(generations):
        subprocess.run([snap, "snapshot", "-q", "--kill", str(pid), "-o", "shell.usnap"], check=True)
        t.wait("Killed")
        t.wait("prompt> ")
        t.type(snap + " restore -q shell.usnap\r")
        t.wait("\n")
        time.sleep(0.5)
        t.type("f\r")
        t.wait("\nforty-two")
        t.wait("inner> ")
        # Line editing, a child, and the size of this terminal.
        t.type("stty sizf\x7fe\r")
        t.wait("\n33 77\r")
        t.wait("inner> ")
        t.type("tty; echo $$-\r")
        if (tty := t.wait(r"\n(/dev/pts/\d+|not a tty)").group(1)) != t.name():
            sys.exit("%s is another tty than %s" % (tty, t.name()))
        t.wait(r"\n%d-" % pid)
        t.wait("inner> ")
        t.type("half a line")
        t.wait("half a line")
        time.sleep(0.1)
        t.type("\x03")
        t.wait("inner> ")
        t.type("echo status-$?\r")
        t.wait("\nstatus-130")
        t.wait("inner> ")
        # A job that is stopped, goes on and is interrupted.
        t.type("sleep 100\r")
        t.wait("\n")
        time.sleep(0.5)
        t.type("\x1a")
        t.wait("Stopped")
        t.wait("inner> ")
        t.type("fg\r")
        t.wait("\nsleep 100")
        time.sleep(0.5)
        t.type("\x03")
        t.wait("inner> ")
        t.type("echo status-$?\r")
        t.wait("\nstatus-130")
        t.wait("inner> ")
    t.type("exit 7\r")
    t.wait("prompt> ")
    t.type("echo status-$?\r")
    t.wait("\nstatus-7")
    t.type("exit\r")
    t.end()

def python():
    t = Terminal(sys.executable, "-q", "-i")
    t.wait(">>> ")
    t.type("x = list(range(10)); import time\r")
    t.wait(">>> ")
    pid = t.pid
    for g in range(generations):
        t = again(t, "python.usnap", pid)
        t.type("sum(x), len(x)\r")
        t.wait(r"\n\(45, 10\)")
        pid = inner(t)
        t.wait(">>> ")
        t.type("time.sleep(100)\r")
        t.wait("\n")
        time.sleep(0.3)
        t.type("\x03")
        t.wait("KeyboardInterrupt")
        t.wait(">>> ")
    t.type("raise SystemExit(6)\r")
    if (s := t.end()) != 6:
        sys.exit("exit status %s" % s)

def sqlite():
    t = Terminal("sqlite3", ":memory:")
    t.wait("sqlite> ")
    t.type("create table t(a); insert into t values(1),(2),(39);\r")
    t.wait("sqlite> ")
    pid = t.pid
    for g in range(generations):
        t = again(t, "sqlite.usnap", pid)
        t.type("select sum(a) || '-is-it' from t;\r")
        t.wait("\n42-is-it")
        pid = inner(t)
        t.wait("sqlite> ")
    t.type(".quit\r")
    if (s := t.end()) != 0:
        sys.exit("exit status %s" % s)

for program in (shell, python, sqlite):
    if len(sys.argv) < 4 or program.__name__ in sys.argv[3:]:
        program()
        print(program.__name__, "came back", generations, "times", flush=True)
END
# The interpreter itself: a wrapper would be another process.
timeout -k 5 100 python3 driver.py "$UFFD_SNAP" "$(times 2 20)"

# shellcheck shell=bash
# What a shell makes of keys, for tests of completions: source it after lib.sh.
#
#   typed COMMAND... <CASES
#
# starts an interactive shell on a terminal, and for each line of CASES,
#
#   TYPED|LINE|OFFERED
#
# types TYPED and a tab: the line must become LINE, and what is listed must be
# the words OFFERED, in any order; "..." among them stands for others. The
# shell prompts with "> " and shows the line it edits on ^T as "<line:LINE>".

_typed='
import os, pty, re, select, signal, sys, termios, fcntl, struct, time

pid, fd = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
# So that no line is broken, and no list asked about.
fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 1000, 2000, 0, 0))

def read_until(pattern):
    data = ""
    end = time.monotonic() + 20
    while not (m := re.search(pattern, data)):
        if not select.select([fd], [], [], max(0, end - time.monotonic()))[0]:
            sys.exit("waited in vain for %s: %r" % (pattern, data))
        try:
            data += os.read(fd, 65536).decode()
        except OSError:
            sys.exit("the shell has ended: %r" % data)
    return data, m

# While something else than keys is awaited, the terminal would take ^U for itself.
read_until("> $")
wrong = 0
for case in open(3):
    typed, line, offered = case.rstrip("\n").split("|")
    os.write(fd, typed.encode() + b"\t\x14")
    data, m = read_until(r"<line:([^>]*)>\r*\n\r*> ")
    data = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|[\x00-\x08\x0e-\x1f]", "", data[:m.start()])
    # Between the line as it was typed and the one that is shown again.
    listed = [l for l in re.split(r"\r*\n|\r", data)[1:] if not l.startswith("> ")]
    listed = {w for l in listed for w in l.split()}
    wanted = set(offered.split())
    some = "..." in wanted
    wanted.discard("...")
    if m[1] != line or (not wanted <= listed if some else wanted != listed):
        print("%r became %r, and not %r; listed: %s, and not %s" %
              (typed, m[1], line, sorted(listed), offered.split()))
        wrong = 1
    os.write(fd, b"\x15\x14")
    read_until("<line:>\r*\n\r*> ")
os.close(fd)
os.waitpid(pid, 0)
sys.exit(wrong)
'

typed() { python3 -c "$_typed" "$@" 3<&0 </dev/null || fail "$1: see above"; }

#!/bin/bash
# The image tells which file an epoll set watches where its number was closed or used again, borders in pipes, and the state of a terminal.
. "$(dirname "$0")/../lib.sh"

need jq python3
cat >target.py <<'PY'
import fcntl, os, pty, select, struct, termios, time

set_ = select.epoll()
plain, _ = os.pipe()
set_.register(plain, select.EPOLLIN)
# Closed under the number it was added with.
moved, _ = os.pipe()
set_.register(moved, select.EPOLLIN)
now = os.dup(moved)
os.close(moved)
# And a number that names another file by now, of a kind that shares one inode.
counter = os.eventfd(3)
set_.register(counter, select.EPOLLOUT)
counter_now = os.dup(counter)
os.close(counter)
other = -1
while other != counter:
    other = os.eventfd(5)
end, start = os.pipe2(os.O_DIRECT)
os.write(start, b"abc")
os.write(start, b"defgh")
master, slave = pty.openpty()
fcntl.ioctl(slave, termios.TIOCEXCL)
os.write(master, b"typed\n")
os.symlink("nowhere", "link")
link = os.open("link", os.O_PATH | os.O_NOFOLLOW)
print(set_.fileno(), plain, moved, now, counter, counter_now, end, master, slave, flush=True)
print("ready", flush=True)
time.sleep(300)
PY
start python3 target.py
wait_until 20 grep -q ready "$started_log"
read -r set plain moved now counter counter_now end _ slave <"$started_log"
exits 0 usnap snapshot -q "$started" -o a.usnap
tar xOf a.usnap process.json >a.json

# of FD KEY
of() { jq -c --argjson fd "$1" ".files[] | select(.fd == \$fd) | $2" a.json; }
# watched FD: the descriptions that the set says it was added for.
watched() { of "$set" "[.epoll.set[] | select(.fd == $1) | .description]"; }

same 'a pipe' "$(watched "$plain")" "[$(of "$plain" .description)]"
wanted=$(jq -nc "[$(of "$now" .description), $(of "$counter_now" .description)] | sort")
if [ "$moved" = "$counter" ]; then
	same 'descriptors that have moved' "$(watched "$moved" | jq -c sort)" "$wanted"
else
	same 'a pipe that has moved' "$(watched "$moved")" "[$(of "$now" .description)]"
	same 'a counter that has moved' "$(watched "$counter")" "[$(of "$counter_now" .description)]"
fi
same packets "$(of "$end" .pipe.packets)" '[3,5]'
same data "$(of "$end" .pipe.data)" "\"$(printf abcdefgh | od -An -tx1 | tr -d ' ')\""
same exclusive "$(of "$slave" '[.terminal.exclusive, .terminal.queued]')" '[true,6]'
same 'symbolic link' "$(jq -c '[.files[] | select(.type == "symlink") | .size]' a.json)" '[7]'
same 'mapped files' "$(jq '[.mapped_files[] | select(.path | test("/libc.so.6$")) | .build_id | length >= 16]' a.json | jq -c .)" '[true]'
same 'heap' "$(jq .mm.brk_exact a.json)" true

#!/bin/bash
# What a restore would refuse is known when the image is taken: info says it, and snapshot --kill lets the process run.
. "$(dirname "$0")/../lib.sh"

need jq python3

# stays KIND TEXT [COUNT]: --kill spares the process that was started, for KIND, and the image says TEXT.
stays() {
	exits 1 usnap snapshot -q --kill "$started" -o kept.usnap
	says err "$1"
	kill -0 "$started" || fail "$1: the process is gone"
	exits 0 usnap snapshot -q "$started" -o image.usnap
	tar xOf image.usnap process.json |
		jq -r '.limits_of_restore[] | "\(.what): \(.severity): \(.detail)"' >limits
	grep -q "^$1: refuse: .*$2" limits || fail "no $1 with '$2' in: $(cat limits)"
	kill -9 "$started"
}

echo 'Threads apart'
# CLONE_FS, CLONE_FILES, CLONE_NEWUTS
start_workload oddproc apart 0x200
stays thread-context 'working directory'
start_workload oddproc apart 0x400
stays thread-context 'table of descriptors'
if unshare -u true 2>/dev/null; then
	start_workload oddproc apart 0x4000000
	stays thread-context 'namespaces'
fi

echo 'Names that end as those of deleted files do'
mkdir 'dir (deleted)'
cat >named.py <<'PY'
import os, time
os.chdir("dir (deleted)")
files = [os.open("data (deleted)", os.O_RDWR | os.O_CREAT, 0o600), os.open(".", os.O_RDONLY)]
print("ready", flush=True)
time.sleep(300)
PY
start python3 named.py
wait_until 20 grep -q ready "$started_log"
exits 0 usnap snapshot -q --kill "$started" -o named.usnap
exits 0 usnap restore --dry-run named.usnap

echo 'A file of /proc whose name the kernel forgets when it is looked for'
cat >network.py <<'PY'
import os, time
files = [os.open("/proc/net/dev", os.O_RDONLY), os.open("/proc/self/net/route", os.O_RDONLY), os.open("/proc/sys/net", os.O_RDONLY)]
print("ready", flush=True)
time.sleep(300)
PY
start python3 network.py
wait_until 20 grep -q ready "$started_log"
for i in 1 2; do
	stat "/proc/$started/root/proc/$started/net/dev" >/dev/null
	exits 0 usnap snapshot -q "$started" -o network.usnap
	tar xOf network.usnap process.json | jq -r '.limits_of_restore[] | select(.severity == "refuse") | .detail' >limits
	[ ! -s limits ] || fail "refused, time $i: $(cat limits)"
done
exits 0 usnap snapshot -q --kill "$started" -o network.usnap
restored=$(usnap restore -q --detach network.usnap)
adopt "$restored"
same 'files of /proc' "$(readlink "/proc/$restored/fd/3" "/proc/$restored/fd/5" | sed 's/ (deleted)//')" \
	"$(printf '/proc/%s/net/dev\n/proc/sys/net' "$restored")"
kill -KILL "$restored"

echo 'A message queue'
# In namespaces of their own, which end with the process, and what was made in them.
if ! unshare -im true 2>/dev/null; then
	echo 'no other namespaces can be made: the rest is left out'
	exit 0
fi
cat >queue.py <<'PY'
import ctypes, os, time
assert ctypes.CDLL("librt.so.1").mq_open(b"/q", os.O_RDWR | os.O_CREAT, 0o600, None) >= 0
print("ready", flush=True)
time.sleep(300)
PY
start unshare -i python3 queue.py
wait_until 20 grep -q ready "$started_log"
stays message-queue '/q'

echo 'Paths that lead elsewhere'
cat >hidden.py <<'PY'
import ctypes, mmap, os, sys, time
what = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)
def must(r):
    if r != 0:
        raise OSError(ctypes.get_errno(), what)
def mount(path):
    os.makedirs(path, exist_ok=True)
    must(libc.mount(b"none", path.encode(), b"tmpfs", 0, None))
mount("under")
open("under/data", "w").write("data")
f = open("under/data")
if what == "mapped":
    m = mmap.mmap(f.fileno(), 4, prot=mmap.PROT_READ)
    os.closerange(3, 10)
if what == "cwd":
    f.close()
    os.chdir("under")
if what == "covered":
    mount("under")
else:
    must(libc.umount2(b"../under" if what == "cwd" else b"under", 2))
print("ready", flush=True)
time.sleep(300)
PY
# hidden WHAT TEXT: TEXT as the kernel has it, from the top of the mount where that is gone.
hidden() {
	start unshare -m python3 hidden.py "$1"
	wait_until 20 grep -q ready "$started_log"
	stays hidden-file "$2"
}
hidden covered "fd 3: $PWD/under/data"
hidden file 'fd 3: /data'
hidden mapped '/data: its path does not'
hidden cwd 'working directory /:'

#!/bin/bash
# A restore notices what became of the files, names the descriptor and what to do, and can be given others.
# timeout: 240
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-restore.sh"
need python3

# Reads 5 bytes of "data" from where it stood, writes them to "log" and says so.
cat >reader.py <<'END'
import fcntl, os, time
os.closerange(3, 100)
data = os.open("data", os.O_RDONLY)
log = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
os.lseek(data, 5, 0)
fcntl.lockf(log, fcntl.LOCK_EX)
print(f"ready {data} {log}", flush=True)
while not os.path.exists("go"):
    time.sleep(0.01)
os.write(log, os.read(data, 5))
print("done", flush=True)
END

printf 'abcdefghijklmnop' >data
: >log
touch -d '2020-01-01' data
start python3 reader.py
wait_until 20 grep -q '^ready 3 4' "$started_log"
usnap snapshot -q --kill "$started" -o image.usnap
wait "$started" 2>/dev/null || true
reader=$started
touch go

# came_back WHAT [OPTION]...: it runs to its end and has written.
came_back() {
	local what=$1 log=${LOG:-log}
	shift
	: >log
	timeout -k 5 30 "$UFFD_SNAP" restore -q "$@" image.usnap >out 2>err </dev/null ||
		fail "$what: $(cat err)"
	same "$what" "$(cat "$log")" "${WANTED:-fghij}"
}

# refused WHAT TEXT [OPTION]...: nothing happens, and err says TEXT.
refused() {
	local what=$1 text=$2 status=0
	shift 2
	: >log
	timeout -k 5 30 "$UFFD_SNAP" restore "$@" image.usnap >out 2>err </dev/null || status=$?
	same "$what: exit status" "$status" 1
	grep -q -- "$text" err || fail "$what: no '$text' in: $(cat err)"
	same "$what: what was written" "$(cat log)" ''
	! pgrep -f "^python3 reader.py" | grep -qx "$reader" || fail "$what: a process is left"
}

came_back 'as it was'
grep -q '^done' "$started_log" || fail 'its output went elsewhere'

echo 'Files that have changed'
mv data data.old
refused 'missing' "missing-file: fd 3: '$PWD/data'"
grep -q -- '--fd 3=PATH' err || fail 'no remedy is named'
mkdir data
refused 'a directory now' 'replaced-file: fd 3'
rmdir data
cp data.old data
refused 'another one, of another time' 'changed-file: fd 3'
came_back 'allowed' --allow-changed-files
touch -d '2020-01-01' data
came_back 'a copy of the same time'
printf 'abc' >data
refused 'shorter' 'has 3 bytes, and had 16'
cp data.old data
mv -f data.old data
touch -d '2020-01-01' data
printf 'more' >>data
came_back 'longer'
if [ "$(id -u)" != 0 ]; then
	chmod 000 data
	refused 'not readable' 'no-permission: fd 3'
	chmod 600 data
fi

echo 'Others in their place'
printf '0123456789ABCDEF' >other
WANTED=56789 came_back 'another file, as far in' --fd 3="$PWD/other"
printf '0123' >short
WANTED=0123 came_back 'a shorter one, from its beginning' --fd 3="$PWD/short"
WANTED=vwxyz came_back 'the own one' --fd 3=inherit 3<<<'vwxyz'
printf 'kept ' >other.log
LOG=other.log WANTED='kept fghij' came_back 'another log' --fd 4="$PWD/other.log"
cp "$started_log" reader.before
printf 'old ' >stdout
came_back 'another standard output' --fd 1="$PWD/stdout"
same 'what went there' "$(cat stdout)" 'old done'
cmp "$started_log" reader.before
refused 'no such file' "cannot open '/nowhere/file' as descriptor 3" --fd 3=/nowhere/file
refused 'no such output' 'creates no files' --fd 4="$PWD/not-there"
[ ! -e not-there ] || fail 'it was made all the same'
refused 'no such descriptor' 'had no such descriptor' --fd 9=/dev/null
refused 'not open here' 'it is not open here' --fd 4=inherit

echo 'A lock that somebody else holds'
cat >holder.py <<'END'
import fcntl, os, time
fcntl.lockf(os.open("log", os.O_RDWR), fcntl.LOCK_EX)
print("ready", flush=True)
time.sleep(1000)
END
reader_log=$started_log
start python3 holder.py
wait_until 20 grep -q ready "$started_log"
holder=$started
started_log=$reader_log
refused 'locked' "cannot lock '$PWD/log' as descriptor 4"
grep -q lslocks err || fail 'no remedy is named'
kill -9 "$holder"
wait "$holder" 2>/dev/null || true
came_back 'free again'

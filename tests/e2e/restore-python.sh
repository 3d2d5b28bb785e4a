#!/bin/bash
# python3 comes back in the middle of its work and ends it with the right result: threads, locks, timers, open files.
# timeout: 120
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"
. "$TESTS/lib-restore.sh"
. "$TESTS/lib-programs.sh"

need python3 jq
n=$(times 2 20)

cat >work.py <<'END'
import hashlib, os, queue, select, signal, socket, sys, threading, time

def chain(seed, count):
    h = b"%d" % seed
    for _ in range(count):
        h = hashlib.sha256(h).digest()
    return h.hex()

if len(sys.argv) > 1:
    print(chain(int(sys.argv[1]), int(sys.argv[2])))
    sys.exit()

finish = threading.Event()
said = []
def say(*words):
    said.append(" ".join(map(str, words)))

# A running computation in each of three threads.
def compute(seed):
    h, count = b"%d" % seed, 0
    while not finish.is_set():
        for _ in range(200):
            h = hashlib.sha256(h).digest()
        count += 200
        time.sleep(0.002)
    say("chain", seed, count, h.hex())

# A lock that is always held by one and wanted by others.
lock, held, turns = threading.Lock(), [0], [0, 0, 0]
def contend(i):
    while not finish.is_set():
        with lock:
            held[0] += 1
            if held[0] != 1:
                say("wrong: two hold the lock")
            time.sleep(0.01)
            held[0] -= 1
            turns[i] += 1
        time.sleep(0.001)

# What one hands to the other.
q, received = queue.Queue(10), [0]
def produce():
    i = 0
    while not finish.is_set():
        i += 1
        q.put(i)
        time.sleep(0.005)
    q.put(None)
def consume():
    want = 1
    while (i := q.get()) is not None:
        if i != want:
            say("wrong: received", i, "instead of", want)
        want += 1
        received[0] = i

# Times: none early, none lost.
def timer_of(due):
    def fired():
        late = time.monotonic() - due
        say("timer", "wrong: early by" if late < -0.001 else "fired", late)
    return fired
def arm():
    due = time.monotonic() + 1
    threading.Timer(1, timer_of(due)).start()
def sleeper():
    while not finish.is_set():
        t = time.monotonic()
        time.sleep(0.7)
        if time.monotonic() < t + 0.7:
            say("wrong: slept", time.monotonic() - t)
alarms = [0]
def on_alarm(sig, frame):
    alarms[0] += 1
signal.signal(signal.SIGALRM, on_alarm)
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)

# Sockets and files that are open.
left, right = socket.socketpair()
def echo():
    while data := right.recv(100):
        right.sendall(data)
reading = open("lines")
writing = open("written", "a", buffering=1)
threads = [threading.Thread(target=compute, args=(s,)) for s in (1, 2, 3)]
threads += [threading.Thread(target=contend, args=(i,)) for i in range(3)]
threads += [threading.Thread(target=f) for f in (produce, consume, sleeper)]
threading.Thread(target=echo, daemon=True).start()
for t in threads:
    t.start()

poll, line = select.epoll(), 0
poll.register(left, select.EPOLLIN)
last, wall = time.monotonic(), time.time()
while not os.path.exists("finish"):
    if os.path.exists("arm"):
        os.unlink("arm")
        arm()
    line += 1
    text = reading.readline()
    if text != "line %d\n" % line:
        say("wrong: read", repr(text), "instead of", line)
    writing.write(text)
    left.sendall(b"%d" % line)
    if not poll.poll(60) or left.recv(100) != b"%d" % line:
        say("wrong: no echo")
    now = time.monotonic()
    if now < last or time.time() < wall:
        say("wrong: time went back")
    last, wall = now, time.time()
    if line == 1:
        print("ready", flush=True)
    time.sleep(0.01)
finish.set()
for t in threads:
    t.join()
if min(turns) < 10 or received[0] < 10 or alarms[0] < 10:
    say("wrong: somebody did nothing:", turns, received, alarms)
before = alarms[0]
while alarms[0] < before + 3:
    time.sleep(0.01)
say("lines", line)
print("\n".join(said + ["end"]), flush=True)
END

seq -f 'line %g' 1000000 >lines
begin python prlimit --as=2147483648 python3 work.py
wait_until 60 grep -q ready python.log
for ((g = 1; g <= n; g++)); do
	: >arm
	wait_until 20 test ! -e arm
	again
	sleep 0.2
done
wait_until 20 test -s written
sleep 1.5
: >finish
wait_until 60 grep -q '^end' python.log
killed "$pid"
says_not python.log wrong
says_not python.log Traceback
same 'timers' "$(grep -c '^timer fired' python.log)" "$n"
while read -r _ seed count hash; do
	same "chain $seed of $count" "$(python3 work.py "$seed" "$count")" "$hash"
done < <(grep '^chain' python.log)
same 'chains' "$(grep -c '^chain' python.log)" 3
same 'lines' "$(grep -c . written)" "$(sed -n 's/^lines //p' python.log)"
cmp -n "$(stat -c %s written)" lines written
figures python3

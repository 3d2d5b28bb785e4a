#!/bin/bash
# python3 with threads, node and java are taken five times each and compute on, without an error of their own.
# timeout: 240
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

need jq python3 node java javac
n=$(times 5 20)

# Each appends sums that only undisturbed memory gives, and says "wrong" if not.
cat >work.py <<'END'
import hashlib, sys, threading, time
def work(seed):
    want = None
    while True:
        data = bytearray((seed + i) & 255 for i in range(100000))
        words = {str(i): i * seed for i in range(20000)}
        got = hashlib.sha256(data).hexdigest() + str(sum(words.values()))
        if want not in (None, got):
            sys.stdout.write("wrong\n")
        want = got
        sys.stdout.write("tick\n"); sys.stdout.flush()
for t in range(4):
    threading.Thread(target=work, args=(t + 1,), daemon=True).start()
sys.stdout.write("ready\n"); sys.stdout.flush()
while True:
    time.sleep(1)
END
cat >work.js <<'END'
const crypto = require('crypto');
const { Worker, isMainThread } = require('worker_threads');
function round(seed) {
	const big = [];
	for (let i = 0; i < 200000; i++) big.push({ key: 'k' + i, value: i * seed });
	const buf = Buffer.alloc(1 << 20, seed);
	return crypto.createHash('sha256').update(buf).digest('hex') +
		big.reduce((a, b) => a + b.value, 0);
}
let want = null;
function work() {
	const got = round(7);
	if (want !== null && got !== want) console.log('wrong');
	want = got;
	console.log('tick');
	setTimeout(work, 1);
}
if (isMainThread) { new Worker(__filename); console.log('ready'); }
work();
END
cat >Work.java <<'END'
import java.util.*;
public class Work {
	static long round(int seed) {
		Map<Integer, byte[]> m = new HashMap<>();
		long sum = 0;
		for (int i = 0; i < 20000; i++) { byte[] b = new byte[512]; Arrays.fill(b, (byte) (i * seed)); m.put(i, b); }
		for (Map.Entry<Integer, byte[]> e : m.entrySet()) sum += e.getKey() * 31L + e.getValue()[511];
		return sum;
	}
	public static void main(String[] args) throws Exception {
		for (int t = 1; t <= 3; t++) {
			final int seed = t;
			new Thread(() -> {
				long want = round(seed);
				for (;;) { System.out.println(round(seed) == want ? "tick" : "wrong"); }
			}).start();
		}
		System.out.println("ready");
	}
}
END

# runtime NAME COMMAND...: n snapshots of it.
runtime() {
	local name=$1 pid i ticks before pauses=()
	shift
	"$@" >"$name.log" 2>&1 </dev/null &
	pid=$!
	adopt $pid
	wait_until 60 grep -q ready "$name.log"
	wait_until 60 grep -q tick "$name.log"
	before=$(sed -n 's/^TracerPid:\t//p' "/proc/$pid/status")
	for ((i = 0; i < n; i++)); do
		usnap snapshot -q "$pid" -o "$name.usnap" || fail "$name: snapshot $i"
		usnap verify -q "$name.usnap"
		pauses+=($(($(stat_of "$name.usnap" pause_ns) / 1000)))
		ticks=$(grep -c tick "$name.log")
		wait_until 30 eval "[ \$(grep -c tick $name.log) -gt $((ticks + 1)) ]"
	done
	kill -0 $pid || fail "$name ended: $(tail "$name.log")"
	same "tracer of $name" "$(sed -n 's/^TracerPid:\t//p' "/proc/$pid/status")" "$before"
	grep '^VmFlags' "/proc/$pid/smaps" | grep -qwE 'um|uw|ui' && fail "$name is still registered"
	says_not "$name.log" wrong
	grep -v '^tick$\|^ready$' "$name.log" && fail "$name complains"
	echo "$name: pauses in us: ${pauses[*]}, torn $(stat_of "$name.usnap" torn)"
	kill -KILL $pid
	wait $pid 2>/dev/null || true
	rm "$name.usnap"
}

runtime python python3 work.py
runtime node node work.js
javac Work.java
runtime java java -Xmx256m Work

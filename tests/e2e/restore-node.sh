#!/bin/bash
# node comes back with its HTTP server, its heap, its worker and its pool; timers fire, none early.
# timeout: 120
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"
. "$TESTS/lib-restore.sh"
. "$TESTS/lib-programs.sh"

need node python3 jq
n=$(times 1 20)

cat >work.js <<'END'
const http = require('http'), crypto = require('crypto'), fs = require('fs');
const { Worker, isMainThread, parentPort } = require('worker_threads');
function round(seed) {
	const big = [];
	for (let i = 0; i < 20000; i++) big.push({ key: 'k' + i, value: i * seed });
	return crypto.createHash('sha256').update(Buffer.alloc(1 << 18, seed)).digest('hex') +
		big.reduce((a, b) => a + b.value, 0);
}
if (!isMainThread) {
	let h = 'seed', count = 0;
	setInterval(() => {
		for (let i = 0; i < 100; i++) h = crypto.createHash('sha256').update(h).digest('hex');
		count += 100;
		parentPort.postMessage({ h, count });
	}, 5);
} else {
	const state = { requests: 0, ticks: 0, files: 0, fired: 0, wrong: [], worker: null };
	const kept = new Map(), want = round(7);
	for (let i = 0; i < 50000; i++) kept.set('key' + i, { i, text: 'v'.repeat(i % 50) });
	setInterval(() => { state.ticks++; if (round(7) !== want) state.wrong.push('round'); }, 20);
	// The threads of the pool.
	const read = () => fs.readFile(__filename, 'utf8', (e, text) => {
		if (e || !text.startsWith('const http')) state.wrong.push('file ' + e);
		state.files++;
		crypto.pbkdf2('secret', 'salt', 1000, 32, 'sha256', () => setTimeout(read, 5));
	});
	read();
	new Worker(__filename).on('message', (m) => { state.worker = m; });
	http.createServer((q, a) => {
		state.requests++;
		if (q.url === '/arm') {
			const due = process.hrtime.bigint() + 1000000000n;
			setTimeout(() => {
				if (process.hrtime.bigint() < due - 2000000n) state.wrong.push('early');
				state.fired++;
			}, 1000);
		}
		for (let i = 0; i < 50000; i += 997)
			if (kept.get('key' + i).text.length !== i % 50) state.wrong.push('kept ' + i);
		a.end(JSON.stringify(state));
	}).listen(+process.argv[2], '127.0.0.1', () => console.log('ready'));
}
END

port=$(free_port)
begin node node --max-old-space-size=256 work.js "$port"
wait_until 60 grep -q ready node.log
for ((g = 1; g <= n; g++)); do
	http "$port" arm >/dev/null
	requests=$(field requests)
	again
	same "requests of generation $g" "$(field requests)" $((requests + 1))
	ticks=$(field ticks) files=$(field files) count=$(field worker.count)
	wait_until 20 _more ticks "$ticks"
	wait_until 20 _more files "$files"
	wait_until 20 _more worker.count "$count"
done
wait_until 20 _more fired $((n - 1))
same 'wrong' "$(http "$port" state | jq -c .wrong)" '[]'
http "$port" state | jq -r '.worker | "\(.count) \(.h)"' >worker
read -r count hash <worker
cat >chain.py <<'END'
import hashlib, sys
h = "seed"
for _ in range(int(sys.argv[1])):
    h = hashlib.sha256(h.encode()).hexdigest()
print(h)
END
same 'chain of the worker' "$(python3 chain.py "$count")" "$hash"
kill -TERM "$pid"
killed "$pid"
figures node

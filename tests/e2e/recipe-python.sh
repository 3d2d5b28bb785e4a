#!/bin/bash
# The recipe for a service in Python: by the line of its unit it goes on counting after a crash.
# timeout: 90
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"
. "$TESTS/lib-agent.sh"
. "$TESTS/lib-programs.sh"
. "$TESTS/lib-recipe.sh"

need python3 jq
port=$(free_port)
cat >counter.py <<END
import http.server, json, os, signal, sys, threading, time
starts, requests, ticks = 1, 0, 0
lock = threading.Lock()
seen = {}

def tick():
    global ticks
    while True:
        ticks += 1
        time.sleep(0.01)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global requests
        with lock:
            requests += 1
            seen[self.path] = seen.get(self.path, 0) + 1
            body = json.dumps({"requests": requests, "ticks": ticks, "paths": len(seen)}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass

print("started", flush=True)
signal.signal(signal.SIGTERM, lambda *a: os._exit(0))
threading.Thread(target=tick, daemon=True).start()
http.server.ThreadingHTTPServer(("127.0.0.1", $port), Handler).serve_forever()
END
recipe python-counter.service "s|/opt/counter/counter.py|$PWD/counter.py|"

up counter
wait_until 20 http "$port" state
agent_in "$(server python3)" || fail 'the agent is not in the service'
for ((g = 1; g <= $(times 2 10); g++)); do
	for i in 1 2 3 4 5; do http "$port" "path-$g-$i" >/dev/null; done
	before=$(field requests)
	imaged counter
	crash python3
	up counter
	wait_until 30 http "$port" state
	[ "$(field requests)" -gt "$before" ] || fail "generation $g: requests are forgotten"
	ticks=$(field ticks)
	wait_until 10 _more ticks "$ticks"
done
same 'starts' "$(grep -c started counter.log)" 1
down counter

#!/bin/bash
# On a machine that was started at another time, the clocks of the process go on from where they were.
# timeout: 120
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-restore.sh"
need python3 unshare jq
unshare --mount --time true 2>/dev/null || skip "mount or time namespaces cannot be made here"

cat >clocks.py <<'END'
import os, signal, sys, time
def say():
    # The three at one moment.
    text = "%015.3f %015.3f %015.3f\n" % (time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME), time.time())
    # At once and in place: T0 may find it open, and the image is restored more than once.
    f = os.open("clocks", os.O_WRONLY | os.O_CREAT, 0o644)
    os.pwrite(f, text.encode(), 0)
    os.close(f)
signal.signal(signal.SIGALRM, lambda *a: open("alarm", "w").write("%.3f" % time.monotonic()))
start = time.monotonic()
signal.setitimer(signal.ITIMER_REAL, float(sys.argv[1]))
with open("start", "w") as f: f.write("%.3f\n" % start)
while True:
    say()
    time.sleep(0.02)
END
# Another machine: one with another boot_id. $1: how long it has been up.
uuidgen >boot_id 2>/dev/null || echo 01234567-89ab-cdef-0123-456789abcdef >boot_id
elsewhere() {
	unshare --mount --propagation private bash -c \
		'mount --bind boot_id /proc/sys/kernel/random/boot_id && exec "$@"' - "$@"
}
# What the restored process has said: it was the last thing of the one before.
moment() { seen=$(cat clocks); }
_fresh() { [ "$(cat clocks)" != "$seen" ]; }
clock() { cut -d ' ' -f "$1" clocks; }
near() { awk -v a="$2" -v b="$3" -v by="$4" 'BEGIN { d = a - b; exit !(d < by && d > -by) }' || fail "$1: $2 instead of $3"; }

# taken UPTIME: the image of a process on a machine that was up for so long.
taken() {
	rm -f clocks start alarm image.usnap
	unshare --time --monotonic "$1" --boottime "$(($1 + 50))" --fork --kill-child bash -c '
		setsid python3 clocks.py 2 >log 2>&1 </dev/null &
		until [ -s clocks ]; do sleep 0.02; done
		"$0" snapshot -q --kill $! -o image.usnap' "$UFFD_SNAP" 2>/dev/null
	before=$(cat clocks)
}

# back OPTION...: what the clocks have to say.
back() {
	moment
	sleep 0.5
	process=$(elsewhere "$UFFD_SNAP" restore -q --detach "$@" image.usnap 2>err) || fail "restore: $(cat err)"
	adopt "$process"
	wait_until 10 _fresh
	read -r mono boot wall <clocks
	read -r mono0 boot0 wall0 <<<"$before"
	passed=$(awk -v a="$wall" -v b="$wall0" 'BEGIN { printf "%.3f", a - b }')
	near "monotonic clock" "$mono" "$(awk -v a="$mono0" -v p="$passed" 'BEGIN { printf "%.3f", a + p }')" 0.3
	near "boottime clock" "$boot" "$(awk -v a="$boot0" -v p="$passed" 'BEGIN { printf "%.3f", a + p }')" 0.3
	# A timer has what was left of it at T0 to run.
	wait_until 10 test -s alarm
	kill -KILL "$process"
	wait_until 5 _gone "$process"
}

# Longer up than this one, so that the clocks would go back; and shorter.
for uptime in 5000000 -1; do
	[ $uptime -gt 0 ] || uptime=-$(($(cut -d . -f 1 /proc/uptime) / 2))
	taken "$uptime"
	back
	rm -f alarm
	back --pid-namespace
done

# Whoever looks from within such clocks sees other times of start, and takes nobody for another for that.
start env LD_PRELOAD="$AGENT" UFFD_SNAP_NAME=outside sleep 1000
outside=$started
_named() { usnap ps --json | jq -e --arg n "$1" --argjson p "$2" 'any(.. | objects; .name? == $n and .pid? == $p)' >/dev/null; }
wait_until 10 _named outside "$outside"
for uptime in 5000000 -1; do
	[ $uptime -gt 0 ] || uptime=-$(($(cut -d . -f 1 /proc/uptime) / 2))
	unshare --time --monotonic "$uptime" --boottime "$uptime" --fork "$UFFD_SNAP" ps --json >seen.json
	jq -e --argjson p "$outside" 'any(.. | objects; .name? == "outside" and .pid? == $p)' seen.json >/dev/null ||
		fail "it has lost its name, from clocks off by $uptime s: $(cat seen.json)"
	_named outside "$outside" || fail "it has lost its name, outside"
done
# And one that was restored to clocks of its own has its name outside.
unshare --time --monotonic 5000000 --boottime 5000000 --fork --kill-child bash -c '
	LD_PRELOAD=$AGENT UFFD_SNAP_NAME=inside setsid sleep 1000 >/dev/null 2>&1 </dev/null &
	until "$0" ps --json | grep -q inside; do sleep 0.02; done
	"$0" snapshot -q --kill $! -o image.usnap' "$UFFD_SNAP" 2>err || fail "snapshot in a time namespace: $(cat err)"
process=$(elsewhere "$UFFD_SNAP" restore -q --detach image.usnap 2>err) || fail "restore: $(cat err)"
adopt "$process"
for _ in 1 2; do
	_named inside "$process" || fail "the restored process has lost its name: $(usnap ps --json)"
done
_named outside "$outside" || fail "another has lost its name"
kill -KILL "$process" "$outside"

# Who looks after itself does so there, too.
mkdir store
unshare --time --monotonic 5000000 --boottime 5000000 --fork --kill-child env LD_PRELOAD="$AGENT" \
	UFFD_SNAP_NAME=itself UFFD_SNAP_EVERY=1s UFFD_SNAP_STORE="$PWD/store" PATH="$B:$PATH" sleep 1000 2>err &
adopt $!
_taken() { [ "$(usnap list -q --store "$PWD/store" itself 2>/dev/null | wc -l)" -ge 1 ]; }
wait_until 20 _taken
kill -KILL $!

# A second generation, on the same machine.
taken 5000000
moment
process=$(elsewhere "$UFFD_SNAP" restore -q --detach image.usnap)
adopt "$process"
wait_until 10 _fresh
rm -f image.usnap alarm
usnap snapshot -q --kill "$process" -o image.usnap
before=$(cat clocks)
moment
process=$(usnap restore -q --detach image.usnap)
adopt "$process"
wait_until 10 _fresh
near 'clock of the second generation' "$(clock 1)" "$(cut -d ' ' -f 1 <<<"$before")" 30
kill -KILL "$process"

# Without the right to it, that is refused, and can be accepted.
taken 5000000
dry() { elsewhere setpriv --bounding-set -sys_time "$UFFD_SNAP" restore --dry-run --json "$@" image.usnap; }
exits 1 dry
jq -r '.problems[] | select(.severity == "refuse") | .what' out >kinds
grep -qx clocks kinds || fail "refused for $(cat kinds)"
# The bounding set is the process's, and cannot come back either.
exits 0 dry --ignore clocks --ignore credentials

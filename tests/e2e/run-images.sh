#!/bin/bash
# run brings back the newest image that is whole, whatever the clock says and whatever became of others; where there is one, nothing is begun anew.
# timeout: 120
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-restore.sh"

need jq python3
export UFFD_SNAP_STORE=$PWD/store

cat >counts.py <<'END'
import os, time
print("begin", file=open("begun", "a"), flush=True)
n = 0
while not os.path.exists("end"):
    n += 1
    with open("count", "w") as f: f.write("%d\n" % n)
    time.sleep(0.01)
os._exit(1)
END

_counts() { [ "$(cat count 2>/dev/null || echo 0)" -ge "$1" ]; }

begin() {
	rm -rf store count end
	: >begun
	start python3 counts.py
	# shellcheck disable=SC2154 # of lib.sh
	program=$started
}

# taken [OPTION]...: one more image.
taken() {
	wait_until 20 _counts $(($(cat count 2>/dev/null || echo 0) + 3))
	usnap snapshot -q --name counts "$@" "$program"
}

finish() {
	kill -KILL "$program" 2>/dev/null
	wait "$program" 2>/dev/null || true
}

# The Nth oldest.
file_of() { find store/counts -name '*.usnap' | sort | sed -n "$1p"; }
id_of() { file_of "$1" | sed 's/.*-\(.*\)\.usnap/\1/'; }

_brought_back() { [ "$(grep -c "brought back 'counts@.* as process" run.err)" -ge "$1" ]; }
supervise() {
	"$@" "$UFFD_SNAP" run --name counts --restore-or-start "${restart[@]-"--quiet"}" -- python3 counts.py \
		2>run.err </dev/null &
	run=$!
	adopt $run
}

# back N [COMMAND]...: run brings back image N.
back() {
	local want last
	want=$(id_of "$1")
	shift
	restart=(--store "$PWD/store")
	supervise "$@"
	wait_until 20 _brought_back 1
	last=$(sed -n "s/.*brought back '\(.*\)' as process.*/\1/p" run.err | tail -n 1)
	kept=$(usnap info --json "$last" 2>&1 | jq -r .snapshot.id || true)
	same 'image' "$kept" "$want"
	touch end
	wait $run || true
	rm end
	same 'starts of the program' "$(wc -l <begun)" 1
}

echo 'The newest'
begin
taken
taken
finish
back 2

echo 'Zeros where the newest was'
newest=$(file_of 2)
head -c "$(stat -c %s "$newest")" /dev/zero >zeros
cp zeros "$newest"
exits 3 usnap list counts
back 1
says run.err 'not an uffd-snap image'

echo 'Another image in the place of one that is needed'
begin
taken --full-every 1
taken --full-every 1
taken
finish
cp "$(file_of 1)" "$(file_of 2)"
back 1
says run.err "is image $(id_of 1)"

echo 'A program that ends at once, and an older image that is damaged'
begin
taken --full-every 1
taken --full-every 1
finish
oldest=$(file_of 1)
printf XXXXXXXXXXXXXXXX | dd of="$oldest" bs=1 seek=$(($(stat -c %s "$oldest") / 2)) conv=notrunc status=none
touch end
restart=(--restart)
supervise
wait_until 60 _brought_back 3
kill -TERM $run 2>/dev/null || true
wait $run || true
same 'starts of the program' "$(wc -l <begun)" 1
says run.err 'going back to an older image'
says run.err 'skipped: '

faketime=$(find /usr/lib* -name libfaketimeMT.so.1 2>/dev/null | head -n 1)
[ -n "$faketime" ] || skip 'libfaketime is not installed'
at() {
	local when=$1
	shift
	LD_PRELOAD=$faketime DONT_FAKE_MONOTONIC=1 NO_FAKE_STAT=1 FAKETIME=$when "$@"
}

echo 'A clock that is behind after a start of the machine'
begin
wait_until 20 _counts 3
at -2h "$UFFD_SNAP" snapshot -q --name counts "$program"
taken
taken
finish
same 'latest' "$(at -1h "$UFFD_SNAP" info --json counts | jq -r .snapshot.id)" "$(id_of 3)"
back 3 at -1h

echo 'One from the future'
begin
wait_until 20 _counts 3
at +2h "$UFFD_SNAP" snapshot -q --name counts "$program"
taken
finish
same 'latest' "$(usnap info --json counts | jq -r .snapshot.id)" "$(id_of 1)"
back 1
says run.err 'of times later than now'
usnap prune -q --max-size 1 counts 2>err || true
same 'images that no size removes' "$(usnap list -q counts | wc -l)" 2

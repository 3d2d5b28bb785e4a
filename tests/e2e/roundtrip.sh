#!/bin/bash
# A snapshot is taken, verified, described and read; its bytes are those of the process; file and process are as they should be.
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

need jq cmp
work_start --size 16M --statics --clock none
pid=$work_pid
before=$(outside "$pid")
threads=$(threads_of "$pid")

# Quiet is quiet; otherwise there is a summary.
exits 0 usnap snapshot -q "$pid" -o a.usnap
same stdout "$(cat out)" ''
same stderr "$(cat err)" ''
same mode "$(stat -c %a a.usnap)" 600
consistent a.usnap
exits 0 usnap snapshot -o b.usnap "$pid"
[ -s out ] || fail "no summary"
exits 0 usnap snapshot "$pid" --json -o c.usnap
jq -e . out >/dev/null || fail "not JSON: $(cat out)"
untouched "$pid" "$before"
same threads "$(threads_of "$pid")" "$threads"

# What there was is replaced, and its mode with it.
echo old >d.usnap
chmod 644 d.usnap
usnap snapshot -q "$pid" -o d.usnap
same mode "$(stat -c %a d.usnap)" 600
consistent d.usnap

# A pipe carries it.
usnap snapshot -q "$pid" -o - | cat >e.usnap
consistent e.usnap
exits 0 usnap verify a.usnap b.usnap c.usnap d.usnap e.usnap

# Every byte, while the process stands still: by our will, as its witness does.
kill -STOP "$pid" "$witness"
usnap snapshot -q "$pid" -o still.usnap
same 'state of a stopped process' "$(sed -n 's/^State:\t\(.\).*/\1/p' "/proc/$pid/status")" T
regions=0
while read -r range perms _ _ inode name; do
	case "$perms $inode" in
	rw?p\ 0 | rw-s\ *) ;;
	*) continue ;;
	esac
	from=$((16#${range%-*})) to=$((16#${range#*-}))
	len=$((to - from))
	[ $len -le $((64 << 20)) ] || continue
	usnap read still.usnap $from $len >image.bytes
	dd if="/proc/$pid/mem" of=process.bytes bs=4096 skip=$((from / 4096)) \
		count=$((len / 4096)) 2>/dev/null
	cmp image.bytes process.bytes || fail "$range $name differs"
	regions=$((regions + 1))
done <"/proc/$pid/maps"
[ $regions -ge 10 ] || fail "only $regions regions compared"
kill -CONT "$witness" "$pid"

# Who it was.
usnap info --json a.usnap >info.json
jq -e --argjson pid "$pid" '[.. | .pid? // empty] | index($pid) != null' info.json >/dev/null ||
	fail "info does not know the pid"
exits 0 usnap info a.usnap
says out cutwork
for what in --maps --threads --files; do
	exits 0 usnap info $what a.usnap
	[ -s out ] || fail "info $what shows nothing"
done
same 'threads in the image' "$(tar tf a.usnap | grep -c '^threads/.*\.notes$')" \
	"$(find "/proc/$pid/task" -mindepth 1 -maxdepth 1 | wc -l)"

# An address that is not mapped is no zero.
exits 1 usnap read a.usnap 0x1000 8
says err 'cannot '
work_end

# --kill: stopped at T0, ended when the image is there.
work_start --size 16M
usnap snapshot -q --kill "$work_pid" -o killed.usnap
consistent killed.usnap
status=0
wait "$work_pid" || status=$?
same 'exit status of the killed process' $status 137
# Without an image, it runs on.
work_start --size 16M
exits 1 usnap snapshot -q --kill "$work_pid" -o /nonexistent/killed.usnap
work_end

# Nor is it ended for an image that no restore would take.
start sh -c 'sleep 1000 & echo $!; wait'
mother=$started
wait_until 20 test -s "$started_log"
child=$(cat "$started_log")
adopt "$child"
exits 1 usnap snapshot -q --kill "$mother" -o killed.usnap.2
says err "children: it has children: $child"
says err 'hint: --ignore children'
[ ! -e killed.usnap.2 ] || fail "there is an image of a process that was not to be ended"
kill -0 "$mother"
exits 2 usnap snapshot -q --kill --ignore offspring "$mother" -o killed.usnap.2
exits 2 usnap snapshot -q --ignore children "$mother" -o killed.usnap.2
exits 0 usnap snapshot -q --kill --ignore children "$mother" -o killed.usnap.2
status=0
wait "$mother" || status=$?
same 'exit status of the killed mother' $status 137
exits 1 usnap restore -q --detach killed.usnap.2
exits 0 usnap restore -q --detach --ignore children killed.usnap.2
adopt "$(cat out)"

# Moved through a pipe.
work_start --size 16M
before=$work_pid
usnap snapshot -q --kill "$work_pid" -o - | usnap restore -q --detach - >moved
work_pid=$(cat moved)
adopt "$work_pid"
same 'number of the moved process' "$work_pid" "$before"
usnap snapshot -q "$work_pid" -o moved.usnap
consistent moved.usnap
kill -TERM "$work_pid"
wait_until 60 grep -qx ok cutwork.out

#!/bin/bash
# What was written into the code of a process, or another clean mapping of a file, is in the image, and in the restored process.
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

need gdb jq
start_workload witness
pid=$started
# text_of PID [FUNCTION]: the first byte of a function that the process does not call.
text_of() { gdb -nx -batch -p "$1" -ex "x/1xb ${2:-l64a}" 2>/dev/null | sed -n 's/^\(0x[0-9a-f]*\).*:\t\(0x..\)$/\1 \2/p'; }
read -r addr before <<<"$(text_of "$pid")"
[ -n "$addr" ] || skip 'gdb does not find l64a() in the process'
usnap snapshot -q "$pid" -o before.usnap
gdb -nx -batch -p "$pid" -ex 'set *(unsigned char *)l64a = 0xc3' >gdb.out 2>&1
same 'the text' "$(text_of "$pid")" "$addr 0xc3"
[ "$before" != 0xc3 ] || fail 'nothing was changed'
usnap snapshot -q "$pid" -o after.usnap
usnap verify -q after.usnap
same 'the byte in the image' "$(usnap read after.usnap "$addr" 1 | od -An -tx1 | tr -d ' ')" c3

kill -KILL "$pid"
wait "$pid" 2>/dev/null || true
usnap restore -q --detach after.usnap >restored
pid=$(cat restored)
adopt "$pid"
same 'the text of the restored process' "$(text_of "$pid")" "$addr 0xc3"
kill -KILL "$pid"

# Written right before T0, when it was known what is the file's.
start_workload witness
read -r late _ <<<"$(text_of "$started" putpwent)"
"${gdb_snapshot[@]}" -ex 'tbreak freeze' -ex run \
	-ex "shell printf '\\303' | dd of=/proc/$started/mem bs=1 seek=$((late)) conv=notrunc status=none" \
	-ex continue --args "$UFFD_SNAP" snapshot -q "$started" -o late.usnap >gdb.out 2>&1 </dev/null
same 'the late byte in the image' "$(usnap read late.usnap "$late" 1 | od -An -tx1 | tr -d ' ')" c3

# given_up MIB BREAK: written to by the process itself, before BREAK, and given up right after T0.
given_up() {
	start_workload cleanmap "$PWD/clean.$1" $(($1 << 20))
	addr=$(sed -n 's/^ready //p' cleanmap.out)
	# Its faults are to be served while one thread stands still.
	cat >commands <<-END
		set non-stop on
		set breakpoint pending on
		tbreak $2
		tbreak regions_check_unseen
		run
		shell kill -USR1 $started; for i in \$(seq 500); do grep -q written cleanmap.out && break; sleep 0.02; done
		continue
		shell kill -USR2 $started; for i in \$(seq 500); do grep -q given cleanmap.out && break; sleep 0.02; done
		continue
	END
	"${gdb_snapshot[@]}" -x commands --args "$UFFD_SNAP" snapshot -q "$started" -o given.usnap >gdb.out 2>&1 </dev/null
	same "$1 MiB: what the process did" "$(tail -n 2 cleanmap.out | tr '\n' ' ')" 'written given up '
	same "$1 MiB: what was given up, in the image" "$(usnap read given.usnap "$addr" 1 | od -An -tx1 | tr -d ' ')" 09
	kill -KILL "$started"
}
given_up 1 freeze
given_up 20 regions_note_own

# A guard marker in such a mapping is nothing written.
start_workload cleanmap "$PWD/clean.guard" $((1 << 20)) guard
if ! grep -q '^ready 0' cleanmap.out; then
	usnap snapshot -q "$started" -o guard.usnap
	same 'attempts that did not hold' "$(stat_of guard.usnap torn)" 0
fi
start_workload cleanmap "$PWD/clean.guard" $((20 << 20)) guard
if ! grep -q '^ready 0' cleanmap.out; then
	usnap snapshot -q "$started" -o guard.usnap
	same 'attempts that did not hold' "$(stat_of guard.usnap torn)" 0
fi

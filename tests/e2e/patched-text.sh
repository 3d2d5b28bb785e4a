#!/bin/bash
# What a debugger has written into the code of a process is in the image, and in the restored process.
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

# Written right before T0, when it was known what is the file's: the attempt counts for nothing.
start_workload witness
read -r late _ <<<"$(text_of "$started" putpwent)"
gdb -nx -batch -ex 'set debuginfod enabled off' -ex 'tbreak freeze' -ex run \
	-ex "shell printf '\\303' | dd of=/proc/$started/mem bs=1 seek=$((late)) conv=notrunc status=none" \
	-ex continue --args "$UFFD_SNAP" snapshot -q "$started" -o late.usnap >gdb.out 2>&1 </dev/null
same 'attempts that did not hold' "$(stat_of late.usnap torn)" 1
same 'the late byte in the image' "$(usnap read late.usnap "$late" 1 | od -An -tx1 | tr -d ' ')" c3


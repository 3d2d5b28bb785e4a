#!/bin/bash
# Every flipped byte and every truncation is found by verify or makes no difference; no reader crashes or lies.
# timeout: 240
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

n=$(times 600 7000)
start_workload oddproc quiet
usnap snapshot -q "$started" -o small.usnap
work_start --size 1M --threads 2 --clock none
usnap snapshot -q "$work_pid" -o file.usnap
usnap snapshot -q "$work_pid" --level 9 -o - | cat >stream.usnap
work_end
seed=${SEED:-1}
for i in small file stream; do
	echo "$i.usnap: $(stat -c %s $i.usnap) bytes, seed $seed"
	"$CHECKERS/flipcheck" $i.usnap "$n" $((n / 10)) "$seed"
done

# As people see it.
size=$(stat -c %s small.usnap)
cp small.usnap bad.usnap
at=$((size / 2))
byte=$(od -An -t u1 -j $at -N 1 small.usnap)
# shellcheck disable=SC2059 # an octal escape
printf "\\$(printf %03o $((byte ^ 85)))" | dd of=bad.usnap bs=1 seek=$at conv=notrunc 2>/dev/null
exits 3 usnap verify bad.usnap
cat out err >both
says both 'bad.usnap'
exits 3 usnap verify small.usnap bad.usnap
head -c $at small.usnap >cut.usnap
exits 3 usnap verify cut.usnap
[ -s err ] || [ -s out ] || fail "nothing said about a truncated image"
: >empty.usnap
got=0
usnap verify empty.usnap 2>err || got=$?
[ $got -ne 0 ] || fail "an empty file is taken for an image"

#!/bin/bash
# gdb sees in a core file of an image what it sees in one that gcore made of the same process.
. "$(dirname "$0")/../lib.sh"

need gdb gcore readelf

start_workload coredemo
pid=$started
demo=$WORKLOADS/coredemo

gcore -o theirs "$pid" >gcore.log 2>&1
mv "theirs.$pid" theirs.core

# A fresh image and its core file.
ours() {
	rm -f demo.usnap
	usnap snapshot -q -o demo.usnap "$pid"
	usnap core demo.usnap
	mv "core.$pid" ours.core
}
usnap snapshot -q -o demo.usnap "$pid"
usnap core demo.usnap
[ -f "core.$pid" ] || fail "the core file has no name like gcore's: $(ls)"
same "mode" "$(stat -c %a "core.$pid")" 600
mv "core.$pid" ours.core

readelf -h -l -n ours.core >readelf.out 2>readelf.err
[ ! -s readelf.err ] || fail "readelf complains: $(cat readelf.err)"
says readelf.out 'NT_AUXV'
says readelf.out 'NT_FILE'
says readelf.out 'NT_SIGINFO'
says readelf.out 'NT_PRPSINFO'
same "NT_PRSTATUS" "$(grep -c NT_PRSTATUS readelf.out)" 4
same "NT_X86_XSTATE" "$(grep -c NT_X86_XSTATE readelf.out)" 4

cat >look.gdb <<'EOF'
set pagination off
set width 0
set print frame-arguments all
info threads
thread apply all bt
thread apply all info registers
thread apply all print $fs_base
thread apply all print/x $xmm0.v2_int64
thread apply all print/x $xmm15.v2_int64
thread apply all print/x $ymm7.v4_int64
thread apply all print $st0
thread apply all print $mxcsr
thread apply all print demo_tls
info auxv
print/x demo_data
print/x demo_data_kept
print demo_bss
print demo_rodata
print *demo_heap
print demo_data_far
x/64xb demo_data_far + 32768
x/64xb &demo_bss_zero
x/2s demo_shared + 4096
x/s demo_guard
x/4xb demo_sparse
x/4xb demo_sparse + 16777216 + 4
x/4xb demo_sparse + 8000000
x/4xb demo_sparse + 33554428
x/64xb $sp
x/64xb demo_heap
x/16xb main
x/8s *environ
thread 2
up 2
info locals
x/256xb $sp
EOF
# k0-k7: gdb before 14 reads them from the wrong place of a live process on AMD.
look() { gdb -nx -batch -x look.gdb "$demo" "$1" 2>&1 | sed "s|$1|CORE|; /^k[0-7] /d"; }
look theirs.core >theirs.txt
# It stands still, in system calls and in an endless loop of one instruction: both see the same
# process. But a thread that has been stopped once, to attach, may not be back in its system call
# yet when it is stopped again.
for ((i = 0; i < 5; i++)); do
	look ours.core >ours.txt
	diff theirs.txt ours.txt >look.diff && break
	ours
done
look ours.core >ours.txt
diff theirs.txt ours.txt || fail "gdb sees another process"

# Not only the same but right.
says ours.txt 'inner (depth=depth@entry=3'
says ours.txt 'apple ('
says ours.txt 'banana ('
says ours.txt 'cherry ('
says ours.txt '= 0x5eed'
says ours.txt '= 0xbadcafe'
says ours.txt 'on the heap'
says ours.txt 'behind the guard'
says ours.txt '"shared"'
says ours.txt '{0x1122334455667788, 0x0}'
says ours.txt '{0x99aabbccddeeff00, 0x0}'
! grep -qw avx2 /proc/cpuinfo ||
	says ours.txt '{0x99aabbccddeeff00, 0x99aabbccddeeff00, 0x99aabbccddeeff00, 0x99aabbccddeeff00}'
says ours.txt 'AT_PHDR'

# The mappings of files: ours may not know less. (gcore leaves out what
# coredump_filter excludes from the segments, not from the list.)
mappings() {
	gdb -nx -batch -c "$1" -ex 'info proc mappings' 2>/dev/null | awk '$1 ~ /^0x/ {print $1, $2, $4, $5}' | sort
}
mappings theirs.core >theirs.maps
mappings ours.core >ours.maps
[ -s theirs.maps ] || fail "gcore's core file lists no mapping"
diff theirs.maps ours.maps || fail "NT_FILE differs"

# .data is whole in the core file itself: nothing of it comes from elsewhere.
address=$(gdb -nx -batch -ex 'print &demo_data_kept' "$demo" "ours.core" 2>/dev/null |
	sed -n 's/.*(int \*) \(0x[0-9a-f]*\).*/\1/p' | tail -n 1)
[ -n "$address" ] || fail "no address of demo_data_kept"
gdb -nx -batch -ex 'set sysroot /nonexistent' -ex 'core-file ours.core' -ex "x/xw $address" \
	>alone.txt 2>&1
says alone.txt 0x0badcafe

# An argument that is no UTF-8 is no damage.
start bash -c 'exec -a "$1" sleep 300' - $'sl\xe9'
wait_until 20 grep -q sleep "/proc/$started/comm"
usnap snapshot -q -o latin.usnap "$started"
usnap core -o latin.core latin.usnap
LC_ALL=C grep -aq $'sl\xe9 300' latin.core || fail 'its arguments are not in the core file'

#!/bin/bash
# A program takes snapshots of itself, leaves out what it wants, is called back, and learns that it was restored.
# timeout: 120
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-restore.sh"
need jq python3 cc

agent=$B/libuffd-snap-agent.so
[ -e "$agent" ] || fail "there is no '$agent'"
export UFFD_SNAP_STORE=$PWD/store UFFD_SNAP_COMMAND=$UFFD_SNAP

# block_of_readme N: the Nth block of indented lines of the section.
block_of_readme() {
	awk -v want="$1" '
		/^## / { inside = /program takes of itself/ }
		!inside { next }
		/^    / { if (!on) n++; on = 1; if (n == want) print substr($0, 5); next }
		/^$/ { if (n == want && on) print ""; next }
		{ on = 0 }' "$TOP/README.md"
}

# lines FILE LINE...: these, and no others.
lines() {
	local file=$1
	shift
	diff <(printf '%s\n' "$@") "$file" || fail "'$file'"
}

# runs NAME COMMAND...: in a session of its own, output in NAME.out, to its end.
runs() {
	local name=$1 got=0
	shift
	: >"$name.out"
	setsid -w timeout -k 5 60 "$@" >>"$name.out" 2>"$name.err" </dev/null || got=$?
	[ $got -eq 0 ] || fail "$name ended with $got: $(cat "$name.out" "$name.err")"
	says_not "$name.out" wrong
}

# again NAME IMAGE: restored, to its end; what it prints is in NAME.again.
again() {
	local had got=0
	had=$(wc -l <"$1.out")
	timeout -k 5 60 "$UFFD_SNAP" restore -q "$2" >restore.out 2>restore.err </dev/null || got=$?
	# Somebody else may have got the number of a thread.
	if [ $got -ne 0 ] && grep -q 'is in use' restore.err; then
		got=0
		timeout -k 5 60 "$UFFD_SNAP" restore -q --pid-namespace "$2" >restore.out \
			2>restore.err </dev/null || got=$?
	fi
	[ $got -eq 0 ] || fail "restore of '$2': $(cat restore.err restore.out "$1.out")"
	tail -n "+$((had + 1))" "$1.out" >"$1.again"
	says_not "$1.again" wrong
}

# ---- the examples, as they are printed
block_of_manual libuffd-snap-agent.3 1 >again.c
cc -Wall -Wextra -Wno-unused-parameter -Werror -I"$TOP/include" -o again again.c \
	-L"$B" -Wl,-rpath,"$B" -luffd-snap-agent
runs c-manual ./again again.usnap
lines c-manual.out 'before the freeze' 'after the freeze' 'the image is again.usnap'
again c-manual again.usnap
lines c-manual.again 'restored' 'here again'

block_of_manual libuffd-snap-agent.3 2 >again.py
runs py-manual env LD_PRELOAD="$agent" python3 again.py python.usnap
lines py-manual.out 'before the freeze' 'after the freeze' 'the image is python.usnap'
again py-manual python.usnap
lines py-manual.again 'restored' 'here again'

block_of_readme 1 >saved.c
for how in -pie -no-pie; do
	cc -Wall -Wextra -Wno-unused-parameter -Werror -fPIE $how -I"$TOP/include" -o saved$how saved.c
	runs without ./saved$how saved.usnap
	lines without.out 'no agent'
	runs c-readme env LD_PRELOAD="$agent" ./saved$how saved$how.usnap
	lines c-readme.out saved
	again c-readme saved$how.usnap
	lines c-readme.again 'connecting again' 'brought back'
done

block_of_readme 2 >saved.py
runs py-readme env LD_PRELOAD="$agent" UFFD_SNAP_NAME=of-python python3 saved.py
lines py-readme.out saved
again py-readme of-python
lines py-readme.again 'brought back'

# ---- all of it
work() { runs "$1" env LD_PRELOAD="$agent" "$WORKLOADS/selfshot" "${@:2}"; }

work cycle cycle cycle.usnap
says cycle.out 'trail b1b2a1a2, path cycle.usnap'
usnap verify -q cycle.usnap
usnap info cycle.usnap >shown
grep -Eq '^excluded +8 ranges by the program, 16.0 MiB' shown || fail "$(cat shown)"
same 'ranges' "$(usnap info --json cycle.usnap | jq '.process.excluded | length')" 8
again cycle cycle.usnap
lines cycle.again 'trail b1b2r1, path ' 'end restored'

# One image continues another.
work cycle-next cycle cycle-next.usnap
again cycle-next cycle-next.usnap

for mode in threads nowait init; do
	work $mode $mode $mode.usnap
	lines $mode.out end
	again $mode $mode.usnap
	lines $mode.again 'end restored'
done

work closed closed closed.usnap
lines said 'result 0 '
again closed closed.usnap
lines said 'result 0 ' 'result 1 '

# Attempts that are torn are repeated, callbacks and all.
work torn torn torn.usnap
[ "$(sed -n 's/^attempts //p' torn.out)" -ge 2 ] || echo 'no attempt was torn'
again torn torn.usnap

# One after the other, each from the one before.
work generations generations first.usnap
again generations first.usnap
lines generations.again 'restored 1 times' 'taken again'
again generations second.usnap
lines generations.again 'restored 2 times' 'end restored'

# In a child of fork() it works as well.
work child child child.usnap
again child child.usnap
lines child.again 'end restored'

# Killed between the callbacks and the freeze.
cat >wrapper <<-END
	#!/bin/sh
	echo \$\$ >command.pid
	exec '$UFFD_SNAP' "\$@"
END
chmod +x wrapper
UFFD_SNAP_COMMAND=$PWD/wrapper work killed killed killed.usnap
lines killed.out 'cannot take a snapshot: uffd-snap was killed' end
again killed killed.usnap
lines killed.again 'end restored'

work fail fail fail.usnap
says fail.out "-125 cannot open directory 'missing/directory': No such file or directory"
says fail.out "-125 cannot open 'missing.usnap': No such file or directory"
says fail.out 'not done within 4 s; no image was written, it runs on'
says fail.out '-2 cannot find the command uffd-snap'
[ ! -e fail.usnap ] || fail "there is an image"

# ---- from outside
: >idle.out
LD_PRELOAD=$agent setsid "$WORKLOADS/selfshot" idle >>idle.out 2>idle.err </dev/null &
pid=$!
adopt $pid
wait_until 20 grep -q ready idle.out
read -r _ address bytes <idle.out
usnap snapshot -q $pid -o idle.usnap
usnap snapshot -q $pid -o idle-next.usnap --parent idle.usnap
usnap snapshot --json --kill $pid -o idle-kill.usnap >/dev/null
wait $pid 2>/dev/null || true
_pids=()
for image in idle idle-next idle-kill; do
	usnap read $image.usnap "$address" "$bytes" | tr -d '\0' | wc -c >left
	same "bytes left in $image" "$(cat left)" 0
	usnap verify -q $image.usnap
	same "excluded in $image" "$(usnap info --json $image.usnap | jq -c '.process.excluded | length')" 1
	same 'torn' "$(usnap info --json $image.usnap | jq '.stats.torn // .stats.attempts.torn // 0')" 0
	again idle $image.usnap
	tail -n 1 idle.again | grep -qx 'end restored' || fail "$(cat idle.again)"
done

# ---- in step by hand
exits 2 usnap snapshot $$ -o x.usnap --sync-fd x
exits 1 usnap snapshot $$ -o x.usnap --sync-fd 99
says err 'cannot use descriptor 99 of --sync-fd: Bad file descriptor'
exits 1 usnap snapshot $$ -o x.usnap --sync-fd 0
says err 'cannot use descriptor 0 of --sync-fd: it is not a socket'
sleep 1000 &
adopt $!
wait_until 20 grep -qx sleep "/proc/$!/comm"
cat >step.py <<-'END'
	import os, socket, subprocess, sys
	def run(answers, want):
	    ours, theirs = socket.socketpair()
	    child = subprocess.Popen([os.environ["UFFD_SNAP"], "snapshot", "-q", sys.argv[1], "-o", "step.usnap",
	                              "--sync-fd", str(theirs.fileno())],
	                             pass_fds=[theirs.fileno()], stderr=subprocess.PIPE)
	    theirs.close()
	    ours.settimeout(30)
	    lines = ours.makefile()
	    said = []
	    try:
	        for line in lines:
	            said.append(line.strip())
	            if said[-1] in ("attach", "freeze"):
	                if not answers:
	                    break
	                ours.sendall(answers.pop(0))
	    except ConnectionResetError:
	        pass
	    lines.close()
	    ours.close()
	    error = child.communicate()[1].decode()
	    print(" ".join(said), child.returncode, error.split(":")[-1].strip())
	run([b"go\n", b"go\n"], 0)
	os.unlink("step.usnap")
	run([b"go\n"], 1)
	run([], 1)
	run([b"no\n"], 1)
	run([b"go\n", b"g"*100], 1)
	assert not os.path.exists("step.usnap")
END
python3 step.py $! >stepped
lines stepped 'attach freeze frozen done 0 ' \
	'attach freeze 1 whoever is to be asked, on descriptor 4, is gone' \
	'attach 1 whoever is to be asked, on descriptor 4, is gone' \
	"attach 1 the answer on descriptor 4 is no 'go'" \
	"attach freeze 1 the answer on descriptor 4 is no 'go'"

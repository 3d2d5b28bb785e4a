#!/bin/bash
# The agent is no burden to programs that close all, daemonize, drop rights, chroot, have filters, sanitizers or other allocators.
# timeout: 120
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"
. "$TESTS/lib-agent.sh"

need gcc jq python3 setpriv
work=$WORKLOADS/compatwork

expected=7 unchanged plain "$work"
expected=7 unchanged closeall "$work" closeall
expected=7 unchanged filter "$work" filter

# daemon NAME VARIABLE...: it speaks to its file when nobody waits for it any more.
daemon() {
	local file=$PWD/daemon.$1
	shift
	env "$@" "$work" daemon "$file"
	wait_until 30 grep -qsE '^(end|wrong)' "$file"
}
daemon plain
daemon agent LD_PRELOAD="$AGENT" UFFD_SNAP_NAME=daemon
daemon all LD_PRELOAD="$AGENT" UFFD_SNAP_INHERIT=1
diff daemon.plain daemon.agent || fail 'the daemon says something else with the agent'
diff daemon.plain daemon.all || fail 'the daemon says something else with an inherited agent'

if [ "$(id -u)" -eq 0 ]; then
	expected=7 unchanged chroot "$work" chroot .
	# What they may read is as they found it: the library is read before.
	place=$(mktemp -d /var/tmp/usnap-test.XXXXXX)
	on_exit 'rm -rf "$place"'
	chmod 755 "$place"
	cp "$AGENT" "$place/agent.so"
	cp "$work" "$place/compatwork"
	cp "$work" "$place/setuid"
	chmod 755 "$place/agent.so" "$place/compatwork"
	chmod 4755 "$place/setuid"
	(
		AGENT=$place/agent.so
		expected=7 unchanged drop "$place/compatwork" drop 54324
		# The dynamic linker preloads nothing into it, and nobody complains.
		user=(setpriv --reuid 54324 --regid 54324 --clear-groups)
		expected=7 unchanged setuid "${user[@]}" "$place/setuid"
		"${user[@]}" env LD_PRELOAD="$AGENT" "$place/setuid" loop >setuid.out 2>&1 &
		pid=$!
		adopt $pid
		wait_until 20 grep -q ready setuid.out
		! agent_in $pid || fail 'the agent is in a set-user-ID program'
		kill $pid
		wait $pid
	)
	says "drop.agent.stdout" 'end'
fi

# Where no memory may become executable, libc's own calls are left as they are (systemd's
# MemoryDenyWriteExecute; prctl(PR_SET_MDWE)).
as_mdwe=(python3 -c 'import ctypes, os, sys
sys.exit(77) if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) else os.execvp(sys.argv[1], sys.argv[1:])')
mdwe=
if "${as_mdwe[@]}" true; then
	mdwe=1
	expected=7 unchanged 'no executable memory' "${as_mdwe[@]}" "$work"
fi

# ---- linked otherwise ---------------------------------------------------------------

brief=1
# built NAME OPTION...: compatwork, with these options.
built() {
	local name=$1
	shift
	gcc -D_GNU_SOURCE -O1 -o "$name" "$TESTS/workloads/compatwork.c" -pthread "$@" 2>"$name.log" || {
		echo "$name: cannot be built here: $(head -n 1 "$name.log")"
		return 1
	}
}

built now -Wl,-z,now -Wl,-z,relro -pie -fPIE && expected=7 unchanged 'bound at once' "$PWD/now"
built hash -Wl,--hash-style=sysv -no-pie && expected=7 unchanged 'no PIE' "$PWD/hash"
built static -static && expected=7 unchanged static "$PWD/static"
built static-pie -static-pie && expected=7 unchanged 'static PIE' "$PWD/static-pie"
built ubsan -fsanitize=undefined && expected=7 unchanged UBSan "$PWD/ubsan"

# ASan wants to be the first library that is preloaded, and says so.
export ASAN_OPTIONS=detect_leaks=0
if built asan -fsanitize=address; then
	asan=$(gcc -print-file-name=libasan.so)
	run_in work asan.agent env LD_PRELOAD="$AGENT" "$PWD/asan"
	says asan.agent.stderr 'ASan runtime does not come first'
	run_in work asan.plain env LD_PRELOAD="$asan" "$PWD/asan"
	run_in work asan.agent env LD_PRELOAD="$asan $AGENT" "$PWD/asan"
	alike 'ASan' asan.plain asan.agent
	same 'ASan' "$(cat asan.plain.status)" 'exit 7'
fi
if clang -D_GNU_SOURCE -fsanitize=address,undefined -o clang-asan "$TESTS/workloads/compatwork.c" \
	-pthread 2>clang.log; then
	expected=7 unchanged "clang's sanitizers" "$PWD/clang-asan"
fi
if built tsan -fsanitize=thread && ./tsan >tsan.log 2>&1 || grep -qx end tsan.log; then
	expected=7 unchanged TSan "$PWD/tsan"
fi

# ---- other allocators -----------------------------------------------------------------

for name in libjemalloc.so.2 libtcmalloc_minimal.so.4 libmimalloc.so.2; do
	lib=$(library $name)
	if [ -z "$lib" ]; then
		echo "$name is not installed"
		continue
	fi
	run_in work malloc.plain env LD_PRELOAD="$lib" "$work"
	for order in "$AGENT $lib" "$lib $AGENT" "$lib:$AGENT"; do
		run_in work malloc.agent env LD_PRELOAD="$order" UFFD_SNAP_NAME=m "$work"
		alike "$name" malloc.plain malloc.agent
	done
	same "$name" "$(cat malloc.plain.status)" 'exit 7'
	echo "$name: unchanged"
done

# ---- and each of them can be taken --------------------------------------------------------

taken() {
	local name=$1
	shift
	: >loop.out
	env "$@" >loop.out 2>&1 &
	pid=$!
	adopt $pid
	wait_until 20 grep -q ready loop.out
	usnap snapshot -q "$pid" -o loop.usnap || fail "$name: no snapshot: $(cat loop.out)"
	usnap verify -q loop.usnap
	same "$name: torn attempts" "$(stat_of loop.usnap torn)" 0
	same "$name: held" "$(stat_of loop.usnap held)" false
	kill -TERM $pid
	wait $pid || fail "$name: the program failed: $(cat loop.out)"
	rm loop.usnap
}
taken plain LD_PRELOAD="$AGENT" "$work" loop
taken filter LD_PRELOAD="$AGENT" "$work" loop filter
[ ! -x now ] || taken 'bound at once' LD_PRELOAD="$AGENT" ./now loop
[ -z "$mdwe" ] || taken 'no executable memory' LD_PRELOAD="$AGENT" "${as_mdwe[@]}" "$work" loop
for name in libjemalloc.so.2 libtcmalloc_minimal.so.4 libmimalloc.so.2; do
	lib=$(library $name)
	[ -z "$lib" ] || taken "$name" LD_PRELOAD="$AGENT $lib" "$work" loop
done

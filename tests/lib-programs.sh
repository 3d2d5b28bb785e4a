# shellcheck shell=bash
# Helpers around programs that are killed and restored: source it after
# lib.sh, lib-work.sh and lib-restore.sh.
#
# Each function that restores leaves the PID in $pid.

# begin NAME COMMAND...: in a session of its own, as a restored process is;
# PID in $pid, output in NAME.log.
pid=''
begin() {
	local name=$1
	shift
	rm -f begin.pid
	: >"$name.log"
	# The numbers of a shell's own descriptors are above 2.
	# shellcheck disable=SC2016
	setsid -f bash -c 'echo $$ >begin.new; mv begin.new begin.pid; exec "$@"' bash "$@" \
		>>"$name.log" 2>&1 </dev/null
	wait_until 20 test -s begin.pid
	pid=$(cat begin.pid)
	adopt "$pid"
}

# free_port: one that nobody listens on, from a range that the kernel gives to nobody.
free_port() {
	local p
	for ((;;)); do
		p=$((20000 + RANDOM % 10000))
		(exec 3<>"/dev/tcp/127.0.0.1/$p") 2>/dev/null || break
	done
	echo $p
}

# killed PID: waits for the end; what has the number next is not ours to kill.
killed() {
	local p rest=()
	within 30 _gone "$1" || fail "process $1 does not end"
	# A number that is taken by a zombie is taken.
	within 10 test ! -d "/proc/$1" || true
	for p in "${_pids[@]}"; do
		[ "$p" = "$1" ] || rest+=("$p")
	done
	_pids=("${rest[@]}")
}

pauses=() restores=() bytes=0

# snapshot_kill IMAGE: of $pid, which is no more.
snapshot_kill() {
	usnap snapshot -q --kill "$pid" -o "$1" || fail "snapshot of $pid"
	killed "$pid"
	pauses+=($(($(stat_of "$1" pause_ns) / 1000)))
}

# restore_image IMAGE [OPTION]...: without waiting for it; $pid.
restore_image() {
	local image=$1
	shift
	timeout -k 5 60 "$UFFD_SNAP" restore -q --detach --json "$@" "$image" \
		>restored.json 2>restored.err || fail "restore of '$image': $(cat restored.err)"
	pid=$(jq .pid_here restored.json)
	[ "$pid" -gt 1 ] || fail "restored as process $pid"
	adopt "$pid"
	restores+=($(($(jq .elapsed_ns restored.json) / 1000)))
	bytes=$(jq .memory.stored_bytes restored.json)
}

# again [OPTION]...: snapshot, kill, restore. The image is again.usnap.
again() {
	snapshot_kill again.usnap
	restore_image again.usnap "$@"
}

# figures WHAT
figures() {
	echo "$1: ${#restores[@]} restores of $((bytes >> 10)) KiB; pause, us: ${pauses[*]}; restore, us: ${restores[*]}"
	pauses=() restores=()
}

# http PORT PATH: the body of the answer.
http() {
	timeout 20 python3 - "$@" <<-'END'
		import sys, urllib.request
		url = "http://127.0.0.1:%s/%s" % (sys.argv[1], sys.argv[2])
		print(urllib.request.urlopen(url, timeout=15).read().decode())
	END
}

# field NAME: of the JSON object that the program at $port answers with.
# shellcheck disable=SC2154 # of the test
field() { http "$port" state | jq -r ".$1"; }
_more() { [ "$(field "$1")" -gt "$2" ]; }

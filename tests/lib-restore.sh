# shellcheck shell=bash
# Helpers around restores: source it after lib.sh.
#
#   table PROGRAM...   every case of these workloads (see restorework.h),
#                      snapshotted, killed and restored, and in a full run
#                      snapshotted and restored again
#
#   ONLY="CASE..."     only these
#   GENERATIONS=N      restored so many times, 0: not at all

# Cases whose second generation is part of a normal run.
twice=" heap malloc private-file memfd-shared many-threads pending-thread avx512 read posix-timer \
capabilities offset dup posix-locks pipe epoll timerfd tcp-listener pair-stream pty nanosleep "

# generations CASE: how often it is restored.
generations() {
	if [ -n "${GENERATIONS:-}" ]; then
		echo "$GENERATIONS"
	elif [ -n "${UFFD_SNAP_FULL:-}" ] || [[ $twice == *" $1 "* ]]; then
		echo 2
	else
		echo 1
	fi
}

# alive PID: there, and no zombie.
alive() {
	local stat
	read -r stat 2>/dev/null <"/proc/$1/stat" || return 1
	stat=${stat##*) }
	[[ $stat != [ZX]* ]]
}

# within SECONDS COMMAND...: as wait_until, and says no instead of failing.
within() {
	local end=$((SECONDS + $1))
	shift
	until "$@"; do
		[ $SECONDS -lt $end ] || return 1
		sleep 0.02
	done
}

_gone() { ! alive "$1"; }
_ready_or_said() { grep -q '^ready' log || _said "$1"; }
_said() { [ -s result ] || _gone "$1"; }

# hold PROGRAM PID: to be killed when the script ends, in place of what was held before. A long list
# of PIDs would be one of other processes in the end.
hold() {
	_held_exe=$WORKLOADS/$1
	_pids=("$2")
}
_held_exe=

# let_go: kills what is held, if it is still there.
let_go() {
	local p
	for p in "${_pids[@]-}"; do
		[ -n "$p" ] && [ "$(readlink "/proc/$p/exe")" = "$_held_exe" ] && kill -KILL "$p"
	done
	_pids=()
}

# restore_again PID IMAGE: snapshots and kills it, and restores it; the new
# PID in $restored. What went wrong in $why.
restored='' why='' restore_options=()
restore_again() {
	local image=$2
	if ! usnap snapshot -q --kill "$1" -o "$image" 2>snapshot.err; then
		why="snapshot: $(cat snapshot.err)"
		return 1
	fi
	if ! within 20 _gone "$1"; then
		why="process $1 outlived 'snapshot --kill'"
		return 1
	fi
	_pids=()
	if ! restored=$(timeout -k 5 60 "$UFFD_SNAP" restore --detach "${restore_options[@]}" "$image" 2>"$image.err"); then
		why="restore: $(cat "$image.err")"
		return 1
	fi
	if [[ ! $restored =~ ^[1-9][0-9]*$ ]]; then
		why="restore --detach printed '$restored'"
		return 1
	fi
	[ -n "${KEEP_IMAGES:-}" ] || rm -f "$image"
	return 0
}

# one_case PROGRAM CASE: in the current directory. What went wrong in $why.
one_case() {
	local program=$1 name=$2 pid g n
	: >go
	# The restored process is nobody's child: so is its group a group of its own. It begins when its
	# parent has ended: some ask to be told of that.
	setsid -f bash -c 'while read -r comm 2>/dev/null </proc/$PPID/comm && [ "$comm" = setsid ]; do :; done
		echo $$ >pid && exec "$0" "$1"' "$WORKLOADS/$program" "$name" >log 2>&1 </dev/null
	if ! within 60 test -s pid; then
		why="not started: $(cat log)"
		return 1
	fi
	pid=$(cat pid)
	hold "$program" "$pid"
	if ! within 60 _ready_or_said "$pid"; then
		why="not ready: $(cat log)"
		return 1
	fi
	n=$(generations "$name")
	restore_options=()
	# Nobody is the parent of a detached one; in a PID namespace there is one.
	[ "$name" != pdeathsig ] || restore_options=(--pid-namespace)
	for ((g = 1; g <= n; g++)); do
		[ -s result ] && break
		if ! restore_again "$pid" "$g.usnap"; then
			why="generation $g: $why"
			return 1
		fi
		pid=$restored
		hold "$program" "$pid"
	done
	echo go >go
	if ! within 90 _said "$pid"; then
		why="hangs after restore $n: waits in $(cat "/proc/$pid/syscall")"
		return 1
	fi
	if [ ! -s result ]; then
		why="ended without a word: $(tail -n 5 log)"
		return 1
	fi
	why=$(cat result)
	[[ $why == ok || $why == SKIP:* ]]
}

# table PROGRAM...
table() {
	local program name begin good=0 skipped=0 bad=() listed
	for program; do
		listed=$("$WORKLOADS/$program" --list | cut -f 1)
		for name in $listed; do
			[ -z "${ONLY:-}" ] || [[ " $ONLY " == *" $name "* ]] || continue
			mkdir "$program.$name"
			cd "$program.$name" || exit 1
			chmod 755 .
			begin=$(date +%s%N)
			why=
			if one_case "$program" "$name"; then
				let_go
				good=$((good + 1))
				if [[ $why == SKIP:* ]]; then
					skipped=$((skipped + 1))
					echo "$program $name: $why"
				fi
				cd ..
				rm -rf "$program.$name"
			else
				let_go
				bad+=("$name")
				echo "$program $name: $why"
				cd ..
			fi
			[ -z "${VERBOSE:-}" ] ||
				echo "  $name: $((($(date +%s%N) - begin) / 1000000)) ms"
		done
	done
	echo "$((good - skipped)) cases came back, $skipped skipped, ${#bad[@]} did not${bad[*]:+: ${bad[*]}}"
	[ ${#bad[@]} -eq 0 ] || fail "not as before after a restore: ${bad[*]}"
}

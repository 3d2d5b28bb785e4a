#!/bin/bash
# What is left of system calls that wait with a timeout is in the image: never less than it was, and little more.
. "$(dirname "$0")/../lib.sh"

need jq

# left IMAGE TID: nr and left_ns.
left() {
	jq -r --argjson tid "$2" '.threads[] | select(.tid == $tid) | .interrupted_call |
		"\(.nr) \(.left_ns) \(.absolute)"' "$1.json"
}

# judge IMAGE WORKLOAD-OUTPUT MOST_NS: of all its waits; MOST: how much more than the truth.
judge() {
	local image=$1 most=$3 word tid start nr ns absolute t0 rest
	t0=$(tar xOf "$image" snapshot.json | jq .t0.monotonic_ns)
	tar xOf "$image" process.json >"$image.json"
	while read -r word tid start; do
		[ -n "$start" ] || continue
		read -r nr ns absolute <<<"$(left "$image" "$tid")"
		case $word in
		poll) same "$word" "$nr" 7 ;;
		nanosleep*) same "$word" "$nr" 35 ;;
		clock_nanosleep) same "$word" "$nr" 230 ;;
		futex | condition) same "$word" "$nr" 202 ;;
		forever) same "$word" "$nr" 7 ;;
		esac
		case $word in
		condition | forever)
			same "$word" "$ns $absolute" 'null true'
			continue
			;;
		esac
		[ "$ns" != null ] || fail "$image: $word: nothing is known"
		rest=$((start + 60000000000 - t0))
		[ "$ns" -ge "$rest" ] || fail "$image: $word: $ns left of $rest"
		[ "$ns" -le $((rest + most)) ] || fail "$image: $word: $ns left of $rest"
	done <"$2"
}

start_workload timedwaits
sleep 1.5
exits 0 usnap snapshot -q "$started" -o a.usnap
[ -e "/proc/$started/task/$started/sched" ] || skip 'the kernel does not tell since when threads sleep'
judge a.usnap timedwaits.out 1000000000
# Once more: calls that were interrupted before may be thought to last longer, and no shorter.
sleep 1
exits 0 usnap snapshot -q "$started" -o b.usnap
judge b.usnap timedwaits.out 3000000000
exits 0 usnap snapshot -q --kill "$started" -o c.usnap
judge c.usnap timedwaits.out 6000000000

# The only thread, which is also stopped to attach to the process.
for word in poll nanosleep nanosleep-rest clock_nanosleep futex condition forever; do
	start_workload timedwaits $word
	sleep 0.5
	exits 0 usnap snapshot -q "$started" -o d.usnap
	judge d.usnap timedwaits.out 1000000000
	kill "$started"
done

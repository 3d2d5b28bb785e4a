#!/bin/bash
# A process without the agent that gives memory back is held back for one snapshot, at the second attempt, and nothing is left in it.
# timeout: 300
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

need jq
n=$(times 2 50)

# traces: mappings of code or of the agent's beacon in memory that belongs to no file.
traces() {
	local range mode path n=0
	while read -r range mode _ _ _ path; do
		[ -z "$path" ] || continue
		case $mode in
		*x*) n=$((n + 1)) ;;
		r--p) [ $((0x${range#*-} - 0x${range%-*})) -ne $((65 * 4096)) ] || n=$((n + 1)) ;;
		esac
	done < <(cat "/proc/$1/maps") # in large reads: it changes
	echo $n
}

# libc_code: what munmap() looks like in the process.
libc_code() { gdb -nx -batch -p "$1" -ex 'x/16xb munmap' 2>/dev/null | grep '^0x'; }

need gdb
for kind in munmap malloc fixed; do
	work_start --size 16M --discard $kind --signals
	before=$(outside "$work_pid")
	code=$(libc_code "$work_pid")
	torn=0 asks=0
	for ((i = 0; i < n; i++)); do
		usnap snapshot -q --no-hold "$work_pid" -o d.usnap || fail "$kind: snapshot $i"
		consistent d.usnap
		torn=$((torn + $(stat_of d.usnap torn)))
		asks=$((asks + $(stat_of d.usnap asks)))
		same "$kind: injected" "$(stat_of d.usnap injected)" \
			"$([ "$(stat_of d.usnap torn)" -gt 0 ] && echo true || echo false)"
		same "$kind: traces in the process" "$(traces "$work_pid")" 0
		same "$kind: traces in the image" "$(tar xOf d.usnap process.json | jq '[.. | objects |
			select(.kind? == "anonymous" and ((.prot? // "") | tostring | test("x")))] | length')" 0
		rm d.usnap
	done
	same "$kind: code of libc" "$(libc_code "$work_pid")" "$code"
	untouched "$work_pid" "$before"
	work_over # gdb has stopped it
	printf '%-7s %d snapshots, %d torn attempts, %d discards held back\n' $kind "$n" $torn $asks
done

# Killed while it is there: the process goes on, and the next snapshot takes it out.
work_start --size 64M --discard munmap
left=0
for ((i = 0; i < $(times 4 50); i++)); do
	"$UFFD_SNAP" snapshot -q --no-hold --rate 64M "$work_pid" -o d.usnap 2>killed.err &
	snapshot=$!
	adopt $snapshot
	for ((k = 0; k < 200; k++)); do
		[ "$(traces "$work_pid")" -eq 0 ] || break
		kill -0 $snapshot 2>/dev/null || break
		sleep 0.01
	done
	sleep 0.0$((i % 4 * 2))
	kill -KILL $snapshot 2>/dev/null || true
	wait $snapshot 2>/dev/null || true
	left=$((left + ($(traces "$work_pid") > 0)))
	rm -f d.usnap
done
usnap snapshot -q "$work_pid" -o d.usnap
consistent d.usnap
same 'traces in the process' "$(traces "$work_pid")" 0
work_over
echo "killed: $left times something was left for the next one"

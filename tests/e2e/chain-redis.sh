#!/bin/bash
# Every image of a chain of a redis-server under load restores; prune, rm and merge killed at any point leave what is listed as it was.
# timeout: 300
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"
. "$TESTS/lib-restore.sh"
. "$TESTS/lib-programs.sh"

need redis-server redis-cli jq
n=$(times 3 50)
rounds=$(times 5 200)
export UFFD_SNAP_STORE=$PWD/store TZ=UTC

rcli() { timeout 20 redis-cli -s "$sock" "$@"; }

sock=$PWD/s
[ ${#sock} -lt 100 ] || sock=$(mktemp -u /tmp/usnap-redis.XXXXXX)
begin redis redis-server --port 0 --unixsocket "$sock" --save '' --dir "$PWD" \
	--enable-debug-command yes
wait_until 30 rcli ping
redis_fill "$(times 5000 50000)" 100

# ---- taken under load ------------------------------------------------------------------

"$WORKLOADS/kvhistory" --unix "$sock" --write history >load.out 2>load.err &
load=$!
adopt $load
wait_until 30 grep -q ready load.out
for ((i = 0; i < n; i++)); do
	usnap snapshot -q "$pid" --name r || fail "snapshot $i"
done
kill -TERM $load
wait $load || fail "$(cat load.out load.err)"
kill -KILL "$pid"
killed "$pid"
usnap list --json r >listed
same images "$(jq '.images | length' listed)" "$n"
same 'images without a parent' "$(jq '[.images[] | select(.parent == null)] | length' listed)" 1

# ---- each restores, is read and exported -------------------------------------------------

# content IMAGE: a hash of everything that its core file says: threads, mappings, memory.
content() {
	rm -f content.core
	"$UFFD_SNAP" core -q "$1" -o content.core && sha1sum <content.core
}

# restores IMAGE: its keys are those of its T0; digest in $digest.
digest=
restores() {
	local t0
	t0=$("$UFFD_SNAP" info --json "$1" | jq .snapshot.t0.monotonic_ns)
	restore_image "$1"
	timeout 60 "$WORKLOADS/kvhistory" --unix "$sock" --check history --t0 "$t0" >check.out 2>&1 ||
		fail "'$1' is not of one instant: $(cat check.out)"
	digest=$(rcli debug digest)
	kill -KILL "$pid"
	killed "$pid"
}

declare -A contents=() digests=()
for image in store/r/*-*.usnap; do
	t0=$(usnap info --json "$image" | jq .snapshot.t0.monotonic_ns)
	exits 0 usnap verify -q "$image"
	restores "$image"
	digests[$t0]=$digest
	contents[$t0]=$(content "$image")
	exits 0 usnap read "$image" "0x$(usnap info --maps "$image" |
		awk '$2 == "rw-p" && $4 ~ /^anon/ && !n++ {split($1, a, "-"); print a[1]}')" 4096
	same 'bytes read' "$(stat -c %s out)" 4096
done
same 'images of different instants' "${#contents[@]}" "$n"

# ---- and goes on to, whatever happens to the others ----------------------------------------

# holds IMAGE: what it held when it was taken.
holds() {
	t0=$(usnap info --json "$1" | jq .snapshot.t0.monotonic_ns)
	same "what '$1' holds after '$what'" "$(content "$1")" "${contents[$t0]}"
}

# as_before: everything that is listed is sound, and one image is what it was, bit for bit; with an
# argument, those that it leaves are, and restore.
as_before() {
	local image t0
	usnap verify -q --all >verified 2>&1 || fail "after '$what': $(cat verified)"
	usnap list --json r | jq -e 'all(.images[]; .readable and (has("missing") | not))' >/dev/null ||
		fail "after '$what' an image is incomplete"
	if [ -z "${1:-}" ]; then
		holds "$(find store/r -name '*-*.usnap' | shuf -n 1)"
		return
	fi
	for image in $(find store/r -name '*-*.usnap' | sort | "${@}"); do
		holds "$image"
		restores "$image"
		same "keys of '$image' after '$what'" "$digest" "${digests[$t0]}"
	done
}

cp -a store whole
killed_runs=0
for ((i = 0; i < rounds; i++)); do
	left=$(usnap list --json r | jq '.images | length')
	if [ "$left" -lt 3 ]; then
		what='the end of a store'
		as_before cat
		rm -rf store
		cp -a whole store
		left=$n
	fi
	image=$(usnap list -q r | shuf -n 1)
	case $((RANDOM % 4)) in
	0) run=(prune -q --keep-last $((left - RANDOM % (left / 2 + 1))) r) ;;
	1) run=(prune -q --merge --keep-last $((left - 1 - RANDOM % (left / 4 + 1))) r) ;;
	2) run=(rm -q "$image") ;;
	3) run=(merge -q "$image" -o merged.usnap) ;;
	esac
	what="${run[*]}"
	"$UFFD_SNAP" "${run[@]}" 2>run.err &
	victim=$!
	sleep "0.$(printf %03d $((RANDOM % 150)))"
	kill -KILL $victim 2>/dev/null || true
	status=0
	wait $victim 2>/dev/null || status=$?
	[ $status -ne 137 ] || killed_runs=$((killed_runs + 1))
	# rm says no where others refer to the image.
	[[ $status -eq 0 || $status -eq 137 || ${run[0]} == rm ]] || fail "'$what': $(cat run.err)"
	if [ "${run[0]}" = merge ] && [ -e merged.usnap ]; then
		t0=$(usnap info --json merged.usnap | jq .snapshot.t0.monotonic_ns)
		mkdir -p alone
		mv merged.usnap alone/
		same "what '$what' made" "$(content alone/merged.usnap)" "${contents[$t0]}"
	fi
	if [ $((i % 10)) -eq 9 ]; then
		as_before shuf -n 1
	else
		as_before
	fi
done
what='all rounds'
as_before cat
exits 0 usnap prune -q --keep-last 1 --merge r
same 'images in the end' "$(usnap list --json r | jq '.images | length')" 1
same 'what is left over' "$(find store/r -name '.*.part')" ''
as_before cat
# Else it was not shown that one may be killed. A short run has too few to tell more.
[ $killed_runs -ge "$(times 0 $((rounds / 3)))" ] || fail "only $killed_runs of $rounds runs were killed"
figures "chain of $n, $killed_runs of $rounds runs killed"

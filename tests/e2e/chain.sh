#!/bin/bash
# An image that continues another holds what has changed; it reads, exports and restores as a full one would, or says what it lacks.
# timeout: 300
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

need jq cmp
n=$(times 5 50)

# signal PID: makes it say what its memory is, in $digest.
_said() { [ -s digest ]; }
ask() {
	rm -f digest
	kill "-$2" "$1"
	wait_until 60 _said
	digest=$(cat digest)
}

# A hundredth changes between snapshots: increments are small, whatever the length of the chain.
start_workload pagechange $((32 << 20))
pid=$started
echo 1000 >share
digests=()
for ((i = 0; i < n; i++)); do
	ask "$pid" USR1
	digests+=("$digest")
	if [ $i -eq 0 ]; then
		exits 0 usnap snapshot "$pid" -o 0.usnap --json
	else
		exits 0 usnap snapshot "$pid" -o $i.usnap --parent $((i - 1)).usnap --json
		same "full_because of $i" "$(jq -r .full_because out)" null
		new=$(jq .pages_new out) referred=$(jq .pages_referred out)
		[ "$new" -ge 81 ] && [ "$new" -lt 200 ] || fail "$new pages are new"
		[ "$referred" -gt 8000 ] || fail "$referred pages are referred to"
	fi
done
full=$(stat -c %s 0.usnap) last=$(stat -c %s $((n - 1)).usnap)
[ $((last * 10)) -lt "$full" ] || fail "a full image of $full bytes, an increment of $last"
exits 0 usnap verify ./*.usnap
newest=$((n - 1)).usnap

# Every image by itself: the bytes of that instant. The process stands still for the last.
exits 0 usnap info "$newest"
says out "refers to  $((n - 1)) image"
usnap info --maps "$newest" >maps
range=$(while read -r r _; do
	[ $((0x${r#*-} - 0x${r%-*})) -lt $((32 << 20)) ] || echo "${r%-*}"
done <maps | head -n 1)
usnap snapshot -q "$pid" -o still.usnap
usnap read "$newest" "0x$range" $((32 << 20)) >chained
usnap read still.usnap "0x$range" $((32 << 20)) >full
cmp chained full || fail "an increment reads otherwise than a full image"
usnap core -q "$newest" -o chained.core
usnap core -q still.usnap -o full.core
same 'size of the core files' "$(stat -c %s chained.core)" "$(stat -c %s full.core)"
rm -f chained full ./*.core

# What differs: that hundredth.
exits 0 usnap diff --json 0.usnap 1.usnap
changed=$(jq .pages_changed out)
[ "$changed" -ge 81 ] && [ "$changed" -lt 200 ] || fail "diff says $changed pages"
exits 0 usnap diff --json 0.usnap 0.usnap
same 'pages that differ from themselves' "$(jq '.pages_changed + .pages_new + .pages_gone' out)" 0
exits 0 usnap diff --bytes 0.usnap 1.usnap
says out ' changed'
grep -q '^-0000' out && grep -q '^+0000' out || fail "no bytes in a diff"

# Nothing changed: next to nothing is written. All changed: everything is.
usnap snapshot -q "$pid" -o idle.usnap --parent "$newest"
[ "$(stat -c %s idle.usnap)" -le "$last" ] || fail "an idle increment is larger"
echo 100000 >share
ask "$pid" USR1
exits 0 usnap snapshot "$pid" -o all.usnap --parent "$newest" --json
[ "$(jq .pages_new out)" -ge 8192 ] || fail "$(jq .pages_new out) pages are new after all changed"
echo 1000 >share

# An image is not replaced by what is to refer to it.
before=$(stat -c %i-%s 0.usnap)
exits 1 usnap snapshot "$pid" -o 0.usnap --parent "$newest"
says err "cannot replace '0.usnap'"
same 'an ancestor' "$(stat -c %i-%s 0.usnap)" "$before"
exits 1 usnap merge "$newest" -o 0.usnap
exits 1 usnap snapshot "$pid" -o x.usnap --parent none.usnap
says err none.usnap
[ ! -e x.usnap ] || fail "an image although its parent is none"

# Another run of the program is another process.
start_workload pagechange 65536
exits 0 usnap snapshot "$started" -o other.usnap --parent 0.usnap
says out 'a full image: '
tar xOf other.usnap stats.json | jq -e .full_because >/dev/null || fail "stats.json does not say why"
same parent "$(tar xOf other.usnap snapshot.json | jq .parent)" null

# One is missing, damaged, or another: it is named, and what needs none of it works.
id=$(usnap info --json 0.usnap | jq -r .snapshot.id)
mv 0.usnap away
exits 3 usnap verify "$newest"
says out "$id"
exits 0 usnap verify --no-chain "$newest"
exits 1 usnap read "$newest" "0x$range" $((1 << 20))
says err "$id"
exits 1 usnap core -q "$newest" -o x.core
says err "$id"
exits 1 usnap merge "$newest" -o x.usnap
says err "$id"
exits 1 usnap restore --detach "$newest"
says err "$id"
exits 0 usnap info "$newest"
says out missing
exits 0 usnap info --maps "$newest"
exits 0 usnap snapshot "$pid" -o after.usnap --parent "$newest"
says out "$id"
exits 0 usnap verify after.usnap
cp other.usnap 0.usnap
exits 3 usnap verify "$newest"
says out "$id"
head -c $((full / 2)) away >0.usnap
exits 3 usnap verify "$newest"
says out 0.usnap
cp away 0.usnap
printf '\377\377\377\377' | dd of=0.usnap bs=1 seek=$((full / 2)) conv=notrunc 2>/dev/null
exits 3 usnap verify "$newest"
says out 0.usnap
exits 3 usnap merge "$newest" -o x.usnap
says err 0.usnap
mkdir elsewhere
mv away elsewhere/any.usnap
rm 0.usnap
exits 0 usnap merge "$newest" -o merged.usnap --ancestors elsewhere
mv elsewhere/any.usnap 0.usnap
exits 0 usnap verify "$newest"

# Merged: the same process, without the others.
mkdir alone
mv merged.usnap alone
exits 0 usnap verify alone/merged.usnap
exits 0 usnap diff --json alone/merged.usnap "$newest"
same 'pages that differ after a merge' "$(jq '.pages_changed + .pages_new + .pages_gone' out)" 0

# Restored: the memory of that instant; and the chain goes on from there.
kill -KILL "$pid"
wait "$pid" 2>/dev/null || true
for image in "$newest" alone/merged.usnap; do
	pid=$(usnap restore -q --detach "$image")
	adopt "$pid"
	ask "$pid" USR2
	same "memory of '$image'" "$digest" "${digests[n - 1]}"
	ask "$pid" USR1
	rm -f next.usnap
	exits 0 usnap snapshot "$pid" -o next.usnap --parent "$image" --json
	same "full_because after a restore of '$image'" "$(jq -r .full_because out)" null
	[ "$(jq .pages_referred out)" -gt 8000 ] || fail "too little is referred to after a restore"
	exits 0 usnap verify next.usnap
	kill -KILL "$pid"
done
echo "chain of $n: full image $full bytes, increments of 1% $last"

# While it is written to: each is of one instant.
work_start --size 16M --threads 2 --rate 20000 --statics
usnap snapshot -q "$work_pid" -o w0.usnap
for ((i = 1; i <= 3; i++)); do
	usnap snapshot -q "$work_pid" -o w$i.usnap --parent w$((i - 1)).usnap
	consistent w$i.usnap
done
work_end

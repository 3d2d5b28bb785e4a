#!/bin/bash
# A store stays whole under snapshots, prune, list and verify at once and under SIGKILL at any point; rules and references are kept.
# timeout: 180
. "$(dirname "$0")/../lib.sh"
need jq

export UFFD_SNAP_STORE=$PWD/store TZ=UTC
start_workload witness
a=$started
start_workload witness
b=$started

images() { usnap list --json "$@" | jq '.images | length'; }
# sound: everything that is listed verifies, and is said to be complete.
sound() {
	usnap verify -q --all >verified 2>&1 || {
		cat verified >&2
		usnap list >&2
		fail 'the store is damaged'
	}
	usnap list --json | jq -e 'all(.images[]; .readable and (has("missing") | not))' >/dev/null ||
		fail 'an image is incomplete'
}

# --- what a store is --------------------------------------------------------

for command in list 'verify --all' 'prune --keep-last 1'; do
	# shellcheck disable=SC2086
	exits 1 usnap $command
	says err 'hint: the first snapshot makes it'
done
exits 0 usnap snapshot "$a" --name one
says out "$UFFD_SNAP_STORE/one/"
same 'mode of the store' "$(stat -c %a store store/one | tr '\n' ' ')" '700 700 '
same 'modes in it' "$(stat -c %a store/secret store/one/*.usnap | tr '\n' ' ')" '600 600 '
exits 0 usnap snapshot "$a" --name one -q
same 'output of -q' "$(cat out err)" ''
same images "$(images one)" 2
# What one image needs is beside it: a copy without that is not whole, whoever has it elsewhere.
cp -a store copy
oldest=(copy/one/*.usnap)
rm "${oldest[0]}"
exits 3 usnap verify -q --all --store copy
says out 'which is not in'
exits 3 usnap verify -q copy/one/*.usnap
exits 0 usnap snapshot "$a" --name one --json --store copy
same 'pages of a parent that lacks some' "$(jq .pages_referred out)" 0
jq -r .full_because out | grep -q 'it needs pages of image' || fail 'a full image without a reason'
rm -r copy
cmp store/one/latest "store/one/$(ls store/one | tail -n 2 | head -n 1)" ||
	fail "latest is not the newest"
first=$(usnap list --json one | jq -r '.images[0].id')
second=$(usnap list --json one | jq -r '.images[1].id')
same 'the chain' "$(usnap list --json one | jq -r '.images[1].parent')" "$first"
exits 0 usnap info one
says out "$second"
exits 0 usnap info "one@${first:0:8}"
says out "$first"
exits 0 usnap info "one@$(usnap list -q one | head -n 1 | cut -d@ -f2)"
says out "$first"
exits 0 usnap info one@today
says out "$second"
exits 1 usnap info one@-1y
says err 'there is no image so old'
exits 1 usnap info one@nonsense
says err 'neither a time nor an id'
exits 1 usnap info nothing@latest
says err "has no such name"
exits 1 usnap info nothing
says err "cannot open 'nothing': No such file or directory"
# A file of that name comes first.
cp "store/one/latest" one
exits 0 usnap info one
says out 'image      one'
exits 0 usnap info --store store one
says out store/one/
rm one
exits 0 usnap core one -o x.core
exits 0 usnap verify one
same 'verified by name' "$(wc -l <out)" 2
exits 0 usnap restore --dry-run one
for bad in ../x .x 'a b' secret a/b ''; do
	exits 1 usnap snapshot "$a" --name "$bad"
	says err 'as a name'
done
exits 2 usnap snapshot "$a" --name x -o x.usnap
chmod 777 store
exits 1 usnap snapshot "$a" --name one
says err 'anybody may write in it'
chmod 700 store

# --- what refers to what ------------------------------------------------------

exits 1 usnap rm "one@${first:0:8}"
says err 'refers to it'
exits 2 usnap rm one
# What is not of that time is not meant.
exits 1 usnap rm one@2099-06-01T12:00
says err 'there is no image of that time'
says err 'hint: the last one before is one@'
same images "$(images one)" 2
exits 0 usnap rm "one@${second:0:8}"
same images "$(images one)" 1
for i in 1 2 3 4 5; do
	usnap snapshot -q "$a" --name one --full-every 3
done
same 'full images' "$(usnap list --json one | jq '[.images[] | select(.needs == [])] | length')" 2
# instants NAME: of its images. as_planned OPTION...: prune does what --dry-run says it would.
instants() { usnap list --json "$1" | jq -c '[.images[].t0_ms]'; }
as_planned() {
	local planned before
	before=$(instants one)
	exits 0 usnap prune --dry-run one "$@"
	planned=$(awk '$1 == "keep"' out | wc -l)
	says out "would keep $planned of "
	exits 0 usnap prune --dry-run --json one "$@"
	same "kept by $*" "$(jq '.names[0].kept' out)" "$planned"
	planned=$(jq -c '[.names[0].images[] | select(.decision == "keep").t0_ms]' out)
	same 'images after --dry-run' "$(instants one)" "$before"
	exits 0 usnap prune --json one "$@"
	same "kept by $*" "$(jq -c '[.names[0].images[] | select(.decision == "keep").t0_ms]' out)" "$planned"
	same "images after $*" "$(instants one)" "$planned"
	same "bytes after $*" "$(jq '.names[0].file_bytes' out)" "$(usnap list --json one | jq '.file_bytes')"
	sound
}
as_planned --keep-last 5 --keep-needed 2
as_planned --keep-last 4 --keep-needed 2
[ "$(images one)" -gt 4 ] || fail 'nothing stays for others'
as_planned --keep-last 2
exits 0 usnap prune --keep-last 2 one
says out 'because others refer to'
says out '; --merge removes'
as_planned --keep-last 2 --merge
same images "$(images one)" 2
exits 0 usnap prune --keep-last 2 -q one
same 'output of -q' "$(cat out err)" ''
# A chain goes on from a merged image.
usnap snapshot "$a" --name one >out
same 'the next needs others' "$(usnap list --json one | jq '.images[-1].needs | length > 0')" true
for i in 1 2 3 4; do
	usnap snapshot -q "$a" --name one
done
as_planned --keep-last 3 --merge
same images "$(images one)" 3
same 'full images' "$(usnap list --json one | jq '[.images[] | select(.needs == [])] | length')" 1
usnap snapshot -q "$a" --name one
exits 0 usnap prune --keep-last 9 --keep-needed 99 --max-size 1G one
same images "$(images one)" 4
exits 1 usnap prune -q --keep-last 9 --max-size 1 one
says err "cannot keep 'one' within 1 B"
says err 'hint: '
same images "$(images one)" 1
sound
exits 2 usnap prune one
exits 0 usnap rm --all one
[ ! -e store/one ] || fail 'an empty name was left'

# A damaged image is said, kept, and does not pass for one.
usnap snapshot -q "$a" --name hurt
usnap snapshot -q "$a" --name hurt --full-every 1
usnap snapshot -q "$a" --name hurt --full-every 1
middle=$(find store/hurt -name '*.usnap' | sort | sed -n 2p)
truncate -s 1000 "$middle"
exits 3 usnap list
says out damaged
exits 3 usnap verify -q --all
exits 3 usnap prune --keep-last 1 hurt
same images "$(images hurt 2>/dev/null || true)" 3
id=$(basename "$middle" .usnap)
exits 0 usnap rm "hurt@${id##*-}"
exits 0 usnap prune --keep-last 1 hurt
exits 0 usnap rm --all hurt
# One that lies under another's name is not taken for that.
usnap snapshot -q "$a" --name mine
usnap snapshot -q "$b" --name theirs
mine=$(find store/mine -name '*.usnap')
cat store/theirs/latest >"$mine"
exits 3 usnap list mine
exits 3 usnap verify -q mine
says err 'it is the image'
exits 3 usnap verify -q --all
exits 3 usnap restore --dry-run "mine@$(basename "$mine" .usnap | cut -d- -f2)"
exits 0 usnap rm --all mine theirs

# One that may not be read is not called damaged.
strict=(setpriv "--bounding-set=-dac_override,-dac_read_search" --inh-caps=-all "$UFFD_SNAP")
if [ "$(id -u)" -eq 0 ] && "${strict[@]}" list >/dev/null 2>&1; then
	usnap snapshot -q "$a" --name shut
	usnap snapshot -q "$a" --name zest
	chmod 000 store/shut/*.usnap
	exits 1 "${strict[@]}" list
	says out unknown
	says_not out damaged
	exits 1 "${strict[@]}" prune --keep-last 1 -n shut
	says_not out damaged
	chmod 600 store/shut/*.usnap
	chmod 000 store/shut
	exits 1 "${strict[@]}" list
	says err 'Permission denied'
	says out 'zest@'
	chmod 700 store/shut
	usnap rm -q --all shut zest
fi

odd=$'caf\xe9'
exits 0 usnap snapshot --json "$a" --name "$odd"
says out $'/caf\xef\xbf\xbd/'
same 'a name that is not UTF-8' "$(usnap list --json "$odd" | jq -r '.images[0].name')" $'caf\xef\xbf\xbd'
usnap rm -q --all "$odd"

# --- a clock that was wrong -------------------------------------------------------------------

faketime=$(find /usr/lib* -name libfaketimeMT.so.1 2>/dev/null | head -n 1)
if [ -n "$faketime" ]; then
	sleep 1000 &
	c=$!
	adopt $c
	usnap snapshot -q $c --name wrong
	LD_PRELOAD=$faketime DONT_FAKE_MONOTONIC=1 NO_FAKE_STAT=1 FAKETIME=+400d usnap snapshot -q $c --name wrong
	usnap snapshot -q $c --name wrong
	mapfile -t ids < <(usnap list --json wrong | jq -r '.images[].id')
	exits 0 usnap info wrong
	says out "${ids[1]}"
	exits 0 usnap info "wrong@${ids[2]:0:8}"
	says out "${ids[2]}"
	exits 0 usnap prune -q --keep-last 2 wrong
	case $(readlink store/wrong/latest) in *"${ids[1]}"*) ;; *) fail 'latest is not the one taken last' ;; esac
	kill -KILL $c
	wait $c || true
	if [ "$(id -u)" -eq 0 ]; then
		"$UFFD_SNAP" run --name wrong --restore-or-start -- sleep 1000 2>run.err &
		run=$!
		adopt $run
		wait_until 20 grep -q 'brought back' run.err
		grep -q "$(basename "$(readlink store/wrong/latest)" "-${ids[1]}.usnap")" run.err ||
			fail "not the one taken last: $(cat run.err)"
		kill -TERM $run
		wait $run || true
	fi
	usnap rm -q --all wrong
fi

# --- a restored process holds nothing, a full disk loses nothing ---------------------------

usnap snapshot -q "$a" --name back
usnap snapshot -q "$a" --name back --full-every 1
got=0
usnap restore --pid-namespace --detach back >back.pid 2>/dev/null || got=$?
if [ $got -eq 0 ]; then
	adopt "$(cat back.pid)"
	exits 0 usnap prune --keep-last 1 --skip-if-busy -q back
	same 'images beside a restored process' "$(images back)" 1
	kill -KILL "$(cat back.pid)"
fi
(cd store && usnap info back >/dev/null)
usnap rm -q --all back

if [ "$(id -u)" -eq 0 ] && unshare -m true 2>/dev/null; then
	mkdir full
	cat >full.sh <<-'END'
		set -e
		mount -t tmpfs -o size=4m,nr_inodes=500,mode=700 none full
		export UFFD_SNAP_STORE=$PWD/full
		n=0
		while "$UFFD_SNAP" snapshot -q "$1" --name x --full-every 1 2>full.err; do
			n=$((n + 1))
			[ $n -lt 1000 ] || exit 1
		done
		grep -q 'No space left on device' full.err
		"$UFFD_SNAP" verify -q --all
		[ "$("$UFFD_SNAP" list -q | wc -l)" -eq $n ]
		[ "$(find full -name '.*.part')" = '' ]
		"$UFFD_SNAP" prune -q --keep-last 1
		"$UFFD_SNAP" snapshot -q "$1" --name x
		"$UFFD_SNAP" verify -q --all
		# Bytes there are, but no room for another file.
		"$UFFD_SNAP" snapshot -q "$1" --name x
		"$UFFD_SNAP" snapshot -q "$1" --name y
		n=0
		while : >full/y/fill.$n; do n=$((n + 1)); done 2>/dev/null
		"$UFFD_SNAP" rm -q x@latest 2>full.err
		[ "$(readlink full/x/latest)" = "$(cd full/x && ls ./*.usnap | tail -n 1 | cut -c 3-)" ]
		while : >full/y/fill.$n; do n=$((n + 1)); done 2>/dev/null
		"$UFFD_SNAP" prune -q --keep-last 1 x 2>full.err
		mount -o remount,ro full
		"$UFFD_SNAP" rm -n x@latest 2>full.err
		"$UFFD_SNAP" prune -n --keep-last 1 x 2>full.err
	END
	unshare -m bash full.sh "$a" || fail "on a full disk: $(cat full.err)"
fi

# --- all at once ----------------------------------------------------------------

seconds=8
[ -z "${UFFD_SNAP_FULL:-}" ] || seconds=300
loop() {
	local log=$1 end=$((SECONDS + seconds)) status
	shift
	while [ $SECONDS -lt $end ]; do
		status=0
		"$@" >>"$log" 2>&1 || status=$?
		[ $status -eq 0 ] || {
			echo "exit status $status: $*" >>"$log"
			return 1
		}
	done
}
usnap snapshot -q "$a" --name a
usnap snapshot -q "$b" --name b
pids=()
loop log.1 "$UFFD_SNAP" snapshot -q "$a" --name a --full-every 5 &
pids+=($!)
loop log.2 "$UFFD_SNAP" snapshot -q "$a" --name a --skip-if-busy &
pids+=($!)
loop log.3 "$UFFD_SNAP" snapshot -q "$b" --name b &
pids+=($!)
loop log.4 "$UFFD_SNAP" prune -q --keep-last 4 --keep-hourly 2 &
pids+=($!)
loop log.5 "$UFFD_SNAP" prune -q --keep-last 3 --merge a &
pids+=($!)
loop log.6 "$UFFD_SNAP" list --json &
pids+=($!)
loop log.7 "$UFFD_SNAP" verify -q --all &
pids+=($!)
merged() { "$UFFD_SNAP" merge -q "$1" -o "merged.$1.usnap" && "$UFFD_SNAP" verify -q "merged.$1.usnap"; }
loop log.8 merged a &
pids+=($!)
loop log.9 merged b &
pids+=($!)
sleep 0.5
failed=
for i in "${!pids[@]}"; do
	wait "${pids[i]}" || failed+=" log.$((i + 1))"
done
for log in $failed; do
	tail -n 5 "$log" >&2
	fail "under concurrent use: $log"
done
sound

# --- killed -----------------------------------------------------------------------

rounds=25
[ -z "${UFFD_SNAP_FULL:-}" ] || rounds=200
for ((i = 0; i < rounds; i++)); do
	case $((RANDOM % 4)) in
	0 | 1) "$UFFD_SNAP" snapshot -q "$a" --name a --full-every 4 2>/dev/null & ;;
	2) "$UFFD_SNAP" prune -q --keep-last 3 --merge a 2>/dev/null & ;;
	3) "$UFFD_SNAP" prune -q --keep-last 5 a 2>/dev/null & ;;
	esac
	victim=$!
	sleep 0.0$((RANDOM % 80 + 10))
	kill -KILL $victim 2>/dev/null || true
	wait $victim 2>/dev/null || true
	[ $((i % 5)) -ne 0 ] || sound
done
sound
exits 0 usnap snapshot -q "$a" --name a
exits 0 usnap prune -q --keep-last 3 --merge a
same images "$(images a)" 3
same 'what is left over' "$(find store -name '.*.part')" ''
same 'what there is' "$(find store/a -type f ! -name '*.usnap' -printf '%f\n' | sort | tr '\n' ' ')" '.in-use .lock '
sound
kill -0 "$a" && kill -0 "$b" || fail 'a target ended'

#!/bin/bash
# What push and pull carry is whole, wherever they are killed and whatever the other side is; nothing is carried twice.
# timeout: 900
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"
need rclone jq curl

export UFFD_SNAP_STORE=$PWD/store RCLONE_CONFIG=$PWD/rclone.conf TZ=UTC

# Tells what it is asked for, and on demand damages what it has written.
real=$(command -v rclone)
mkdir bin
cat >bin/rclone <<END
#!/bin/bash
echo "\$*" >>"$PWD/calls"
"$real" "\$@" || exit
if [ -n "\${DAMAGE-}" ] && [[ \$* == *' copyto '* ]]; then
	file=\${!#}
	printf damaged | dd of="\$DAMAGE/\${file##*/}" bs=1 seek=600 conv=notrunc status=none
fi
END
chmod 755 bin/rclone
PATH=$PWD/bin:$PATH

# --- two remotes: one that knows hashes, and one that does not ------------------

mkdir served
serves() { curl -sf -o /dev/null "http://127.0.0.1:$port/"; }
for _ in 1 2 3 4 5; do
	port=$((RANDOM % 20000 + 20000))
	start "$real" serve webdav --addr "127.0.0.1:$port" --dir-cache-time 0 served
	server=$started
	end=$((SECONDS + 20))
	until serves || ! kill -0 "$server" 2>/dev/null || [ $SECONDS -gt $end ]; do sleep 0.05; done
	# Somebody else has the port when the server has ended.
	kill -0 "$server" 2>/dev/null && break
done
kill -0 "$server" || fail "no server: $(cat "$started_log")"
cat >rclone.conf <<END
[here]
type = local
[dav]
type = webdav
url = http://127.0.0.1:$port
vendor = other
END

start_workload witness
target=$started
take() { for _ in $(seq "$1"); do usnap snapshot -q "$target" --name w; done; }
take 3
images() { (cd "$1" && echo *.usnap); }
# equal DIR: it has the images of the store, and nothing else.
equal() {
	same "files in $1" "$(ls -A "$1")" "$(images store/w | tr ' ' '\n')"
	local f
	for f in "$1"/*; do cmp "$f" "store/w/${f##*/}"; done
}
# flip FILE: damages it, and leaves its size.
flip() { printf damaged | dd of="$1" bs=1 seek=$(($(stat -c %s "$1") / 2)) conv=notrunc status=none; }

check_remote() {
	local remote=$1 dir=$2 f first last
	exits 0 usnap push -n w "$remote"
	says out 'would push 3 images'
	[ ! -e "$dir" ] || fail "--dry-run has made $dir"
	exits 0 usnap push w "$remote"
	says out 'w: pushed 3 images'
	equal "$dir"

	# Nothing is carried twice.
	: >calls
	exits 0 usnap push -q w "$remote"
	same 'output of -q' "$(cat out err)" ''
	same 'calls of a second push' "$(grep -v ' lsjson ' calls || true)" ''
	exits 0 usnap push --json w "$remote"
	same 'pushed again' "$(jq -c '[.pushed, .present, .file_bytes]' out)" '[0,3,0]'
	take 1
	: >calls
	exits 0 usnap push --json w "$remote"
	same 'pushed then' "$(jq -c '[.pushed, .present]' out)" '[1,3]'
	same 'files written' "$(grep -c ' copyto ' calls)" 1
	equal "$dir"

	# What arrives damaged gets no name.
	take 1
	DAMAGE=$dir exits 1 usnap push w "$remote"
	says err 'what arrived'
	same 'names there' "$(images "$dir" | wc -w)" 4
	exits 0 usnap push -q w "$remote"
	equal "$dir"

	# Into an empty store, and again.
	exits 0 usnap pull -n --store copy "$remote"
	says out 'would pull 5 images'
	[ ! -e copy ] || fail '--dry-run has made a store'
	exits 0 usnap pull --store copy "$remote" v
	usnap verify -q --store copy --all
	for f in store/w/*.usnap; do cmp "$f" "copy/v/${f##*/}"; done
	same 'the latest' "$(readlink copy/v/latest)" "$(readlink store/w/latest)"
	: >calls
	exits 0 usnap pull -q --store copy "$remote" v
	same 'calls of a second pull' "$(grep -v ' lsjson ' calls || true)" ''

	# Damage there is named, and what does not need it is carried.
	last=$(images "$dir") last=${last##* }
	flip "$dir/$last"
	exits 0 usnap push -q w "$remote"
	exits 3 usnap push --check w "$remote"
	says err "$last': it differs"
	exits 3 usnap pull --store other "$remote"
	says err "$last': offset "
	same 'pulled beside damage' "$(images other/w | wc -w)" 4
	usnap verify -q --store other --all
	cp "store/w/$last" "$dir/$last"
	first=$(images "$dir") first=${first%% *}
	truncate -s -512 "$dir/$first"
	exits 3 usnap push w "$remote"
	says err "$first': it has "
	exits 3 usnap pull --store third "$remote"
	says err "$first"
	usnap verify -q --store third --all
	cp "store/w/$first" "$dir/$first"
	mv "$dir/$last" "$dir/2${last:1:2}0${last:4}" # of some years before
	exits 3 usnap pull --store fourth "$remote"
	says err 'another image than its name says'
	same 'pulled beside a wrong name' "$(images fourth/w | wc -w)" 4
	rm -rf copy other third fourth "$dir"
	usnap rm -q "w@$(usnap list --json w | jq -r '.images[-1].id')"
	usnap rm -q "w@$(usnap list --json w | jq -r '.images[-1].id')"
}
check_remote dav:deep/w "$PWD/served/deep/w"
check_remote "here:$PWD/here/w" "$PWD/here/w"

# --- killed anywhere ---------------------------------------------------------------

take 3
kill_after() {
	local pid
	"$UFFD_SNAP" "$@" >killed 2>&1 &
	pid=$!
	adopt $pid
	sleep "$(printf '%d.%03d' $((RANDOM % 2)) $((RANDOM % 1000)))"
	kill -KILL $pid 2>/dev/null || true
	wait $pid 2>/dev/null || true
}
for ((i = 0; i < $(times 5 100); i++)); do
	kill_after push w dav:killed
	kill_after pull --store back dav:killed
	for f in served/killed/*.usnap; do
		[ -e "$f" ] || continue
		cmp "$f" "store/w/${f##*/}"
		usnap verify -q "$f"
	done
	[ ! -e back ] || usnap verify -q --store back --all
	# Whoever has got through has to begin again.
	[ "$(images served/killed 2>/dev/null | wc -w)" -lt 6 ] || rm -rf served/killed
done
# An orphan of the last one may take a moment to end.
finished() {
	usnap push -q w dav:killed && usnap pull -q --store back dav:killed &&
		[ "$(ls -A served/killed)" = "$(images store/w | tr ' ' '\n')" ]
}
wait_until 60 finished
equal served/killed
usnap verify -q --store back --all
for f in store/w/*.usnap; do cmp "$f" "back/killed/${f##*/}"; done
f=$(images served/killed) f=${f%% *}
: >"served/killed/.$f.0123abcd.part"
: >served/killed/.others.part
exits 0 usnap push w dav:killed
says out '1 leftover of runs that were killed removed'
same 'what is left' "$(cd served/killed && echo .[!.]*)" .others.part

# --- one image, odd names, and what is refused ---------------------------------

id=$(usnap list --json w | jq -r '.images[2].id')
exits 0 usnap push --json "w@$id" "$PWD/one"
jq -e --arg id "$id" '.images[-1].id == $id' out >/dev/null || fail 'another image than asked for'
usnap verify -q one/*.usnap
same 'modes there' "$(stat -c %a one one/*.usnap | sort -u | tr '\n' ' ')" '600 700 '
usnap snapshot -q "$target" --name a:b
exits 0 usnap push a:b "here:$PWD/colon"
exits 0 usnap pull "here:$PWD/colon"
[ -d store/colon ] || fail 'no name was made of the path'

exits 1 env PATH=/nonexistent "$UFFD_SNAP" push w dav:x
says err "cannot find 'rclone'"
says err 'hint: install it'
exits 1 usnap push w no-such-remote:x
says err "cannot list 'no-such-remote:x': rclone: "
exits 1 usnap pull dav:no-such-directory
says err 'directory not found'
exits 1 usnap push nobody dav:x
says err 'has no such name'
exits 2 usnap push dav:x w
exits 2 usnap push w x
exits 2 usnap pull dav:
exits 2 usnap pull dav:x ../w
exits 1 usnap push w --store store -- -n:x
exec 9<store/w
flock 9
exits 0 usnap push -q --skip-if-busy w dav:x
same 'output of a skipped push' "$(cat out err)" ''
exec 9<&-
same 'files beside' "$(find store -name '.*.part')" ''
kill -0 "$target"

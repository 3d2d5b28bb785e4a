#!/bin/bash
# An image of each format version made so far reads as it did, and broken ones are refused by name.
# also: asan
. "$(dirname "$0")/../lib.sh"

# tests/golden/vN holds the images of format version N (made by make.sh of golden.c), what info said
# of them, and "broken": a line for each broken one, "NAME; COMMAND; EXIT STATUS; MESSAGE". Broken
# ones are made here from the good ones; those whose hashes are right all the same are kept.
export TZ=UTC

# line IMAGE PAGE: the line with which it begins.
line() { usnap read "$1" $((0x10000000 + $2 * 4096)) 64 | tr -d '\0'; }

# reads IMAGE [PAGE TEXT]...: all else is as in the first state.
reads() {
	local image=$1 page
	local -a want=()
	for page in 0 1 2 3 4 5 6 7; do
		want[page]="page $page, first state"
	done
	want[3]=''
	shift
	while [ $# -gt 0 ]; do
		want[$1]=$2
		shift 2
	done
	for page in "${!want[@]}"; do
		same "page $page of $image" "$(line "$image" "$page")" "${want[page]}"
	done
}

# content IMAGE MEMBER: offset of what it holds.
content() {
	local at
	at=$(LC_ALL=C grep -aboF "$2" "$1" | awk -F: '$1 % 512 == 0 { at = $1 } END { print at }')
	echo $((at + 512))
}

# poke IMAGE OFFSET BYTES: as printf writes them.
poke() {
	# shellcheck disable=SC2059 # escapes
	printf "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# break_it NAME: NAME.usnap, and what it needs to be broken in that way.
break_it() {
	local f=$1.usnap at
	rm -f ./*.usnap
	cp "$golden/full.usnap" "$f"
	case $1 in
	empty) : >"$f" ;;
	text) printf 'not an image, but a text that is longer than a tar header\n%.0s' {1..20} >"$f" ;;
	magic) poke "$f" 257 'xxxxx' ;;
	cut) truncate -s "$(($(stat -c %s "$f") / 1024 * 512))" "$f" ;;
	cut-odd) truncate -s -1 "$f" ;;
	longer) truncate -s +512 "$f" ;;
	no-commit)
		at=$(content "$f" commit.json)
		truncate -s $((at - 512)) "$f"
		truncate -s +1024 "$f"
		;;
	commit-byte) poke "$f" $(($(content "$f" commit.json) + 20)) 'X' ;;
	snapshot-byte) poke "$f" $(($(content "$f" snapshot.json) + 20)) 'X' ;;
	page-byte) poke "$f" $(($(content "$f" pages/000000.zst) + 8000)) '\xa5\x5a' ;;
	header-byte) poke "$f" $(($(content "$f" pages/000000.zst) - 512 + 110)) '7' ;;
	index-byte) poke "$f" $(($(content "$f" index.zst) + 40)) '\xa5\x5a' ;;
	# The frame's header says that all of memory is needed for it.
	index-size) poke "$f" $(($(content "$f" index.zst) + 4)) '\xe4\x40\xff\xff\xff\xff\xff\x0f\x00' ;;
	newer-*) cp "$golden/$f" . ;;
	parent-missing) cp "$golden/child.usnap" "$f" ;;
	parent-other)
		cp "$golden/child.usnap" "$f"
		cp "$golden/child.usnap" "$(awk '$1 == "parent" { print $2 }' "$golden/child.info").usnap"
		;;
	parent-byte)
		cp "$golden/child.usnap" "$f"
		cp "$golden/full.usnap" .
		poke full.usnap $(($(content full.usnap pages/000000.zst) + 8000)) '\xa5\x5a'
		;;
	*) fail "nobody knows how to break: $1" ;;
	esac
}

for golden in "$TESTS"/golden/v*; do
	for i in full child; do
		rm -f ./*.usnap
		cp "$golden"/{full,child}.usnap .
		exits 0 usnap info $i.usnap
		diff -u "$golden/$i.info" out || fail "info says something else of $golden/$i.usnap"
		exits 0 usnap verify $i.usnap
		says out "$i.usnap: sound"
	done
	reads full.usnap
	reads child.usnap 1 'page 1, second state' 6 ''

	while IFS=';' read -r name command status message; do
		[[ $name == \#* ]] && continue
		break_it "$name"
		file=$name.usnap
		# shellcheck disable=SC2086 # several words
		exits ${status// /} usnap ${command/FILE/$file}
		said=$(cat out err | sed "s|$PWD/||g; s|$PWD|.|g; q")
		if [ "$said" != "${message# }" ]; then
			echo "$name;$command;$status; $said"
			differ=1
		fi
	done <"$golden/broken"
done
[ -z "${differ:-}" ] || fail 'other messages, see above'

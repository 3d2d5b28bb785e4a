#!/bin/bash
# tar, zstd and jq open every member of an image.
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

need tar zstd jq objcopy readelf xxd xxhsum strings
work_start --size 32M --statics
usnap snapshot -q "$work_pid" -o i.usnap
work_end
tar tvf i.usnap >list 2>err
same 'complaints of tar' "$(cat err)" ''
same 'first member' "$(head -n 1 list | awk '{print $NF}')" snapshot.json
same 'last member' "$(tail -n 1 list | awk '{print $NF}')" commit.json
same 'other modes than 0600' "$(grep -cv '^-rw------- ' list || true)" 0
mkdir x
tar xf i.usnap -C x
for f in snapshot process stats commit; do
	jq -e . "x/$f.json" >/dev/null
done
find x -type f | sort | while read -r f; do
	case $f in
	*.json) jq -e . "$f" >/dev/null ;;
	*.zst) zstd -dq -c "$f" >raw && [ -s raw ] ;;
	*.notes) [ -s "$f" ] ;;
	*) fail "what is '$f'?" ;;
	esac
done
zstd -dqc x/index.zst >index
same 'pages by jq and by zstd' "$(jq .pages x/commit.json)" \
	"$(od -An -t u8 -j 32 -N 8 index | tr -d ' ')"
same magic "$(head -c 8 index)" USNAPIDX
raw=$(cat x/pages/*.zst | zstd -dqc | wc -c)
number() { od -An -t u8 -j "$1" -N 8 index | tr -d ' '; }
frames=$(od -An -t u4 -w32 -v -j $((64 + 32 * $(number 16))) -N $((32 * $(number 24))) index |
	awk '{n += $2} END {print n}')
same 'bytes of pages' "$raw" "$frames"
# Equal pages lie there once.
[ $((raw / 4096)) -le "$(jq .pages x/commit.json)" ] || fail "more pages than the index has"

# ---- the recipes of the manual, as they are printed
awk '/^\.Sh / { inside = ($2 == "EXAMPLES") } inside && sub(/^\$ |^\.Dl \$ /, "")' \
	"$TOP/man/uffd-snap-image.5" | sed 's/redis\.usnap/i.usnap/g; s/\\e/\\/g' >recipes
# recipe PATTERN: runs the line that has it, as in a shell of every day: head(1) ends what comes before it.
recipe() {
	[ "$(grep -c -- "$1" recipes)" -eq 1 ] || fail "recipes with '$1': $(cat recipes)"
	set +o pipefail
	eval "$(grep -- "$1" recipes)"
	set -o pipefail
}
recipe 'tar tvRf' >told
grep -q 'index.zst$' told || fail "no member 'index.zst'"
recipe 'target.comm' >told
same 'whose image' "$(head -n 1 told)" "$(jq .target.comm x/snapshot.json)"
recipe '\.files\[\]' >told
same 'open files' "$(wc -l <told)" "$(jq '.files | length' x/process.json)"
tid=$(jq '.threads[0].tid' x/process.json)
sed -i "s/4711/$tid/" recipes
recipe 'threads/'
recipe objcopy
recipe 'readelf -n' >told
for note in 'CORE .*NT_VERSION' 'CORE .*NT_ARCH' 'LINUX .*0x0*202)' 'CORE .*0x53494749)'; do
	grep -q "$note" told || fail "no $note: $(cat told)"
done
recipe 'index.zst' >told
same 'records of the index' "$(wc -l <told)" $(($(wc -c <index) / 32 + 1))
# The first frame: its record is behind those of the images.
at=$((64 + 32 * $(number 16)))
# shellcheck disable=SC2034 # of the recipes
bytes=$(od -An -t u4 -j $((at + 8)) -N 4 index | tr -d ' ')
# shellcheck disable=SC2034
offset=$(number $((at + 16)))
recipe xxd >told
same 'lines of the frame' "$(wc -l <told)" 10
recipe 'jq .bytes'
recipe xxhsum >told
same 'hash of the file' "$(awk '{print $1}' told)" "$(recipe 'jq -r .archive_xxh3')"
# Whether anything is found is up to the process.
recipe strings >told || [ ! -s told ]

#!/bin/bash
# tar, zstd and jq open every member of an image.
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

need tar zstd jq
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

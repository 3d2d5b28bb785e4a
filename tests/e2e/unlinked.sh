#!/bin/bash
# Unlinked files and memfds are in the image with the bytes of T0, in step with memory, up to --ghost-limit.
. "$(dirname "$0")/../lib.sh"

need jq cmp
start_workload ghostfiles
pid=$started
read -r record half <ghostfiles.out

# u64 IMAGE ADDRESS
u64() { usnap read "$1" "$2" 8 | od -An -tu8 | tr -d ' '; }
# content IMAGE FD: the address of what a descriptor refers to.
content() {
	jq -r --argjson fd "$2" '.files[] as $f | select($f.fd == $fd) |
		.unlinked[] | select(.inode == $f.inode and .dev == $f.dev) |
		.content.address // "none"' "$1.json"
}
# plus ADDRESS N
plus() { printf '0x%x' $(($1 + $2)); }

take() {
	local image=$1
	shift
	exits 0 usnap snapshot -q "$pid" -o "$image" "$@"
	exits 0 usnap verify "$image"
	tar xOf "$image" process.json >"$image.json"
}

in_step() {
	local image=$1 last v values
	values=$(
		u64 "$image" "$record"
		u64 "$image" "$(content "$image" 20)"
		u64 "$image" "$(plus "$(content "$image" 21)" 8)"
		u64 "$image" "$half"
		u64 "$image" "$(content "$image" 22)"
		u64 "$image" "$(plus "$record" 8)"
	)
	last=$(head -n 1 <<<"$values")
	for v in $values; do
		[ "$v" -le "$last" ] || fail "$image: out of step: ${values//$'\n'/ }"
		last=$v
	done
	[ $(($(head -n 1 <<<"$values") - last)) -le 1 ] || fail "$image: out of step: ${values//$'\n'/ }"
	[ "$last" -gt 0 ] || fail "$image: nothing in it"
}

for _ in 1 2 3 4 5; do
	take a.usnap --ghost-limit 8M
	in_step a.usnap
done

# What does not change, byte by byte; what is mostly not there; what is too large.
usnap read a.usnap "$(content a.usnap 23)" $((3 << 20)) >image.bytes
cmp image.bytes "/proc/$pid/fd/23" || fail 'the file that does not change'
usnap read a.usnap "$(plus "$(content a.usnap 24)" $(((1 << 30) - 4096)))" 4096 >image.bytes
tail -c 4096 "/proc/$pid/fd/24" | cmp - image.bytes || fail 'the sparse file'
same 'large file' "$(content a.usnap 25)" none
same 'refused' "$(jq -r '[.limits_of_restore[] | select(.severity == "refuse") | .what] | join(" ")' \
	a.usnap.json)" deleted-file
[ "$(stat -c %s a.usnap)" -lt $((16 << 20)) ] || fail 'the image is larger than what it holds'

# The mapped half of the memfd is there once.
exits 1 usnap read a.usnap "$(plus "$(content a.usnap 21)" $((2 * 65536)))" 8
same 'second half' "$(u64 a.usnap "$(plus "$(content a.usnap 21)" 65536)")" 0

# All of them, or none.
take b.usnap
usnap read b.usnap "$(content b.usnap 25)" $((10 << 20)) >image.bytes
cmp image.bytes "/proc/$pid/fd/25" || fail 'the large file'
same 'refused' "$(jq -c '[.limits_of_restore[] | select(.severity == "refuse")]' b.usnap.json)" '[]'
take c.usnap --ghost-limit 0
same 'contents' "$(jq '[.unlinked[] | select(.content and .size > 0)] | length' c.usnap.json)" 0

# In step also where the process is stopped for good.
exits 0 usnap snapshot -q --kill "$pid" -o d.usnap
tar xOf d.usnap process.json >d.usnap.json
in_step d.usnap

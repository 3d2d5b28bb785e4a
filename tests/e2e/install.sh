#!/bin/bash
# What make install puts below DESTDIR works from there, and make uninstall takes all of it away.
# timeout: 300
. "$(dirname "$0")/../lib.sh"
need pkg-config gcc jq

# With other flags than those of tests/run all would be built again.
[ -e "$TOP/include/uffd-snap.h" ] || fail "there is no header to install"
make -s -C "$TOP" B="$B" WERROR=1 DESTDIR="$PWD/root" PREFIX=/opt/us install >make.log 2>&1 ||
	fail "$(cat make.log)"
prefix=$PWD/root/opt/us

"$prefix/bin/uffd-snap" --version
for f in "$TOP"/man/*; do
	cmp "$f" "$prefix/share/man/man${f##*.}/${f##*/}"
done
cmp "$TOP/scripts/completions/uffd-snap.bash" "$prefix/share/bash-completion/completions/uffd-snap"
cmp "$TOP/scripts/completions/_uffd-snap" "$prefix/share/zsh/site-functions/_uffd-snap"
diff <(ls "$TOP/scripts/examples") <(ls "$prefix/share/doc/uffd-snap/examples")

# The command finds the agent, and the examples name it where it is.
"$prefix/bin/uffd-snap" run --name installed -- grep -q "$prefix/lib/libuffd-snap-agent.so" /proc/self/maps
grep -q '^Environment=LD_PRELOAD=/opt/us/lib/libuffd-snap-agent.so$' "$prefix/share/doc/uffd-snap/examples/uffd-snap-ready.conf"

# A program of a user's own, with the shared library and with the static one.
# It is the manual's, with an address that the process has: where a stack begins lies the name of the program.
start_workload witness
usnap snapshot -q "$started" -o user.usnap
address=$(usnap info --json user.usnap | jq -r '[.process.maps[] | select(.path == "[stack]")][0].end')
address=$(printf '0x%x' $((address - 16)))
block_of_manual libuffd-snap.3 1 | sed "s/0x55d0c0de1000/$address/" >user.c
grep -q "$address" user.c || fail "the manual reads from elsewhere"
wanted=$(printf 'witness\0' | od -An -t x8 | sed 's/^ *0*/0x/')
export PKG_CONFIG_PATH=$prefix/lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=$PWD/root
read -ra flags < <(pkg-config --cflags --libs libuffd-snap)
gcc -Wall -Wextra -Werror -Wno-unused-parameter -pedantic -std=c99 user.c "${flags[@]}" -o user
same 'with the shared library' "$(LD_LIBRARY_PATH=$prefix/lib ./user user.usnap)" "$wanted"
read -ra static < <(PKG_CONFIG_SYSROOT_DIR='' pkg-config --static --libs libuffd-snap)
static=("-L$prefix/lib" "${static[@]/#-luffd-snap/-l:libuffd-snap.a}")
read -ra cflags < <(pkg-config --cflags libuffd-snap)
gcc -Wall -Wextra -Werror -Wno-unused-parameter user.c "${cflags[@]}" "${static[@]}" -o user-static
same 'with the static library' "$(./user-static user.usnap)" "$wanted"
# Headers are read by C++ too.
if command -v g++ >/dev/null; then
	cp user.c user.cc
	g++ -Wall -Werror user.cc "${flags[@]}" -o user-cc
fi

# Only public names go out, from either.
nm -D --defined-only "$prefix/lib/libuffd-snap.so" | awk '$2 != "A" {print $3}' | sed 's/@.*//' >shared
nm --defined-only --extern-only "$prefix/lib/libuffd-snap.a" | awk 'NF == 3 {print $3}' >static
for f in shared static; do
	[ -s $f ] || fail "the $f library exports nothing"
	if grep -v '^usnap_' $f; then fail "the $f library exports the names above"; fi
done
cmp <(sort shared) <(sort static)

make -s -C "$TOP" B="$B" WERROR=1 DESTDIR="$PWD/root" PREFIX=/opt/us uninstall >make.log 2>&1
left=$(find root ! -type d)
same 'files left by uninstall' "$left" ''

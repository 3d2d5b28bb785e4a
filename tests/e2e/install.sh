#!/bin/bash
# What make install puts below DESTDIR works from there, and make uninstall takes all of it away.
# timeout: 300
. "$(dirname "$0")/../lib.sh"
need pkg-config gcc

[ -e "$TOP/include/uffd-snap.h" ] || fail "there is no header to install"
make -s -C "$TOP" B="$B" DESTDIR="$PWD/root" PREFIX=/opt/us install >make.log 2>&1 ||
	fail "$(cat make.log)"
prefix=$PWD/root/opt/us

"$prefix/bin/uffd-snap" --version
for m in man1/uffd-snap.1 man7/uffd-snap.7 man5/uffd-snap-image.5 man7/uffd-snap-store.7 man3/libuffd-snap.3 man7/uffd-snap-agent.7; do
	[ -s "$prefix/share/man/$m" ] || fail "not installed: $m"
done

# The command finds the agent, and the examples name it where it is.
"$prefix/bin/uffd-snap" run --name installed -- grep -q "$prefix/lib/libuffd-snap-agent.so" /proc/self/maps
grep -q '^Environment=LD_PRELOAD=/opt/us/lib/libuffd-snap-agent.so$' "$prefix/share/doc/uffd-snap/examples/uffd-snap-ready.conf"

# A program of a user's own, with the shared library and with the static one.
cat >user.c <<'END'
#include <uffd-snap.h>

int main(void)
{
	return 0;
}
END
export PKG_CONFIG_PATH=$prefix/lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=$PWD/root
read -ra flags < <(pkg-config --cflags --libs libuffd-snap)
gcc -Wall -Wextra -Werror -pedantic -std=c99 user.c "${flags[@]}" -o user
LD_LIBRARY_PATH=$prefix/lib ./user
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

make -s -C "$TOP" B="$B" DESTDIR="$PWD/root" PREFIX=/opt/us uninstall >make.log 2>&1
left=$(find root ! -type d)
same 'files left by uninstall' "$left" ''

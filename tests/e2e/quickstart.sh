#!/bin/bash
# README's first command runs to its end, and nothing that an earlier build left is needed for it.
# timeout: 180
. "$(dirname "$0")/../lib.sh"
need make redis-server redis-cli redis-benchmark gdb jq

# From a fresh checkout make knows a way to all that the quickstart builds; with -n it does not go it.
mkdir fresh
for f in Makefile include src tests man scripts; do
	cp -r "$TOP/$f" fresh/
done
status=0
env -u B MAKEFLAGS=n fresh/scripts/quickstart >dry 2>&1 || status=$?
same 'status where nothing was built' "$status" 1
if grep '^make.*\*\*\*' dry; then fail "make does not know how to build what the quickstart needs"; fi
grep -q -- '-o .*/fresh/build/uffd-snap ' dry || fail "nothing would be built: $(cat dry)"

# And here it does all it says. With other flags than those of tests/run all would be built again.
WERROR=1 KEYS=20000 "$TOP/scripts/quickstart" >out 2>&1 || fail "$(tail -n 30 out)"
for said in 'is ready' 'uffd-snap snapshot .* us ' 'BGSAVE .* us ' '^keys before \([0-9]*\), after \1$' \
	'^and their values are the same$' '^restored as process ' '^started anew: ' '^done; '; do
	grep -q "$said" out || fail "it does not say \"$said\": $(cat out)"
done
grep -q '^#0 ' out || fail "gdb shows no stack: $(cat out)"

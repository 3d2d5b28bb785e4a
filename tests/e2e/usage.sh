#!/bin/bash
# Wrong use is exit status 2 with a hint; help and version go to standard output; a full or closed output is noticed.
# also: asan
. "$(dirname "$0")/../lib.sh"

exits 2 usnap
says err "hint: try 'uffd-snap help'"
exits 2 usnap --frobnicate
says err "unknown option '--frobnicate'"
exits 2 usnap snaphsot
says err "did you mean 'uffd-snap snapshot'?"
exits 2 usnap veri
says err "did you mean 'uffd-snap verify'?"
exits 2 usnap xyzzy
says_not err "did you mean"
exits 2 usnap $'evil\033[2Jname'
says_not err $'\033'
exits 2 usnap help help help
exits 2 usnap check 12x
says err "cannot check '12x': not a process id"
exits 2 usnap check -- -5
exits 2 usnap check --nope

exits 0 usnap --version
same version "$(cat out)" "uffd-snap $(sed -n 's/^VERSION *:= *//p' "$TOP/Makefile")"
same stderr "$(cat err)" ''
exits 0 usnap --help
cp out overview
exits 0 usnap help
cmp out overview
same stderr "$(cat err)" ''

for c in snapshot info verify read core restore diff merge list prune rm push pull run ps check help; do
	grep -q "^  $c " overview || fail "'$c' is not in the overview"
	exits 0 usnap help "$c"
	says out "usage: uffd-snap $c"
	same "'--help' among the options of $c" "$(grep -c '^      --help  ' out)" 1
	cp out by-help
	exits 0 usnap "$c" --help
	cmp out by-help
	# What follows "run" can be a command with options of its own.
	[ "$c" = run ] || exits 0 usnap "$c" --nonsense whatever --help
	# After "--", it is an argument.
	[ "$c" = help ] || {
		got=0
		usnap "$c" -- --help >out 2>err || got=$?
		[ $got -ne 0 ] || fail "'$c -- --help' succeeded"
	}
done

# An output that cannot be written is a failure, and said so.
got=0
usnap help >/dev/full 2>err || got=$?
same 'exit status on a full disk' $got 1
says err "cannot write 'standard output': No space left on device"
got=0
usnap help >&- 2>err || got=$?
same 'exit status on a closed stdout' $got 1
# With nothing open at all, nothing is harmed.
got=0
usnap help <&- >&- 2>&- || got=$?
same 'exit status with all closed' $got 1

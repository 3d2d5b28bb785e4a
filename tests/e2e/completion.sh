#!/bin/bash
# The completion of bash offers the commands, for each its options, and names and times.
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-typed.sh"
need python3

# shellcheck source=scripts/completions/uffd-snap.bash
. "$TOP/scripts/completions/uffd-snap.bash"

# complete_words WORD...: what is offered for the last word.
complete_words() (
	# As in an interactive shell, where nothing matching is no failure.
	set +eu
	trap - ERR EXIT
	COMP_WORDS=("$UFFD_SNAP" "$@")
	COMP_CWORD=$#
	COMP_LINE="${COMP_WORDS[*]}"
	COMP_POINT=${#COMP_LINE}
	COMPREPLY=()
	_uffd_snap
	printf '%s\n' "${COMPREPLY[@]-}"
)

complete_words '' >offered
export UFFD_SNAP_STORE=$PWD/store
for c in snapshot info verify read core restore diff merge list prune rm push pull run ps check help; do
	grep -qx "$c" offered || fail "'$c' is not offered"
	[ "$c" = help ] && continue
	complete_words "$c" -- >options
	usnap help "$c" | sed -n '/^options:/,$p' | grep -oE '^ +(-., )?--[a-z-]+' |
		grep -oE -- '--[a-z-]+' | sort -u >wanted
	diff <(sort -u wanted) <(sort -u options) || fail "options offered for '$c'"
done
complete_words sn >offered
same 'sn' "$(cat offered)" snapshot
complete_words check '' >offered
grep -qx $$ offered || fail "own process id is not offered"
: >here.usnap
: >here.txt
complete_words verify her >offered
same 'image' "$(cat offered)" here.usnap
complete_words core -o here.t >offered
same 'option argument' "$(cat offered)" here.txt
complete_words restore --ignore use >offered
same 'kind' "$(cat offered)" userfaultfd

# ---- names and times, as they are typed
start env LD_PRELOAD="$AGENT" UFFD_SNAP_NAME=typed-$$ "$WORKLOADS/witness"
wait_until 20 eval 'usnap ps --ready | grep -q "typed-$$"'
for _ in 1 2; do
	usnap snapshot -q "$started" --name demo
done
usnap snapshot -q "$started" --name other --store elsewhere
usnap list -q demo >taken
common=$(sed -e '$!{N;s/^\(.*\).*\n\1.*$/\1/}' taken)
mkdir files
: >files/in.usnap
cat >rc <<END
PS1='> '
bind 'set show-all-if-ambiguous on'
bind 'set completion-query-items 0'
bind 'set page-completions off'
bind 'set completion-display-width 0'
bind 'set enable-bracketed-paste off'
bind 'set bell-style none'
bind -x '"\C-t": printf "<line:%s>\n" "\$READLINE_LINE"'
PATH=${UFFD_SNAP%/*}:\$PATH
. '$TOP/scripts/completions/uffd-snap.bash'
END
for c in info verify read core restore diff merge rm push; do
	echo "uffd-snap $c dem|uffd-snap $c demo|"
	echo "uffd-snap $c demo@|uffd-snap $c $common|$(sed 's/.*@/@/' taken | tr '\n' ' ')"
done >cases
cat >>cases <<END
uffd-snap sn|uffd-snap snapshot |
uffd-snap help sn|uffd-snap help snapshot |
uffd-snap prune dem|uffd-snap prune demo |
uffd-snap list dem|uffd-snap list demo |
uffd-snap list --store elsewhere |uffd-snap list --store elsewhere other |
uffd-snap info --store elsewhere o|uffd-snap info --store elsewhere other|
uffd-snap info --store=elsewhere o|uffd-snap info --store=elsewhere other|
uffd-snap info --store=elsewhere other@|uffd-snap info --store=elsewhere $(usnap list -q --store elsewhere) |
uffd-snap info --store=elsew|uffd-snap info --store=elsewhere/|
uffd-snap info --store elsew|uffd-snap info --store elsewhere/|
uffd-snap info $(head -n 1 taken | sed 's/.$//')|uffd-snap info $(head -n 1 taken) |
uffd-snap verify files/|uffd-snap verify files/in.usnap |
uffd-snap diff demo@x files/|uffd-snap diff demo@x files/in.usnap |
uffd-snap snapshot typed-$$|uffd-snap snapshot typed-$$ |
uffd-snap snapshot 1 --name dem|uffd-snap snapshot 1 --name demo |
uffd-snap snapshot --name=dem|uffd-snap snapshot --name=demo |
uffd-snap snapshot --pare|uffd-snap snapshot --parent |
uffd-snap list --|uffd-snap list --|--help --json --quiet --store
END
typed bash --rcfile rc -i <cases
# Where words end elsewhere. (A directory is none to bash then, with "--store=" before it.)
echo 'COMP_WORDBREAKS=${COMP_WORDBREAKS//[@:=]/}' >>rc
grep -v -e '@|' -e '=elsew|' cases | typed bash --rcfile rc -i

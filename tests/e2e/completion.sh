#!/bin/bash
# The completions of bash and zsh offer the commands, and for each command its options.
. "$(dirname "$0")/../lib.sh"

# shellcheck source=scripts/completions/uffd-snap.bash
. "$TOP/scripts/completions/uffd-snap.bash"

# complete_words WORD...: what is offered for the last word.
complete_words() (
	# As in an interactive shell, where nothing matching is no failure.
	set +eu
	trap - ERR EXIT
	COMP_WORDS=("$UFFD_SNAP" "$@")
	COMP_CWORD=$#
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
	echo --help >>wanted
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
start_workload witness
usnap snapshot -q "$started" --name stored
for c in info verify restore list prune push; do
	complete_words $c sto >offered
	grep -qx stored offered || fail "the name of an image is not offered by $c"
done
complete_words info stored@ >offered
same 'times' "$(cat offered)" "$(usnap list -q stored)"
complete_words prune --store sto >offered
same 'store' "$(cat offered)" store

need zsh
zsh -n "$TOP/scripts/completions/_uffd-snap"

#!/bin/bash
# The completion of zsh offers the commands, for each its options, and names and times.
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-typed.sh"
need python3 zsh

export UFFD_SNAP_STORE=$PWD/store
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

mkdir zdot functions
cp "$TOP/scripts/completions/_uffd-snap" functions
cat >zdot/.zshrc <<END
PS1='> ' LISTMAX=0
bindkey -e
unsetopt beep list_ambiguous always_last_prompt prompt_sp
unset zle_bracketed_paste
show-line() { zle -I; print -r -- "<line:\$BUFFER>"; }
zle -N show-line
bindkey '^T' show-line
path=(${UFFD_SNAP%/*} \$path)
fpath=($PWD/functions \$fpath)
autoload -Uz compinit
compinit -u -D
zstyle ':completion:*' verbose no
END

# options COMMAND: all of them, on one line.
options() {
	usnap help "$1" | sed -n '/^options:/,$p' | grep -oE '^ +(-., )?--[a-z-]+' |
		grep -oE -- '--[a-z-]+' | tr '\n' ' '
}

for c in info verify read core restore diff merge rm push; do
	echo "uffd-snap $c dem|uffd-snap $c demo|"
	echo "uffd-snap $c demo@|uffd-snap $c $common|$(tr '\n' ' ' <taken)"
done >cases
cat >>cases <<END
uffd-snap |uffd-snap |--help --version $(usnap help | sed -n '/^commands:/,/^$/s/^  \([a-z]*\) .*/\1/p' | tr '\n' ' ')
uffd-snap sn|uffd-snap snapshot |
uffd-snap help sn|uffd-snap help snapshot |
uffd-snap list --|uffd-snap list --|$(options list)
uffd-snap restore --|uffd-snap restore --|$(options restore)
uffd-snap snapshot --|uffd-snap snapshot --|$(options snapshot)
uffd-snap restore --ignore userf|uffd-snap restore --ignore userfaultfd |
uffd-snap prune dem|uffd-snap prune demo |
uffd-snap list --store elsewhere o|uffd-snap list --store elsewhere other |
uffd-snap info --store=elsewhere o|uffd-snap info --store=elsewhere other|
uffd-snap info --store elsewhere other@|uffd-snap info --store elsewhere $(usnap list -q --store elsewhere) |
uffd-snap verify files/|uffd-snap verify files/in.usnap |
uffd-snap snapshot typed-$$|uffd-snap snapshot typed-$$ |
uffd-snap snapshot $started --name dem|uffd-snap snapshot $started --name demo |
END
export ZDOTDIR=$PWD/zdot TERM=dumb
typed zsh -d -i <cases

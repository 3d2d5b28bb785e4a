# shellcheck shell=bash
# bash completion for uffd-snap(1). Commands and options are asked of the
# command itself ("uffd-snap help"), so that they always agree.
#
# bash cuts words at the '@' of a time, at ':' and at '=' too (COMP_WORDBREAKS),
# and replaces what follows the last of these, a '@' itself included. So words
# are put together again here, and of those offered the rest is handed over.

# Sets "words": those up to the cursor, the last one as far as the cursor.
_uffd_snap_words() {
	local rest=$COMP_LINE after=${COMP_LINE:COMP_POINT} gap i over
	words=()
	for ((i = 0; i <= COMP_CWORD; i++)); do
		gap=${rest%%[![:space:]]*}
		if [ -n "$gap" ] || [ "$i" -eq 0 ]; then
			words+=("${COMP_WORDS[i]}")
		else
			words[${#words[@]} - 1]+=${COMP_WORDS[i]}
		fi
		rest=${rest#"$gap"}
		rest=${rest#"${COMP_WORDS[i]}"}
	done
	i=$((${#words[@]} - 1)) over=$((${#after} - ${#rest}))
	[ "$over" -le 0 ] || [ "$over" -gt ${#words[i]} ] || words[i]=${words[i]:0:-over}
}

# offer WORD: those of the lines read that begin with it. (compgen -W would expand them.)
_uffd_snap_offer() {
	local line
	while IFS= read -r line; do
		[[ -n $line && $line == "$1"* ]] && COMPREPLY+=("$line")
	done
}

_uffd_snap_commands() {
	"$1" help 2>/dev/null | sed -n '/^commands:/,/^$/s/^  \([a-z]*\) .*/\1/p'
}

_uffd_snap_pids() {
	local d
	for d in /proc/[0-9]*; do
		# Kernel threads have no command line.
		[ -r "$d/cmdline" ] && IFS= read -r -d '' -n 1 _ <"$d/cmdline" && echo "${d#/proc/}"
	done 2>/dev/null
}

# Processes that are ready for snapshots have a name.
_uffd_snap_ready() {
	"$1" ps --ready 2>/dev/null | awk '$2 == "yes" && $3 != "-" {print $3}'
}

# names TOOL WORD [OPTION]...: names in the store, and once there is an "@", the times of one.
_uffd_snap_names() {
	local tool=$1 word=$2
	shift 2
	if [[ $word == *@* ]]; then
		"$tool" list -q "$@" -- "${word%%@*}"
	else
		"$tool" list -q "$@" | sed 's/@.*//' | uniq
	fi 2>/dev/null
}

# argument KIND WORD: for an option that takes one, by what its help calls it.
_uffd_snap_argument() {
	case $1 in
	*FILE* | *CORE* | *PATH* | PROGRAM)
		compopt -o filenames 2>/dev/null
		_uffd_snap_offer "$2" < <(compgen -f -- "$2")
		;;
	DIR)
		compopt -o filenames 2>/dev/null
		_uffd_snap_offer "$2" < <(compgen -d -- "$2")
		;;
	PID) _uffd_snap_offer "$2" < <(_uffd_snap_pids) ;;
	NAME) _uffd_snap_offer "$2" < <(_uffd_snap_names "$tool" "${2%%@*}" "${store[@]}") ;;
	COMMAND) _uffd_snap_offer "$2" < <(compgen -c -- "$2") ;;
	KIND)
		# It names them all when it knows none of the name.
		local kinds
		kinds=$("$tool" restore --ignore '' 2>&1)
		_uffd_snap_offer "$2" < <(tr ' ' '\n' <<<"${kinds##*there are }")
		;;
	esac
}

# positional USAGE WORD PREVIOUS: what else there can be, by the usage line.
_uffd_snap_positional() {
	local names
	if [[ $1 == *" COMMAND "* ]]; then
		# As on a command line of its own: then its files.
		if [[ $3 == run || $3 == -- ]]; then
			_uffd_snap_offer "$2" < <(compgen -c -- "$2")
		else
			compopt -o filenames 2>/dev/null
			_uffd_snap_offer "$2" < <(compgen -c -f -- "$2" | sort -u)
		fi
		return
	fi
	if [[ $1 == *PID* ]]; then
		_uffd_snap_offer "$2" < <(_uffd_snap_pids)
		[[ $1 == *"PID|NAME"* ]] && _uffd_snap_offer "$2" < <(_uffd_snap_ready "$tool")
		return
	fi
	if [[ $1 == *NAME* ]]; then
		_uffd_snap_offer "$2" < <(_uffd_snap_names "$tool" "$2" "${store[@]}")
		# For the time that can follow.
		names=${#COMPREPLY[@]}
		[[ $names -ne 1 || $1 != *@TIME* || $2 == *@* ]] || compopt -o nospace 2>/dev/null
	fi
	if [[ $1 == *REMOTE* ]]; then
		_uffd_snap_offer "$2" < <(rclone listremotes 2>/dev/null)
		[[ ${COMPREPLY[0]-} != *: ]] || compopt -o nospace 2>/dev/null
	elif [[ $1 == *FILE* && $2 != *@* ]]; then
		compopt -o filenames 2>/dev/null
		_uffd_snap_offer "$2" < <(compgen -d -- "$2"; compgen -f -X '!*.usnap' -- "$2")
		# A file as well as a name: they differ later.
		[[ ${#COMPREPLY[@]} -eq ${names:-0} ]] || compopt +o nospace 2>/dev/null
	fi
}

_uffd_snap() {
	local words word prev tool=${COMP_WORDS[0]} store=() help line i whole cut='' c
	COMPREPLY=()
	_uffd_snap_words
	local last=$((${#words[@]} - 1))
	word=${words[last]} whole=${words[last]} prev=${words[last - 1]}

	if [ "$last" -eq 1 ]; then
		_uffd_snap_offer "$word" < <(_uffd_snap_commands "$tool"; printf '%s\n' --help --version)
		return
	fi
	if [ "${words[1]}" = help ]; then
		_uffd_snap_offer "$word" < <(_uffd_snap_commands "$tool")
		return
	fi
	help=$("$tool" help "${words[1]}" 2>/dev/null) || return
	for ((i = 2; i < last; i++)); do
		[[ ${words[i]} == --store=?* ]] && store=(--store "${words[i]#*=}")
		[[ ${words[i]} == --store && -n ${words[i + 1]} ]] &&
			store=(--store "${words[i + 1]/#\~\//$HOME/}")
	done

	if [[ $word == --*=* ]]; then
		prev=${word%%=*} word=${word#*=}
	fi
	# An option that takes an argument: "  -o, --output FILE  ...".
	line=
	[[ $prev == -?* ]] &&
		line=$(grep -E -m 1 -- "^ +(-., )?${prev}[ =][A-Z]|^ +${prev}, --[a-z-]+[ =][A-Z]" <<<"$help")
	if [[ $line =~ ^\ +(-.,\ )?--[a-z-]+[\ =]([A-Z_=]+) ]]; then
		_uffd_snap_argument "${BASH_REMATCH[2]}" "$word"
	elif [[ $whole == --*=* ]]; then
		return
	elif [[ $word == -* ]]; then
		_uffd_snap_offer "$word" < <(sed -n '/^options:/,$p' <<<"$help" |
			grep -oE '^ +(-., )?--[a-z-]+' | grep -oE -- '--[a-z-]+')
	else
		_uffd_snap_positional "${help%%$'\n'*}" "$word" "$prev"
	fi

	for c in @ : =; do
		[[ $COMP_WORDBREAKS == *"$c"* && $whole == *"$c"* ]] || continue
		line=${whole%"$c"*}
		[ "$c" = @ ] || line+=$c
		[ ${#line} -le ${#cut} ] || cut=$line
	done
	for i in "${!COMPREPLY[@]}"; do
		# "--store=" comes before the word that was completed.
		line=${whole%"$word"}${COMPREPLY[i]}
		COMPREPLY[i]=${line#"$cut"}
	done
}

complete -F _uffd_snap uffd-snap

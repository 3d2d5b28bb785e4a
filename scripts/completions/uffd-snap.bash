# shellcheck shell=bash
# bash completion for uffd-snap(1). Commands and options are asked of the
# command itself ("uffd-snap help"), so that they always agree.

_uffd_snap_pids() {
	local d
	for d in /proc/[0-9]*; do
		# Kernel threads have no command line.
		[ -r "$d/cmdline" ] && IFS= read -r -d '' -n 1 _ <"$d/cmdline" && echo "${d#/proc/}"
	done 2>/dev/null
}

# Names in the store, and once there is an "@", the times of one.
_uffd_snap_images() {
	local store=()
	[[ " ${COMP_WORDS[*]} " =~ \ --store\ +([^ ]+) ]] && store=(--store "${BASH_REMATCH[1]}")
	if [[ $2 == *@* ]]; then
		"$1" list -q "${store[@]}" "${2%%@*}"
	else
		"$1" list -q "${store[@]}" | sed 's/@.*//' | uniq
	fi 2>/dev/null
}

_uffd_snap() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} tool=${COMP_WORDS[0]}
	local command=${COMP_WORDS[1]-} help line
	COMPREPLY=()

	if [ "$COMP_CWORD" -eq 1 ]; then
		local commands
		commands=$("$tool" help 2>/dev/null | sed -n '/^commands:/,/^$/s/^  \([a-z]*\) .*/\1/p')
		mapfile -t COMPREPLY < <(compgen -W "$commands --help --version" -- "$cur")
		return
	fi
	if [ "$command" = help ]; then
		local commands
		commands=$("$tool" help 2>/dev/null | sed -n '/^commands:/,/^$/s/^  \([a-z]*\) .*/\1/p')
		mapfile -t COMPREPLY < <(compgen -W "$commands" -- "$cur")
		return
	fi
	help=$("$tool" help "$command" 2>/dev/null) || return

	# An option that takes an argument: "  -o, --output FILE  ...".
	if [[ $prev == -* ]]; then
		line=$(grep -E -- "^ +(-., )?${prev}[ =][A-Z]|^ +${prev}, --[a-z-]+[ =][A-Z]" <<<"$help")
		if [ -n "$line" ]; then
			if [[ $line =~ (FILE|CORE|PATH|PROGRAM) ]]; then
				compopt -o filenames 2>/dev/null
				mapfile -t COMPREPLY < <(compgen -f -- "$cur")
			elif [[ $line == *" DIR "* ]]; then
				compopt -o filenames 2>/dev/null
				mapfile -t COMPREPLY < <(compgen -d -- "$cur")
			elif [[ $line == *" PID "* ]]; then
				mapfile -t COMPREPLY < <(compgen -W "$(_uffd_snap_pids)" -- "$cur")
			elif [[ $line == *" COMMAND"* ]]; then
				mapfile -t COMPREPLY < <(compgen -c -- "$cur")
			elif [[ $line == *" KIND "* ]]; then
				# It names them all when it knows none of the name.
				line=$("$tool" restore --ignore '' 2>&1)
				mapfile -t COMPREPLY < <(compgen -W "${line##*there are }" -- "$cur")
			fi
			return
		fi
	fi
	if [[ $cur == -* ]]; then
		mapfile -t COMPREPLY < <(compgen -W "--help $(sed -n '/^options:/,$p' <<<"$help" |
			grep -E '^ +-' | grep -oE -- '--[a-z][a-z-]*' | sort -u)" -- "$cur")
		return
	fi
	# The usage line tells what else there can be.
	line=${help%%$'\n'*}
	if [[ $line == *" FILE"* && $line != *"PID"* ]]; then
		compopt -o filenames 2>/dev/null
		mapfile -t COMPREPLY < <(compgen -d -- "$cur"; compgen -f -X '!*.usnap' -- "$cur"
			compgen -W "$(_uffd_snap_images "$tool" "$cur")" -- "$cur")
	elif [[ $line == *" COMMAND "* ]]; then
		# As on a command line of its own: then its files.
		if [[ $prev == run || $prev == -- ]]; then
			mapfile -t COMPREPLY < <(compgen -c -- "$cur")
		else
			compopt -o filenames 2>/dev/null
			mapfile -t COMPREPLY < <(compgen -c -f -- "$cur" | sort -u)
		fi
	elif [[ $line == *REMOTE* ]]; then
		mapfile -t COMPREPLY < <(compgen -W "$(_uffd_snap_images "$tool" "$cur")
			$(rclone listremotes 2>/dev/null)" -- "$cur")
	elif [[ $line == *NAME* && $line != *PID* ]]; then
		mapfile -t COMPREPLY < <(compgen -W "$(_uffd_snap_images "$tool" "$cur")" -- "$cur")
	elif [[ $line == *PID* ]]; then
		mapfile -t COMPREPLY < <(compgen -W "$(_uffd_snap_pids)" -- "$cur")
	fi
}

complete -F _uffd_snap uffd-snap

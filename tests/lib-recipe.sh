# shellcheck shell=bash
# Helpers around the recipes of the examples: source it after lib.sh, lib-work.sh, lib-agent.sh
# and lib-programs.sh.

# understood FILE [UNIT]: systemd reads all of it, with the unit of Debian's package that it goes with.
understood() {
	local unit=${2:-${1%.conf}} analysis
	command -v systemd-analyze >/dev/null || return 0
	mkdir -p units
	if [ "$unit" != "$1" ]; then
		[ -r "/lib/systemd/system/$unit" ] || return 0
		mkdir -p "units/${unit/@/@x}.d"
		cp "/lib/systemd/system/$unit" "units/${unit/@/@x}"
		cp "$TOP/scripts/examples/$1" "units/${unit/@/@x}.d"
	else
		cp "$TOP/scripts/examples/$1" "units/$1"
	fi
	sed -i "s|/usr/local/bin/uffd-snap|$UFFD_SNAP|" units/* units/*/* 2>/dev/null || true
	analysis=$(SYSTEMD_UNIT_PATH=$PWD/units: timeout 20 systemd-analyze verify --man=no \
		"units/${unit/@/@x}" 2>&1 | grep -E 'Unknown|Failed to parse|Invalid|not understood') || true
	[ -z "$analysis" ] || fail "systemd does not understand $1: $analysis"
}

# recipe FILE [SED-SCRIPT]: the command of a unit file, as words in "recipe", with the command under
# test, a store in the current directory and an image every second.
recipe=()
recipe() {
	local line
	line=$(sed -n 's/^ExecStart=\(..*\)/\1/p' "$TOP/scripts/examples/$1" |
		sed -e "s|/usr/local/bin/uffd-snap|$UFFD_SNAP|; s|--store [^ ]*|--store $PWD/store|; s|--every 1m|--every 1s|" \
			-e "${2:-}")
	[ -n "$line" ] || fail "no command in $1"
	understood "$1"
	eval "recipe=($line)"
}

# up NAME [COMMAND...]: starts it as its unit would; $run is the supervisor, NAME.log what is said.
# With a command, such as setpriv, through that.
run=''
up() {
	local name=$1
	shift
	"$@" "${recipe[@]}" >>"$name.log" 2>&1 </dev/null &
	run=$!
	_pids+=("$run")
}

# children_of PID: all that come from it.
children_of() {
	local p
	for p in $(cat /proc/"$1"/task/*/children 2>/dev/null); do
		echo "$p"
		children_of "$p"
	done
}

# server NAME: the PID of the process that $run is there for.
server() {
	local p
	for p in $(children_of "$run"); do
		[ "$(cat "/proc/$p/comm")" != "$1" ] || {
			echo "$p"
			return
		}
	done
	return 1
}

# What a killed supervisor leaves behind runs on.
_end_recipe() {
	local p
	[ -z "$run" ] || for p in $(children_of "$run"); do
		kill -KILL "$p" 2>/dev/null
	done
}
trap 'status=$?; set +e; trap - ERR; _end_recipe; (exit $status); _at_exit' EXIT

# newest NAME: the image, or nothing.
_images_beyond() { [ "$(newest "$1")" != "$2" ]; }
newest() { { usnap list --store "$PWD/store" -q "$1" 2>/dev/null || true; } | tail -n 1; }

# imaged NAME: waits for an image of what is there now: one that was begun may be of before.
imaged() {
	wait_until 30 _images_beyond "$1" "$(newest "$1")"
	wait_until 30 _images_beyond "$1" "$(newest "$1")"
}

# crash PROGRAM: the server is killed, and so ends the supervisor, as with status 137 or by that signal.
crash() {
	local status=0 pid
	pid=$(server "$1") || fail "$1 does not run: $(tail -n 20 ./*.log)"
	kill -KILL "$pid"
	wait "$run" || status=$?
	[ $status -ne 0 ] || fail 'a crash is no success'
}

# down PROGRAM: an orderly end.
down() {
	kill -TERM "$run"
	wait "$run" || fail "exit status $? after SIGTERM: $(tail -n 5 ./*.log)"
}

# shellcheck shell=bash
# Helpers around the agent: source it after lib.sh.

AGENT=${AGENT:-$B/libuffd-snap-agent.so}
[ -r "$AGENT" ] || fail "no agent at $AGENT"

# Where the system keeps a library, by its name; empty when it is not there.
library() { ldconfig -p | awk -v n="$1" '$1 == n && /x86-64/ && !found++ {print $NF}'; }

# run_in DIRECTORY NAME COMMAND...: what it prints and how it ends, in NAME.*. The directory is a
# fresh one each time, under the same path.
run_in() {
	local dir=$1 name=$2 status=0
	shift 2
	rm -rf "$dir"
	mkdir -m 777 "$dir"
	(cd "$dir" && exec timeout -k 5 100 "$@") >"$name.stdout" 2>"$name.stderr" </dev/null || status=$?
	echo "exit $status" >"$name.status"
}

# alike NAME A B: nobody can tell them apart.
alike() {
	local what
	for what in status stdout stderr; do
		cmp -s "$2.$what" "$3.$what" || {
			diff "$2.$what" "$3.$what" >alike.diff || head -n 20 alike.diff
			head -n 20 "$3.stderr"
			fail "$1: another $what with the agent ($3)"
		}
	done
}

# unchanged NAME COMMAND...: says and does the same with the agent, and with it in its children.
# With brief=1, the latter only.
unchanged() {
	local name=$1
	shift
	run_in work "$name.plain" "$@"
	[ -n "${brief:-}" ] || {
		run_in work "$name.agent" env LD_PRELOAD="$AGENT" UFFD_SNAP_NAME=unchanged "$@"
		alike "$name" "$name.plain" "$name.agent"
	}
	run_in work "$name.all" env LD_PRELOAD="$AGENT" UFFD_SNAP_INHERIT=1 "$@"
	alike "$name" "$name.plain" "$name.all"
	[[ $(cat "$name.plain.status") == "exit ${expected:-0}" ]] || {
		cat "$name".plain.std*
		fail "$name itself does not work here: $(cat "$name.plain.status")"
	}
	echo "$name: unchanged, $(cat "$name".plain.std* | wc -l) lines"
}

# agent_in PID: it is mapped there.
agent_in() { grep -q libuffd-snap-agent "/proc/$1/maps"; }

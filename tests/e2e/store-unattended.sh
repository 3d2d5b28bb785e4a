#!/bin/bash
# Targets are found by what they are; unattended runs are bounded, silent, and tell whoever asked to be told.
. "$(dirname "$0")/../lib.sh"
need jq

export UFFD_SNAP_STORE=$PWD/store
cp "$WORKLOADS/witness" ./usnapwitness
./usnapwitness >ready 2>&1 &
pid=$!
adopt $pid
wait_until 10 grep -q ready ready

# --- by name ------------------------------------------------------------------

taken() {
	exits 0 usnap snapshot --json --name t "$@"
	same "target of $*" "$(jq .pid out)" "$pid"
}
taken usnapwitness
taken --exe "$PWD/usnapwitness"
taken --exe usnapwitness
taken --match '^\./usnapwitness$'
echo "$pid" >pidfile
taken --pidfile pidfile
taken --pidfile pidfile --exe usnapwitness
taken --cgroup "$(sed -n 's/^0:://p' /proc/$pid/cgroup)" --exe usnapwitness
exits 1 usnap snapshot --unit "no-such-unit-$$"
says err 'none fits --unit'
exits 1 usnap snapshot --pidfile pidfile --exe no-such-program
says err 'none fits'
echo nonsense >nopid
exits 1 usnap snapshot --pidfile nopid
says err 'it holds no PID'
exits 1 usnap snapshot --match '('
says err "cannot match '('"
# The shell that runs the command has the pattern in its own command line.
exits 0 sh -c "'$UFFD_SNAP' snapshot -q --name t --match 'usnapwitnes[s]\$'; exit \$?"
exits 1 sh -c "'$UFFD_SNAP' snapshot -q --match 'pattern-of-nobody'; exit \$?"
exits 2 usnap snapshot
says err 'no PID or NAME given, nor --exe'
exits 2 usnap snapshot --all
says err '--all alone'
exits 0 usnap snapshot -q usnapwitness
[ -d store/usnapwitness ] || fail 'no name was made of the process'

./usnapwitness >ready2 2>&1 &
other=$!
adopt $other
wait_until 10 grep -q ready ready2
exits 1 usnap snapshot --exe usnapwitness
says err 'cannot choose among 2 processes'
says err "$pid (./usnapwitness)"
says err "$other (./usnapwitness)"
exits 0 usnap snapshot --exe usnapwitness --all --json
same 'processes taken' "$(jq -s length out)" 2
# A chain is of one process: those of one name are told apart.
same 'their names' "$(jq -r .name out | sort)" "$(printf 'usnapwitness-%s\n' "$pid" "$other" | sort)"
exits 0 usnap snapshot --exe usnapwitness --all --json
same 'each continues its own' "$(jq 'select(.full_because)' out)" ''
# Under one name all the same: each is continued by the image of its own run.
usnap snapshot -q --name both $pid
usnap snapshot -q --name both $other
exits 0 usnap snapshot --json --name both $pid
same 'full_because' "$(jq -r .full_because out)" null
[ "$(jq .pages_referred out)" -gt 0 ] || fail 'the image of another process was taken for its own'
kill $other
wait $other || true

# Started by a link: what it was started as counts where no program has that name.
ln -s usnapwitness usnaplink
start ./usnaplink
link=$started
# shellcheck disable=SC2154 # of lib.sh
wait_until 10 grep -q ready "$started_log"
exits 0 usnap snapshot --json --name l --exe usnaplink
same 'target by its link' "$(jq .pid out)" "$link"
exits 1 usnap snapshot --exe /nowhere/usnaplink
says err "hint: process $link calls itself so, and its program is '$(readlink -f usnapwitness)'"
stop "$link"
start bash -c 'exec -a "/x/usnaptitle 127.0.0.1:6379" ./usnapwitness'
wait_until 10 grep -q ready "$started_log"
exits 0 usnap snapshot --json --name l --exe usnaptitle
same 'target by its title' "$(jq .pid out)" "$started"
exits 1 usnap snapshot usnaptitle
says err "hint: process $started runs a program of this name: --exe finds it"
stop "$started"
# A name may begin with a digit.
cp usnapwitness 2fa
start ./2fa
wait_until 10 grep -q ready "$started_log"
exits 0 usnap snapshot --json 2fa
same 'target by a name with a digit' "$(jq .pid out)" "$started"
stop "$started"
exits 1 usnap snapshot no-such-name
says err 'hint: '

# --- unattended ---------------------------------------------------------------

name=(--name cron --exe "$PWD/usnapwitness")
wait_until 5 sh -c "! kill -0 $other"
exits 0 usnap snapshot -q "${name[@]}" --nice 5 --idle --rate 100M --timeout 1m \
	--metrics m.prom --on-success 'env >facts'
same 'output of a success' "$(cat out err)" ''
says facts UFFD_SNAP_RESULT=success
says facts UFFD_SNAP_NAME=cron
says facts "UFFD_SNAP_PID=$pid"
says facts "UFFD_SNAP_STORE=$UFFD_SNAP_STORE"
file=$(sed -n 's/^UFFD_SNAP_FILE=//p' facts)
usnap verify -q "$file"
same 'size told' "$(sed -n 's/^UFFD_SNAP_FILE_BYTES=//p' facts)" "$(stat -c %s "$file")"
says m.prom 'uffd_snap_last_run_success{name="cron"} 1'
grep -q '^uffd_snap_fault_seconds{name="cron",quantile="0.99"} ' m.prom || fail 'no percentiles'
awk '/^uffd_snap_fault_seconds/ { if ($2 + 0 > max) max = $2 + 0; last = $2 + 0 } END { exit max > last }' m.prom ||
	fail "quantiles beyond the longest: $(grep fault_seconds m.prom)"
success=$(grep '^uffd_snap_last_success_timestamp_seconds{name="cron"}' m.prom)

exits 1 usnap snapshot -q --name cron --exe no-such-program --metrics m.prom \
	--on-failure 'env >facts; exit 3'
says facts UFFD_SNAP_RESULT=failure
says facts 'UFFD_SNAP_ERROR=cannot find a process'
says err 'it ended with exit status 3'
says m.prom 'uffd_snap_last_run_success{name="cron"} 0'
same 'time of the last success' "$(grep '^uffd_snap_last_success_timestamp_seconds{name="cron"}' m.prom)" "$success"
exits 0 usnap snapshot -q "${name[@]}" --metrics m.prom --name second
says m.prom 'uffd_snap_last_run_success{name="cron"} 0'
says m.prom 'uffd_snap_last_run_success{name="second"} 1'
same 'metrics told twice' "$(grep -v '^#' m.prom | sed 's/ [^ ]*$//' | sort | uniq -d)" ''
same 'files beside' "$(find . -maxdepth 1 -name '.*.part')" ''
exits 1 usnap snapshot -q --exe "/none/no-such-program" --metrics m.prom
says m.prom 'uffd_snap_last_run_success{name="no-such-program"} 0'
exits 1 usnap snapshot -q "${name[@]}" --on-success 'exit 1'
says err "cannot run 'exit 1'"
# A command may use the store that it is told of, and is bounded as well.
exits 0 usnap snapshot -q "${name[@]}" --store other --on-success \
	"'$UFFD_SNAP' prune -q --keep-last 1 cron && '$UFFD_SNAP' list -q cron >listed"
same 'the command had the other store' "$(wc -l <listed)" 1
# Ours to read from is not its own: it may be a terminal that it must not read.
echo ours | "$UFFD_SNAP" snapshot -q "${name[@]}" --store other --on-success 'cat >read'
same 'what the command could read' "$(cat read)" ''
# And is told what tells us to end, whenever it comes.
"$UFFD_SNAP" snapshot -q "${name[@]}" --store other --on-success 'echo $$ >begun; exec sleep 100' 2>err &
waits=$!
adopt $waits
wait_until 20 test -s begun
kill -TERM $waits
got=0
wait $waits || got=$?
same 'status of a command that was told to end' $got 1
says err 'it died of signal 15'
before=$SECONDS
exits 1 usnap snapshot -q "${name[@]}" --store other --timeout 1 --on-success 'sleep 100; echo late >late'
says err "cannot run 'sleep 100; echo late >late': it did not end within 1 s"
[ $((SECONDS - before)) -lt 60 ] || fail 'a command was waited for'

# Somebody else has the name.
exec 9>store/cron/.lock
flock 9
exits 0 usnap snapshot -q "${name[@]}" --skip-if-busy --on-success 'touch told' --on-failure 'touch told'
same 'output of a skipped run' "$(cat out err)" ''
[ ! -e told ] || fail 'a skipped run was told of'
exits 0 usnap prune -q --keep-last 1 --skip-if-busy cron
before=$SECONDS
exits 1 usnap snapshot -q "${name[@]}" --timeout 1
says err 'not done within 1 s'
[ $((SECONDS - before)) -lt 20 ] || fail '--timeout was not kept'
# Who is told of failures is told of an interruption too, before it ends the command.
rm -f facts
"$UFFD_SNAP" snapshot -q "${name[@]}" --metrics m.prom --on-failure 'env >facts' 2>err 9>&- &
waits=$!
adopt $waits
wait_until 20 grep -q -e "-> FLOCK .* $waits " /proc/locks
kill -TERM $waits
got=0
wait $waits || got=$?
same 'exit status' $got 143
says facts 'UFFD_SNAP_ERROR=interrupted: '
says m.prom 'uffd_snap_last_run_success{name="cron"} 0'
exec 9>&-
same 'images' "$(usnap list --json cron | jq '.images | length')" 2
# Who removes is waited for: the snapshot is still wanted after it.
flock store/cron/.lock flock store/cron/.in-use bash -c 'touch removing; sleep 1' &
remover=$!
wait_until 10 test -e removing
exits 0 usnap snapshot -q "${name[@]}" --skip-if-busy
wait $remover
same 'images' "$(usnap list --json cron | jq '.images | length')" 3
kill -0 $pid

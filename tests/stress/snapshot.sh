#!/bin/bash
# The threads of a snapshot are free of data races, whatever the process does meanwhile, and the image is right.
# timeout: 200
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

need jq
end=$((SECONDS + ${STRESS_SECONDS:-10}))
n=0
while :; do
	for args in '--discard all' '--backing mix --threads 5 --fork --kernel-writes --first-touch'; do
		# shellcheck disable=SC2086 # several words
		work_start --size 16M $args
		for how in '' '--no-hold --memory 4M --threads 3'; do
			got=0
			# shellcheck disable=SC2086 # several words
			usnap snapshot -q $how "$work_pid" -o s.usnap 2>err || got=$?
			if [ "$got" -eq 0 ]; then
				consistent s.usnap
			else
				same "exit status of a snapshot ($args; $how)" "$got $how" '1 --no-hold --memory 4M --threads 3'
				says err 'cannot take a consistent snapshot'
			fi
			n=$((n + 1))
		done
		# All is slow here: how long its threads waited says nothing.
		work_over
		stop "$witness"
	done
	[ $SECONDS -lt $end ] || break
done
echo "$n snapshots"

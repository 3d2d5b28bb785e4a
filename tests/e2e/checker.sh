#!/bin/bash
# The checker of consistency tells memory of one instant from a dump of a running process, and from one stale page.
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

for args in '' '--mode mix --kernel-writes' '--backing mix --threads 5' '--discard all --statics'; do
	# shellcheck disable=SC2086 # several words
	work_start --size 64M $args
	exits 1 "$CHECKERS/cutcheck" --pid "$work_pid" "$header"
	says out violation
	halt "$work_pid"
	exits 0 "$CHECKERS/cutcheck" --pid "$work_pid" "$header"
	says_not out violation
	kill -CONT "$work_pid"
	exits 1 "$CHECKERS/cutcheck" --stale "$work_pid" "$header"
	says out 'an earlier write is missing'
	kill -TERM "$work_pid"
	wait "$work_pid" || fail "$(cat cutwork.err)"
done

#!/bin/bash
# An image shows one instant of a process that forks, spawns, starts and ends threads and changes protections.
# timeout: 240
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

need jq
size=$(times 96M 1G)
cut fork "$size" --fork
cut spawn "$size" --spawn
cut threads "$size" --thread-churn
cut mprotect "$size" --mprotect
cut 'all of it' "$size" --backing mix --threads 5 --mode mix --kernel-writes --first-touch \
	--fork --spawn --thread-churn --mprotect --statics

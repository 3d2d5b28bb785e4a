#!/bin/bash
# An image shows one instant of a process that forks, spawns, starts and ends threads and changes protections.
# timeout: 240
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

need jq
size=$(times 96M 1G)
n=$(times 2 50)
more=$(times 2 10)
cut "$n" fork "$size" --fork
cut "$n" spawn "$size" --spawn
cut "$n" threads "$size" --thread-churn
cut "$more" mprotect "$size" --mprotect
cut "$more" 'all of it' "$size" --backing mix --threads 5 --mode mix --kernel-writes --first-touch \
	--fork --spawn --thread-churn --mprotect --statics

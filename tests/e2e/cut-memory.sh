#!/bin/bash
# An image shows one instant whatever kind of memory is written, also when it is first touched meanwhile.
# timeout: 240
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

need jq
size=$(times 96M 1G)
# What is touched stays: over fifty snapshots it must not fill the machine, nor make each last longer.
n=$(times 2 50)
cut "$n" 'first touch' "$size" --first-touch --touch-rate "$(times 4000 250)"
cut "$n" 'huge pages' "$size" --backing huge
cut "$(times 2 10)" 'kinds of memory' "$size" --backing mix --threads 5 --statics

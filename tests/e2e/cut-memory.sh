#!/bin/bash
# An image shows one instant whatever kind of memory is written, also when it is first touched meanwhile.
# timeout: 240
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

need jq
size=$(times 96M 1G)
cut 'first touch' "$size" --first-touch
cut 'huge pages' "$size" --backing huge
cut 'kinds of memory' "$size" --backing mix --threads 5 --statics

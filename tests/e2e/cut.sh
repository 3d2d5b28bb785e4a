#!/bin/bash
# An image shows one instant of a process that writes all over its memory, by itself and through the kernel.
# timeout: 240
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

need jq
size=$(times 96M 1G)
n=$(times 2 50)
more=$(times 2 10)
cut "$n" random "$size"
cut "$more" 'several modes' "$size" --mode mix --stride 4096 --statics
cut "$n" 'kernel writes' "$size" --kernel-writes

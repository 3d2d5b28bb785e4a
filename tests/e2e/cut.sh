#!/bin/bash
# An image shows one instant of a process that writes all over its memory, by itself and through the kernel.
# timeout: 240
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

need jq
size=$(times 96M 1G)
cut random "$size"
cut 'several modes' "$size" --mode mix --stride 4096 --statics
cut 'kernel writes' "$size" --kernel-writes

#!/bin/bash
# Restored memory is as the README's table says, and works.
# timeout: 300
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-restore.sh"

table restore_memory restore_mapping

#!/bin/bash
# Restored threads, their registers and waiting system calls are as the README's table says.
# timeout: 300
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-restore.sh"

table restore_threads restore_locks restore_registers restore_calls

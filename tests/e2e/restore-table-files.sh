#!/bin/bash
# Restored files, pipes, sockets and terminals are as the README's table says.
# timeout: 400
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-restore.sh"

table restore_files restore_pipes restore_sockets restore_terminal

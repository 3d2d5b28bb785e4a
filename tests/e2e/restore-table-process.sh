#!/bin/bash
# The restored process as a whole is as the README's table says.
# timeout: 300
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-restore.sh"

table restore_process

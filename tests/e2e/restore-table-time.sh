#!/bin/bash
# Time goes on in a restored process as the README's table says.
# timeout: 300
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-restore.sh"

table restore_time

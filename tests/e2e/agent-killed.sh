#!/bin/bash
# Callers that are held back go on within 100 ms when the snapshotter is killed.
# timeout: 600
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"

"$CHECKERS/heldback" "$(times 10 200)" "$AGENT" "$UFFD_SNAP" "$PWD/killed.usnap"

#!/bin/bash
# SIGKILL at 200 random moments harms nobody.
# timeout: 3600
. "$(dirname "$0")/../lib.sh"

[ "${STRESS_SECONDS:-10}" -ge 60 ] || skip "takes long: make stress"
UFFD_SNAP_FULL=1 exec "$TESTS/e2e/harmless-kill.sh"

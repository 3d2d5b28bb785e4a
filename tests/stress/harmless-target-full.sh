#!/bin/bash
# Processes that exit, exec and are stopped meanwhile, 40 times each.
# timeout: 1800
. "$(dirname "$0")/../lib.sh"

[ "${STRESS_SECONDS:-10}" -ge 60 ] || skip "takes long: make stress"
UFFD_SNAP_FULL=1 exec "$TESTS/e2e/harmless-target.sh"

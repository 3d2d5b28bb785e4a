#!/bin/bash
# Memory stays bounded at 2 GiB.
# timeout: 1200
. "$(dirname "$0")/../lib.sh"

[ "${STRESS_SECONDS:-10}" -ge 60 ] || skip "takes long: make stress"
UFFD_SNAP_FULL=1 exec "$TESTS/e2e/memory.sh"

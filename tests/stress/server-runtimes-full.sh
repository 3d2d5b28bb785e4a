#!/bin/bash
# python3, node and java take 20 snapshots each.
# timeout: 1800
. "$(dirname "$0")/../lib.sh"

[ "${STRESS_SECONDS:-10}" -ge 60 ] || skip "takes long: make stress"
UFFD_SNAP_FULL=1 exec "$TESTS/e2e/server-runtimes.sh"

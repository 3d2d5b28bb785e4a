#!/bin/bash
# More than 20,000 flipped bytes and 2,000 truncations, all found.
# timeout: 3600
. "$(dirname "$0")/../lib.sh"

[ "${STRESS_SECONDS:-10}" -ge 60 ] || skip "takes long: make stress"
UFFD_SNAP_FULL=1 exec "$TESTS/e2e/damage.sh"

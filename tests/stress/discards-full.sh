#!/bin/bash
# Discards, in full: 50 snapshots with and without --no-hold for every kind.
# timeout: 7200
. "$(dirname "$0")/../lib.sh"

[ "${STRESS_SECONDS:-10}" -ge 60 ] || skip "takes long: make stress"
UFFD_SNAP_FULL=1 exec "$TESTS/e2e/discards.sh"

#!/bin/bash
# A consistent cut, in full: 50 snapshots of 1 GiB for every kind of memory and writes.
# timeout: 7200
. "$(dirname "$0")/../lib.sh"

[ "${STRESS_SECONDS:-10}" -ge 60 ] || skip "takes long: make stress"
UFFD_SNAP_FULL=1 exec "$TESTS/e2e/cut.sh"

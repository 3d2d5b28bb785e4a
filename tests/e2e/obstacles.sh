#!/bin/bash
# What a restore would refuse is known when the image is taken: info says it, and snapshot --kill lets the process run.
. "$(dirname "$0")/../lib.sh"

need jq

# stays KIND TEXT [COUNT]: --kill spares the process that was started, for KIND, and the image says TEXT.
stays() {
	exits 1 usnap snapshot -q --kill "$started" -o kept.usnap
	says err "$1"
	kill -0 "$started" || fail "$1: the process is gone"
	exits 0 usnap snapshot -q "$started" -o image.usnap
	tar xOf image.usnap process.json |
		jq -r '.limits_of_restore[] | "\(.what): \(.severity): \(.detail)"' >limits
	grep -q "^$1: refuse: .*$2" limits || fail "no $1 with '$2' in: $(cat limits)"
	kill -9 "$started"
}

echo 'Threads apart'
# CLONE_FS, CLONE_FILES, CLONE_NEWUTS
start_workload oddproc apart 0x200
stays thread-context 'working directory'
start_workload oddproc apart 0x400
stays thread-context 'table of descriptors'
if unshare -u true 2>/dev/null; then
	start_workload oddproc apart 0x4000000
	stays thread-context 'namespaces'
fi

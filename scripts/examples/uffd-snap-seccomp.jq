# The default profile of docker or podman with the system calls let through
# that uffd-snap needs (uffd-snap-seccomp.json beside this file):
#
#   jq --slurpfile add uffd-snap-seccomp.json -f uffd-snap-seccomp.jq DEFAULT >PROFILE
#   docker run --security-opt seccomp=PROFILE --cap-add SYS_PTRACE ...
#
# DEFAULT is seccomp/default.json of github.com/moby/profiles for docker, and
# /usr/share/containers/seccomp.json for podman. "uffd-snap check" within the
# container says what is still missing.
#
# Other rules for a call would contradict ours: they are taken out.

[$add[0].syscalls[].names[]] as $names
| .syscalls |= map(.names -= $names | select(.names != []))
| .syscalls += $add[0].syscalls

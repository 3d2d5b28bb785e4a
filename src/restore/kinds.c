#include "restore/kinds.h"

#include <stddef.h>
#include <string.h>

const char *const kinds[] = {
	"aio",
	"block-device",
	"bpf",
	"changed-file",
	"children",
	"clocks",
	"cpu-features",
	"credentials",
	"deleted-directory",
	"deleted-file",
	"deleted-mapping",
	"descriptors-in-flight",
	"device",
	"device-memory",
	"fanotify",
	"guard-markers",
	"hidden-file",
	"inotify-watch",
	"io_uring",
	"kvm",
	"memfd-content",
	"message-queue",
	"namespace-descriptor",
	"perf-event",
	"pid-namespace-init",
	"pidfd",
	"pipe-content",
	"posix-timers",
	"root-directory",
	"scheduling",
	"seccomp-filter",
	"seccomp-strict",
	"secret-memory",
	"shadow-stack",
	"shared-memory-in-use",
	"signal-actions",
	"socket-family",
	"socket-filter",
	"socket-protocol",
	"socket-unknown",
	"thread-context",
	"thread-details",
	"unknown-descriptor",
	"userfaultfd",
	"vdso",
	"working-directory",
	NULL,
};

bool kind_is_known(const char *name)
{
	for (const char *const *k = kinds; *k; k++)
		if (!strcmp(*k, name))
			return true;
	return false;
}

bool kind_is_judged_anew(const char *name)
{
	return !strcmp(name, "namespace") || !strcmp(name, "pidfd");
}

#include "restore/kinds.h"

#include <stddef.h>
#include <string.h>

const struct kind kinds[] = {
	{"aio", "requests in flight are lost, io_submit(2) fails"},
	{"block-device", "the device is opened anew"},
	{"bpf", "the descriptor is /dev/null"},
	{"changed-file", "it finds the files as they are now"},
	{"children", "wait(2) says that it has none"},
	{"clocks", "its monotonic clocks jump to those of this machine"},
	{"deleted-directory", "the descriptor is /dev/null; as working directory it is /"},
	{"deleted-file", "the file is empty"},
	{"descriptors-in-flight", "descriptors under way in a socket are lost"},
	{"device", "the device is opened anew and knows nothing of it"},
	{"device-memory", "the memory is private and zero"},
	{"fanotify", "the descriptor is /dev/null"},
	{"io_uring", "the descriptor is /dev/null, requests in flight are lost"},
	{"kvm", "the descriptor is /dev/null"},
	{"perf-event", "the descriptor is /dev/null"},
	{"pidfd", "the descriptor is /dev/null"},
	{"posix-timers", "timers of unknown state are left out"},
	{"seccomp-filter", "it runs without the filters"},
	{"seccomp-strict", "it runs unconfined"},
	{"secret-memory", "the memory is zero"},
	{"shadow-stack", "it runs without shadow stacks"},
	{"signal-actions", "signals have their default actions"},
	{"socket-family", "the descriptor is /dev/null"},
	{"socket-unknown", "the descriptor is /dev/null"},
	{"thread-details", "what was not recorded of the threads has its default"},
	{"unknown-descriptor", "the descriptor is /dev/null"},
	{"userfaultfd", "the descriptor is /dev/null"},
	{NULL, NULL},
};

const struct kind *kind_find(const char *name)
{
	for (const struct kind *k = kinds; k->name; k++)
		if (!strcmp(k->name, name))
			return k;
	return NULL;
}

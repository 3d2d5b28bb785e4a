/*
 * How far the clocks of the target are from our own, which T0 is written
 * down in: a time namespace moves CLOCK_MONOTONIC and CLOCK_BOOTTIME.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/io.h"
#include "common/util.h"
#include "process/pstate_internal.h"

/* Zero where the kernel has no time namespaces. */
static void read_offsets(int dirfd, const char *path, int64_t *monotonic, int64_t *boottime)
{
	cleanup_free char *text = NULL;
	int64_t seconds, ns;
	char name[32];
	int n;

	*monotonic = *boottime = 0;
	if (io_read_file_at(dirfd, path, KIB(4), &text, NULL) < 0)
		return;
	for (const char *s = text;
	     sscanf(s, "%31s %" SCNd64 " %" SCNd64 "%n", name, &seconds, &ns, &n) == 3; s += n) {
		if (!strcmp(name, "monotonic"))
			*monotonic = seconds * 1000000000 + ns;
		else if (!strcmp(name, "boottime"))
			*boottime = seconds * 1000000000 + ns;
	}
}

json_t *clock_offsets_json(int procfd)
{
	int64_t monotonic, boottime, own_monotonic, own_boottime;

	read_offsets(procfd, "timens_offsets", &monotonic, &boottime);
	read_offsets(AT_FDCWD, "/proc/self/timens_offsets", &own_monotonic, &own_boottime);
	return json_pack("{s:I,s:I}", "monotonic_ns", (json_int_t)(monotonic - own_monotonic),
			 "boottime_ns", (json_int_t)(boottime - own_boottime));
}

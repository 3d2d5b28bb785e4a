#include "common/timens.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/io.h"
#include "common/util.h"

void timens_own(struct timens_offsets *ret)
{
	cleanup_free char *text = NULL;
	char name[32];
	int64_t seconds, ns;
	int n;

	*ret = (struct timens_offsets){0};
	if (io_read_file_at(AT_FDCWD, "/proc/self/timens_offsets", KIB(4), &text, NULL) < 0)
		return;
	for (const char *s = text;
	     sscanf(s, "%31s %" SCNd64 " %" SCNd64 "%n", name, &seconds, &ns, &n) == 3; s += n) {
		int64_t offset = seconds * 1000000000 + ns;

		if (!strcmp(name, "monotonic"))
			ret->monotonic_ns = offset;
		else if (!strcmp(name, "boottime"))
			ret->boottime_ns = offset;
	}
}

uint64_t timens_start_ticks(uint64_t shown)
{
	struct timens_offsets own;

	timens_own(&own);
	return timens_ticks_outside(shown, own.boottime_ns);
}

/*
 * What the clocks of the process must show.
 *
 * CLOCK_MONOTONIC and CLOCK_BOOTTIME count from the start of the machine. On
 * the same one, since T0, they have gone on by themselves. Elsewhere they
 * would jump, and a time that the process waits for would be long past or
 * never come: it gets clocks of its own, which stand where they were at T0
 * plus the time that has passed on the wall.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/io.h"
#include "common/timens.h"
#include "common/util.h"
#include "image/image.h"
#include "restore/place_internal.h"
#include "restore/rjson.h"

enum {
	MAX_OFFSET_S = 1 << 30 /* 34 years: more is a mistake */
};

bool place_same_boot(const struct restore *r)
{
	cleanup_free char *here = NULL;
	const json_t *target = r->img ? json_object_get(r->img->snapshot, "target") : NULL;
	const char *there = json_string_value(json_object_get(target, "boot_id"));

	return there &&
	       io_read_file_at(AT_FDCWD, "/proc/sys/kernel/random/boot_id", 64, &here, NULL) == 0 &&
	       strlen(there) == 36 && !strncmp(here, there, 36);
}

static int64_t clock_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

int place_plan_clocks(struct restore *r, struct timens_offsets *ret, bool *ret_needed,
		      struct usnap_err *err)
{
	const int64_t most = (int64_t)MAX_OFFSET_S * 1000000000;
	struct timens_offsets own;
	int64_t monotonic = 0, boottime = 0;
	json_t *apart;
	int code = rjson_object(r->process, "clock_offsets", &apart, err);

	/* How far the process's clocks were from those of whoever took the image. */
	if (code == 0 && apart) {
		code = rjson_int(apart, "monotonic_ns", -most, most, &monotonic, err);
		if (code == 0)
			code = rjson_int(apart, "boottime_ns", -most, most, &boottime, err);
	}
	if (code < 0)
		return code;
	timens_own(&own);
	if (place_same_boot(r)) {
		ret->monotonic_ns = own.monotonic_ns + monotonic;
		ret->boottime_ns = own.boottime_ns + boottime;
		*ret_needed = monotonic || boottime;
		return 0;
	}
	uint64_t wall = wall_ns();
	int64_t passed =
		wall > r->info.t0_realtime_ns ? (int64_t)(wall - r->info.t0_realtime_ns) : 0;

	if (r->info.t0_monotonic_ns > (uint64_t)most || r->info.t0_boottime_ns > (uint64_t)most)
		return usnap_fail(err, -EBADMSG,
				  "cannot restore '%s': its clocks are %" PRIu64
				  " s after the start of the machine",
				  r->o->image, r->info.t0_boottime_ns / 1000000000);
	passed = MIN(passed, most);
	ret->monotonic_ns = (int64_t)r->info.t0_monotonic_ns + monotonic + passed -
			    (clock_ns(CLOCK_MONOTONIC) - own.monotonic_ns);
	ret->boottime_ns = (int64_t)r->info.t0_boottime_ns + boottime + passed -
			   (clock_ns(CLOCK_BOOTTIME) - own.boottime_ns);
	/* In whole ticks: within and without, when a process was started is then the same but for them. */
	ret->boottime_ns += TIMENS_TICK_NS - 1;
	ret->boottime_ns -= (ret->boottime_ns % TIMENS_TICK_NS + TIMENS_TICK_NS) % TIMENS_TICK_NS;
	*ret_needed = true;
	return 0;
}

/*
 * The clocks of a time namespace: time_namespaces(7).
 *
 * What /proc tells of when a process was started is shifted for whoever reads
 * it in one, and is not the same text that others read.
 */
#ifndef USNAP_COMMON_TIMENS_H
#define USNAP_COMMON_TIMENS_H

#include <stdint.h>

enum {
	TIMENS_TICK_NS = 10000000 /* of field 22 of /proc/PID/stat: USER_HZ is 100 everywhere */
};

/* Distance of clocks from those of the machine. */
struct timens_offsets {
	int64_t monotonic_ns, boottime_ns;
};

/* Those of this process; zero where the kernel has no time namespaces. */
void timens_own(struct timens_offsets *ret);

/* Field 22 of /proc/PID/stat, as this process reads it, to what it is outside of all time namespaces. Exact
 * where the offset is one of whole ticks and the process was not started before its clock showed 0; else one
 * more at times. */
uint64_t timens_start_ticks(uint64_t shown);

/* The same, as read by a process with this offset. */
static inline uint64_t timens_ticks_outside(uint64_t shown, int64_t boottime_ns)
{
	/* The kernel divides what is below zero as a number without a sign. */
	const uint64_t wrap = UINT64_MAX / TIMENS_TICK_NS;
	int64_t since = shown > wrap / 2 ? (int64_t)(shown - wrap) : (int64_t)shown;
	int64_t ticks = boottime_ns / TIMENS_TICK_NS - (boottime_ns % TIMENS_TICK_NS < 0);

	return (uint64_t)(since - ticks);
}

#endif

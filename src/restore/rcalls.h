/*
 * A batch of the stub whose calls have names, for messages.
 */
#ifndef USNAP_RESTORE_RCALLS_H
#define USNAP_RESTORE_RCALLS_H

#include "restore/stub.h"

enum {
	RCALLS_MAX = 128
};

struct rcalls {
	struct stub_batch b;
	const char *what[RCALLS_MAX]; /* "set its name": static */
	pid_t tid;
	struct stub_lane *lane;
};

void rcalls_begin(struct rcalls *c, struct stub *s, struct stub_lane *lane, pid_t tid);
void rcalls_add(struct rcalls *c, const char *what, long nr, uint64_t a0, uint64_t a1, uint64_t a2,
		uint64_t a3, uint64_t a4);
/* May fail. */
void rcalls_try(struct rcalls *c, const char *what, long nr, uint64_t a0, uint64_t a1, uint64_t a2,
		uint64_t a3, uint64_t a4);
/* Runs them all at the same time. n is bounded by RCALLS_AT_ONCE. */
enum {
	RCALLS_AT_ONCE = 64
};
int rcalls_run(struct rcalls *c, size_t n, struct usnap_err *err);

#endif

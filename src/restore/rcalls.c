#include "restore/rcalls.h"

#include <errno.h>

#include "common/util.h"

void rcalls_begin(struct rcalls *c, struct stub *s, struct stub_lane *lane, pid_t tid)
{
	stub_begin(&c->b, s, RCALLS_MAX);
	c->lane = lane;
	c->tid = tid;
}

void rcalls_add(struct rcalls *c, const char *what, long nr, uint64_t a0, uint64_t a1, uint64_t a2,
		uint64_t a3, uint64_t a4)
{
	int i = stub_add(&c->b, nr, a0, a1, a2, a3, a4, 0);

	if (i >= 0)
		c->what[i] = what;
}

void rcalls_try(struct rcalls *c, const char *what, long nr, uint64_t a0, uint64_t a1, uint64_t a2,
		uint64_t a3, uint64_t a4)
{
	int i = stub_try(&c->b, nr, a0, a1, a2, a3, a4, 0);

	if (i >= 0)
		c->what[i] = what;
}

int rcalls_run(struct rcalls *c, size_t n, struct usnap_err *err)
{
	struct stub_batch *b[RCALLS_AT_ONCE];
	struct stub_lane *lanes[RCALLS_AT_ONCE];
	size_t batch = 0, failed = 0;

	for (size_t i = 0; i < n; i++) {
		b[i] = &c[i].b;
		lanes[i] = c[i].lane;
	}
	int e = stub_run_all(b, lanes, n, &batch, &failed);
	if (e == -ESRCH)
		return usnap_fail(err, e, "cannot restore: the new process was killed");
	if (e == -ENOSPC)
		return usnap_fail(err, e,
				  "cannot restore thread %d: more calls than there is "
				  "room for",
				  (int)c[0].tid);
	if (e < 0)
		return usnap_fail_errno(err, e, "cannot restore thread %d: cannot %s",
					(int)c[batch].tid, c[batch].what[failed]);
	return 0;
}

/* Remote calls in batches; rmem_internal.h has the list of the files. */
#include <errno.h>

#include "common/util.h"
#include "restore/rmem_internal.h"

void calls_reset(struct rmem_calls *c)
{
	stub_reset(c->r->stub);
	stub_begin(&c->batch, c->r->stub, RMEM_BATCH_CALLS);
}

void calls_begin(struct rmem_calls *c, struct restore *r, struct usnap_err *err)
{
	c->r = r;
	c->err = err;
	c->failed = 0;
	calls_reset(c);
}

void calls_room(struct rmem_calls *c, size_t nr)
{
	if (c->batch.nr_calls + nr <= RMEM_BATCH_CALLS)
		return;
	if (calls_run(c) == 0)
		calls_reset(c);
}

int calls_add(struct rmem_calls *c, bool may_fail, const char *verb,
	      const struct rmem_region *region, long nr, uint64_t a0, uint64_t a1, uint64_t a2,
	      uint64_t a3, uint64_t a4, uint64_t a5)
{
	if (c->failed < 0)
		return c->failed;
	int i = may_fail ? stub_try(&c->batch, nr, a0, a1, a2, a3, a4, a5)
			 : stub_add(&c->batch, nr, a0, a1, a2, a3, a4, a5);
	if (i >= 0) {
		c->about[i].verb = verb;
		c->about[i].region = region;
	}
	return i;
}

int calls_run(struct rmem_calls *c)
{
	size_t i = 0;

	if (c->failed < 0)
		return c->failed;
	if (!c->batch.nr_calls && !c->batch.full)
		return 0;
	int r = stub_run(&c->batch, stub_main_lane(c->r->stub), &i);
	if (r == -ENOSPC)
		usnap_fail_errno(c->err, r, "cannot restore the memory");
	if (r < 0 && r != -ESRCH && r != -ENOSPC) {
		char name[160];

		usnap_fail_errno(c->err, r, "cannot %s %s", c->about[i].verb,
				 c->about[i].region ? rmem_name(c->about[i].region, name)
						    : "of the new process");
	}
	c->failed = r;
	return r;
}

/* Parts of the restore that are not there yet: weak, replaced by the real ones. */
#include <errno.h>
#include <string.h>

#include "restore/rfiles.h"
#include "restore/rproc.h"
#include "restore/rthreads.h"

#define WEAK __attribute__((weak))
WEAK int rfiles_plan(struct restore *r, struct usnap_err *err)
{
	return 0;
}

WEAK void rfiles_free(struct rfiles *f)
{
}

WEAK int rfiles_build(struct restore *r, struct usnap_err *err)
{
	return 0;
}

WEAK int rfiles_find(const struct restore *r, uint32_t dev_major, uint32_t dev_minor,
		     uint64_t inode, uint32_t prot)
{
	return -1;
}

WEAK int rfiles_finish(struct restore *r, struct usnap_err *err)
{
	return 0;
}

WEAK void rfiles_describe(const struct restore *r, json_t *o)
{
}

WEAK int rthreads_plan(struct restore *r, struct usnap_err *err)
{
	return 0;
}

WEAK void rthreads_free(struct rthreads *t)
{
}

WEAK int rthreads_create(struct restore *r, struct usnap_err *err)
{
	return 0;
}

WEAK int rthreads_restore(struct restore *r, struct usnap_err *err)
{
	return 0;
}

WEAK int rthreads_finish(struct restore *r, struct usnap_err *err)
{
	return 0;
}

WEAK void rthreads_release(struct restore *r)
{
}

WEAK void rthreads_describe(const struct restore *r, json_t *o)
{
}

WEAK int rproc_plan(struct restore *r, struct usnap_err *err)
{
	return 0;
}

WEAK void rproc_free(struct rproc *p)
{
}

WEAK int rproc_begin(struct restore *r, struct usnap_err *err)
{
	return 0;
}

WEAK int rproc_build(struct restore *r, struct usnap_err *err)
{
	return 0;
}

WEAK int rproc_restore(struct restore *r, struct usnap_err *err)
{
	return 0;
}

WEAK int rproc_arm(struct restore *r, struct usnap_err *err)
{
	return 0;
}

WEAK void rproc_describe(const struct restore *r, json_t *o)
{
}

WEAK void rfiles_undo(struct restore *r)
{
}

/* Parts of the restore that are not there yet: weak, replaced by the real ones. */
#include <errno.h>
#include <string.h>

#include "restore/rfiles.h"
#include "restore/rmem.h"
#include "restore/rproc.h"
#include "restore/rsockets.h"
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

WEAK int rmem_plan(struct restore *r, struct usnap_err *err)
{
	return 0;
}

WEAK void rmem_free(struct rmem *m)
{
}

WEAK const struct stub_range *rmem_taken(const struct restore *r, size_t *ret_n)
{
	*ret_n = 0;
	return NULL;
}

WEAK int rmem_map(struct restore *r, struct usnap_err *err)
{
	return 0;
}

WEAK int rmem_fill(struct restore *r, struct usnap_err *err)
{
	return 0;
}

WEAK int rmem_finish(struct restore *r, struct usnap_err *err)
{
	return 0;
}

WEAK void rmem_describe(const struct restore *r, json_t *o)
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

WEAK int rsockets_plan(struct rsockets **ret, struct restore *r, const json_t *files,
		       struct usnap_err *err)
{
	return 0;
}

WEAK void rsockets_free(struct rsockets *s)
{
}

WEAK int rsockets_make(struct rsockets *s, struct restore *r, int64_t description, int *ret_fd,
		       struct usnap_err *err)
{
	return 0;
}

WEAK int rsockets_made(struct rsockets *s, struct restore *r, struct usnap_err *err)
{
	return 0;
}

WEAK void rsockets_undo(struct rsockets *s, struct restore *r)
{
}
WEAK void rfiles_undo(struct restore *r)
{
}

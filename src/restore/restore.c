/* A restore: the phases, in order. restore_internal.h has the design. */
#include "restore/restore.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/util.h"
#include "image/image.h"
#include "restore/builder.h"
#include "restore/guard.h"
#include "restore/place.h"
#include "restore/rfiles.h"
#include "restore/rjson.h"
#include "restore/rmem.h"
#include "restore/rproc.h"
#include "restore/rthreads.h"
#include "restore/spool.h"

/* ---- plan --------------------------------------------------------------------------------- */

static int from_image(struct restore *r, int code, struct usnap_err *err)
{
	usnap_fail(err, code, "%s", usnap_image_error(r->img));
	return usnap_image_hint(r->img)[0] ? usnap_hint(err, "%s", usnap_image_hint(r->img)) : code;
}

static int open_image(struct restore *r, struct usnap_err *err)
{
	cleanup_fd int spool = -1;
	int ret;

	r->img = usnap_image_new();
	if (!r->img)
		return usnap_fail_errno(err, -ENOMEM, "cannot open '%s'", r->o->image);
	if (r->o->from_input) {
		ret = spool_stream(STDIN_FILENO, r->o->image, r->o->cancel, &spool, err);
		if (ret < 0)
			return ret;
		ret = usnap_image_open_fd(r->img, spool, r->o->image);
	} else {
		ret = usnap_image_open(r->img, r->o->image);
	}
	if (ret == 0)
		ret = usnap_image_get_info(r->img, &r->info, sizeof(r->info));
	if (ret == 0)
		ret = img_load_process(r->img);
	if (ret < 0)
		return from_image(r, ret, err);
	r->process = r->img->process;
	if (strcmp(r->info.arch, "x86_64") != 0 ||
	    r->info.page_size != (uint32_t)sysconf(_SC_PAGESIZE))
		return usnap_fail(err, -EOPNOTSUPP,
				  "cannot restore '%s': it is of a machine of another kind (%s, "
				  "pages of %u bytes)",
				  r->o->image, r->info.arch, r->info.page_size);
	return 0;
}

static int plan_numbers(struct restore *r, struct usnap_err *err)
{
	int ret;

	if ((ret = rjson_innermost(r->process, "pid_ns", r->info.pid, &r->pid, err)) < 0 ||
	    (ret = rjson_innermost(r->process, "pgid_ns", 0, &r->pgid, err)) < 0 ||
	    (ret = rjson_innermost(r->process, "sid_ns", 0, &r->sid, err)) < 0)
		return ret;
	if (r->pid <= 0)
		return usnap_fail(err, -EBADMSG, "cannot restore '%s': it names no PID",
				  r->o->image);
	return 0;
}

int restore_plan(struct restore **ret, const struct restore_options *options, struct usnap_err *err)
{
	struct restore *r = calloc(1, sizeof(*r));
	int code;

	if (!r)
		return usnap_fail_errno(err, -ENOMEM, "cannot restore '%s'", options->image);
	r->o = options;
	r->builder_pidfd = -1;
	if ((code = open_image(r, err)) < 0 || (code = plan_numbers(r, err)) < 0 ||
	    (code = problems_from_image(r, err)) < 0 || (code = place_plan(r, err)) < 0 ||
	    (code = rproc_plan(r, err)) < 0 || (code = rfiles_plan(r, err)) < 0 ||
	    (code = rmem_plan(r, err)) < 0 || (code = rmem_judge_peers(r, err)) < 0 ||
	    (code = rthreads_plan(r, err)) < 0) {
		restore_free(r);
		return code;
	}
	*ret = r;
	return 0;
}

json_t *restore_describe(const struct restore *r)
{
	json_t *o = json_pack("{s:s,s:s,s:i}", "image", r->o->from_input ? "-" : r->o->image, "id",
			      r->info.id, "pid", (int)r->pid);
	json_t *list = json_array();

	for (size_t i = 0; i < r->nr_problems; i++) {
		static const char *const names[] = {"note", "refuse", "fatal"};
		const struct restore_problem *p = &r->problems[i];

		json_array_append_new(list,
				      json_pack("{s:s,s:s,s:s,s:s*,s:b}", "what", p->kind, "detail",
						p->detail, "severity", names[p->severity], "hint",
						p->hint, "ignored", p->ignored));
	}
	place_describe(r, o);
	rproc_describe(r, o);
	rmem_describe(r, o);
	rthreads_describe(r, o);
	rfiles_describe(r, o);
	json_object_set_new(o, "problems", list);
	return o;
}

void restore_free(struct restore *r)
{
	if (!r)
		return;
	guard_end(r);
	rthreads_free(r->threads);
	rmem_free(r->mem);
	rfiles_free(r->files);
	rproc_free(r->proc);
	place_free(r->place);
	problems_free(r);
	stub_free(r->stub);
	if (r->shared)
		munmap(r->shared, sizeof(*r->shared));
	if (r->builder_pidfd >= 0)
		close(r->builder_pidfd);
	usnap_image_free(r->img);
	free(r);
}

/* ---- build -------------------------------------------------------------------------------- */

static int build(struct restore *r, struct usnap_err *err)
{
	static int (*const phases[])(struct restore *, struct usnap_err *) = {
		builder_start, rthreads_create, rmem_map,	  rmem_fill, rmem_finish,
		rfiles_finish, rproc_restore,	rthreads_restore, rproc_arm, rthreads_finish,
	};

	for (size_t i = 0; i < ARRAY_SIZE(phases); i++) {
		if (r->o->cancel && *r->o->cancel)
			return usnap_fail(err, -ECANCELED, "cannot restore '%s': interrupted",
					  r->o->image);
		int code = phases[i](r, err);

		if (code < 0)
			return code;
		stub_reset(r->stub);
	}
	return 0;
}

static int build_here(struct restore *r, struct usnap_err *err)
{
	size_t nr_taken = 0;
	const struct stub_range *taken = rmem_taken(r, &nr_taken);
	int code = stub_new(&r->stub, taken, nr_taken, err);
	if (code == 0)
		code = build(r, err);
	if (code == 0) {
		if (r->o->complete)
			r->o->complete(r->o->ctx, r->builder);
		if (!place_is_inner(r))
			guard_goes(r);
		code = rthreads_release(r, err);
		if (code == 0 && !place_is_inner(r))
			guard_done(r);
	}
	if (code < 0) {
		builder_kill(r);
		rfiles_undo(r);
		guard_done(r);
		if (code == -ESRCH || !err->code)
			usnap_fail(err, -ECHILD,
				   "cannot restore '%s': the new process was killed on the way",
				   r->o->image);
		return err->code;
	}
	return 0;
}

int restore_build(struct restore *r, pid_t *ret_pid, struct usnap_err *err)
{
	int code = problems_refuse(r, err);

	if (code == 0)
		code = guard_begin(r, err);
	if (code == 0)
		code = place_enter(r, err);
	if (code > 0)
		return place_result(r, ret_pid, err);
	if (code == 0)
		code = build_here(r, err);
	code = place_leave(r, code, err);
	if (code == 0)
		*ret_pid = r->builder;
	return code;
}

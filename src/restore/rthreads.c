/* The threads of a restored process: the plan, and threads under their numbers.
 */
#include "restore/rthreads.h"

#include <errno.h>
#include <linux/sched.h>
#include <stdlib.h>
#include <string.h>

#include "common/util.h"
#include "restore/rjson.h"
#include "restore/rproc_internal.h"
#include "restore/rthreads_internal.h"

#define THREADS_MAX 65536 /* lanes of the stub */
#define CREATED_AT_ONCE 256
#define SECUREBITS_MAX 0xfff

/* ---- plan
 * -------------------------------------------------------------------------------
 */

static int parse_notes(struct restore *r, size_t i, struct xmissing *missing, struct usnap_err *err)
{
	struct rthread *th = &r->threads->v[i];
	struct usnap_thread in_image;
	const void *notes;
	size_t len;

	int e = usnap_image_get_thread(r->img, i, &in_image, sizeof(in_image));
	if (e == 0)
		e = usnap_image_get_notes(r->img, i, &notes, &len);
	if (e < 0)
		return usnap_fail(err, e, "%s", usnap_image_error(r->img));
	if (in_image.tid != th->image_tid)
		return usnap_fail(err, -EBADMSG,
				  "cannot restore: threads of process.json are two "
				  "lists");
	return rnotes_parse(th, &r->threads->layout, notes, len, missing, err);
}

static int compare_tids(const void *a, const void *b)
{
	pid_t x = *(const pid_t *)a, y = *(const pid_t *)b;

	return (x > y) - (x < y);
}

/* Each number once, and the main thread among them. */
static int check_tids(struct restore *r, struct usnap_err *err)
{
	struct rthreads *t = r->threads;
	cleanup_free pid_t *tids = calloc(t->n, sizeof(*tids));

	if (!tids)
		return usnap_fail_errno(err, -ENOMEM, "cannot restore");
	t->main = t->n;
	for (size_t i = 0; i < t->n; i++) {
		tids[i] = t->v[i].tid;
		if (t->v[i].tid == r->pid)
			t->main = i;
	}
	qsort(tids, t->n, sizeof(*tids), compare_tids);
	for (size_t i = 1; i < t->n; i++)
		if (tids[i] == tids[i - 1])
			return usnap_fail(err, -EBADMSG,
					  "cannot restore: thread %d is twice in process.json",
					  (int)tids[i]);
	if (t->main < t->n)
		return 0;
	return usnap_fail(err, -EOPNOTSUPP,
			  "cannot restore '%s': its main thread had ended (pthread_exit)",
			  r->o->image);
}

static int judge_cpu(struct restore *r, const struct xmissing *m, struct usnap_err *err)
{
	int e = 0;

	if (m->used)
		e = restore_problem(r, RESTORE_FATAL, "cpu-features",
				    "a thread uses %s, which this CPU has not",
				    xfeature_name(m->used));
	else if (m->known)
		e = restore_problem(r, RESTORE_REFUSE, "cpu-features",
				    "the process has seen a CPU with %s, which this one has not, "
				    "and may use it any time",
				    xfeature_name(m->known));
	return e < 0 ? usnap_fail_errno(err, e, "cannot restore") : 0;
}

static int plan_personality(struct restore *r, struct usnap_err *err)
{
	struct rthreads *t = r->threads;
	const json_t *v = json_object_get(r->process, "personality");

	if (!v || json_is_null(v))
		return 0;
	int e = rjson_word(r->process, "personality", &t->personality, err);
	if (e < 0)
		return e;
	if (t->personality >= UINT32_MAX)
		return usnap_fail(err, -EBADMSG,
				  "cannot restore: personality of process.json is out of range");
	t->has_personality = true;
	return 0;
}

/* Recorded of one thread for all. */
static int plan_securebits(struct restore *r, struct usnap_err *err)
{
	const json_t *v = json_object_get(r->process, "securebits");
	uint64_t bits;

	if (!v || json_is_null(v))
		return 0;
	int e = rjson_word(r->process, "securebits", &bits, err);
	if (e < 0)
		return e;
	if (bits > SECUREBITS_MAX)
		return usnap_fail(err, -EBADMSG,
				  "cannot restore: securebits of process.json is out of range");
	for (size_t i = 0; i < r->threads->n; i++)
		if (r->threads->v[i].creds.securebits < 0)
			r->threads->v[i].creds.securebits = (int64_t)bits;
	return 0;
}

int rthreads_plan(struct restore *r, struct usnap_err *err)
{
	struct rthreads *t = calloc(1, sizeof(*t));
	struct xmissing missing = {0};
	json_t *list;

	r->threads = t;
	if (!t)
		return usnap_fail_errno(err, -ENOMEM, "cannot restore");
	if (!xlayout_here(&t->layout))
		return usnap_fail(err, -EOPNOTSUPP, "cannot restore: this CPU has no XSAVE");
	int e = rjson_array(r->process, "threads", THREADS_MAX, &list, err);
	if (e < 0)
		return e;
	if (!list || !json_array_size(list))
		return usnap_fail(err, -EBADMSG, "cannot restore: process.json has no threads");
	t->v = calloc(json_array_size(list), sizeof(*t->v));
	if (!t->v)
		return usnap_fail_errno(err, -ENOMEM, "cannot restore");
	for (size_t i = 0; i < json_array_size(list); i++) {
		t->n = i + 1;
		if ((e = rthread_parse(&t->v[i], json_array_get(list, i), err)) < 0 ||
		    (e = parse_notes(r, i, &missing, err)) < 0)
			return e;
		t->stop |= t->v[i].stopped || t->v[i].pending.stop;
	}
	t->stop |= r->o->stopped;
	if ((e = check_tids(r, err)) < 0 || (e = plan_personality(r, err)) < 0 ||
	    (e = plan_securebits(r, err)) < 0 || (e = judge_cpu(r, &missing, err)) < 0 ||
	    (e = rseccomp_plan(r, err)) < 0)
		return e;
	return rattrs_judge(r, err);
}

void rthreads_free(struct rthreads *t)
{
	if (!t)
		return;
	for (size_t i = 0; i < t->n; i++)
		rthread_free(&t->v[i]);
	for (size_t i = 0; i < t->nr_programs; i++)
		free(t->programs[i].p);
	free(t->programs);
	free(t->v);
	free(t);
}

pid_t rthreads_own_tid(const struct restore *r, int64_t image_tid)
{
	const struct rthreads *t = r->threads;

	for (size_t i = 0; t && i < t->n; i++)
		if (t->v[i].image_tid == image_tid)
			return t->v[i].tid;
	return 0;
}

void rthreads_describe(const struct restore *r, json_t *o)
{
	const struct rthreads *t = r->threads;
	json_t *list = json_array();

	for (size_t i = 0; i < t->n; i++) {
		json_t *name = json_string(t->v[i].name);

		json_array_append_new(list, json_pack("{s:i,s:o}", "tid", (int)t->v[i].tid, "comm",
						      name ? name : json_null()));
	}
	json_object_set_new(o, "threads", list);
	json_object_set_new(o, "stopped", json_boolean(t->stop));
}

/* ---- made
 * -------------------------------------------------------------------------------
 */

static int cannot_create(const struct restore *r, pid_t tid, int code, struct usnap_err *err)
{
	if (code == -EEXIST) {
		usnap_fail(err, code, "cannot restore '%s': TID %d is in use", r->o->image,
			   (int)tid);
		return usnap_hint(err, "--pid-namespace gives the process its own numbers");
	}
	usnap_fail_errno(err, code, "cannot make thread %d", (int)tid);
	if (code == -EPERM)
		return usnap_hint(err, "choosing a TID takes CAP_CHECKPOINT_RESTORE; "
				       "--pid-namespace does without");
	if (code == -EAGAIN)
		return usnap_hint(err, "the limit of processes (ulimit -u) or of the cgroup "
				       "(pids.max) is reached");
	return code;
}

/* Returns how many were made, the first ones, and in *ret_code why not the next. */
static size_t create_batch(struct restore *r, struct rthread *const *v, size_t n, int *ret_code)
{
	struct stub_batch b;
	size_t failed = 0;

	*ret_code = 0;

	stub_reset(r->stub);
	stub_begin(&b, r->stub, n);
	for (size_t i = 0; i < n; i++) {
		struct clone_args args = {
			.flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD |
				 CLONE_SYSVSEM,
			.set_tid = stub_data(&b, &v[i]->tid, sizeof(v[i]->tid)),
			.set_tid_size = 1,
		};

		stub_add_clone(&b, stub_data(&b, &args, sizeof(args)), sizeof(args), v[i]->lane);
	}
	*ret_code = stub_run(&b, stub_main_lane(r->stub), &failed);
	if (*ret_code == 0)
		failed = n;
	for (size_t i = 0; i < failed; i++)
		if (b.calls[i].ret != v[i]->tid) {
			*ret_code = -EPROTO;
			return i;
		}
	return MIN(failed, n);
}

static int create_some(struct restore *r, struct rthread *const *v, size_t n, struct usnap_err *err)
{
	size_t done = 0;
	int code = 0;

	for (size_t i = 0; i < n; i++) {
		v[i]->lane = stub_lane_new(r->stub);
		if (!v[i]->lane)
			return usnap_fail(err, -EMFILE, "cannot restore: too many threads");
	}
	for (unsigned tries = 0; done < n && tries < ID_TRIES; tries++) {
		done += create_batch(r, v + done, n - done, &code);
		if (code != -EEXIST)
			break;
		usleep(ID_WAIT_US);
	}
	return code < 0 ? cannot_create(r, v[MIN(done, n - 1)]->tid, code, err) : 0;
}

int rthreads_create(struct restore *r, struct usnap_err *err)
{
	struct rthreads *t = r->threads;
	struct rthread *some[CREATED_AT_ONCE];
	size_t n = 0;
	int e = 0;

	t->v[t->main].lane = stub_main_lane(r->stub);
	for (size_t i = 0; i < t->n && e == 0; i++) {
		if (i != t->main)
			some[n++] = &t->v[i];
		if (n == CREATED_AT_ONCE || (n && i + 1 == t->n)) {
			e = create_some(r, some, n, err);
			n = 0;
		}
	}
	return e;
}

/* ---- what each thread has --------------------------------------------------------------------- */

/* Each step needs what a later one takes away: scheduling needs our user,
 * filters need privileges, the seizing needs a process that may be dumped. */
int rthreads_restore(struct restore *r, struct usnap_err *err)
{
	struct rthreads *t = r->threads;
	int e;

	rrseq_abort(r);
	if ((e = rtracees_seize(r, err)) < 0 || (e = rattrs_restore(r, err)) < 0)
		return e;
	for (size_t i = 0; i < t->n; i++) {
		struct rthread *th = &t->v[i];

		e = rsignals_queue(r, th->lane, th->tid, false, &th->pending, err);
		if (e < 0)
			return e;
	}
	if ((e = rattrs_schedule(r, err)) < 0 || (e = rseccomp_restore(r, err)) < 0 ||
	    (e = rattrs_credentials(r, err)) < 0)
		return e;
	return rproc_settle(r, err);
}

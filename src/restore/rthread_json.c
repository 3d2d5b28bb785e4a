/* threads[] of process.json. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/util.h"
#include "restore/rjson.h"
#include "restore/rthreads_internal.h"

#define FILTERS_MAX 8192 /* of a thread; the kernel allows 32768 instructions in all */
#define SCHED_DEADLINE_POLICY 6
#define SCHED_UTIL_CLAMPS 0x60u /* SCHED_FLAG_UTIL_CLAMP_MIN | _MAX */

static int wrong(struct usnap_err *err, const char *what)
{
	return usnap_fail(err, -EBADMSG, "cannot restore: %s of process.json is out of range",
			  what);
}

static int parse_name(struct rthread *th, const json_t *o, struct usnap_err *err)
{
	cleanup_free char *name = NULL;
	int r = rjson_path(o, "comm", &name, err); /* bytes, as a path is */

	if (r == 0 && name)
		strncpy(th->name, name, sizeof(th->name) - 1);
	return r;
}

static int parse_altstack(struct rthread *th, const json_t *o, struct usnap_err *err)
{
	json_t *s;
	uint64_t sp;
	int64_t size, flags;
	int r = rjson_object(o, "sigaltstack", &s, err);

	if (r < 0 || !s)
		return r;
	if ((r = rjson_word(s, "sp", &sp, err)) < 0 ||
	    (r = rjson_int(s, "size", 0, INT64_MAX, &size, err)) < 0 ||
	    (r = rjson_int(s, "flags", INT32_MIN, INT32_MAX, &flags, err)) < 0)
		return r;
	th->has_altstack = true;
	th->altstack.ss_sp = (void *)(uintptr_t)sp;
	th->altstack.ss_size = (size_t)size;
	/* Being on it is a matter of the stack pointer. */
	th->altstack.ss_flags = (int)flags & ~SS_ONSTACK;
	return 0;
}

static int parse_lists(struct rthread *th, const json_t *o, struct usnap_err *err)
{
	json_t *robust, *rseq;
	int64_t len;
	uint64_t sig;
	int r;

	if ((r = rjson_word_or(o, "tid_address", 0, &th->tid_address, err)) < 0 ||
	    (r = rjson_object(o, "robust_list", &robust, err)) < 0 ||
	    (r = rjson_object(o, "rseq", &rseq, err)) < 0)
		return r;
	if (robust && (r = rjson_word(robust, "head", &th->robust_head, err)) < 0)
		return r;
	if (!rseq)
		return 0;
	if ((r = rjson_word(rseq, "addr", &th->rseq_addr, err)) < 0 ||
	    (r = rjson_int(rseq, "len", 32, 4096, &len, err)) < 0 ||
	    (r = rjson_word(rseq, "sig", &sig, err)) < 0)
		return r;
	if (sig > UINT32_MAX)
		return wrong(err, "sig");
	th->has_rseq = true;
	th->rseq_len = (uint32_t)len;
	th->rseq_sig = (uint32_t)sig;
	return 0;
}

static int parse_policy(const json_t *o, uint32_t *ret, struct usnap_err *err)
{
	static const char *const names[] = {"other", "fifo", "rr",	 "batch",
					    "",	     "idle", "deadline", "ext"};
	const char *name = json_string_value(json_object_get(o, "policy"));
	int64_t v;

	for (size_t i = 0; name && i < ARRAY_SIZE(names); i++)
		if (names[i][0] && !strcmp(name, names[i])) {
			*ret = (uint32_t)i;
			return 0;
		}
	int r = rjson_int(o, "policy", 0, 255, &v, err);
	if (r == 0)
		*ret = (uint32_t)v;
	return r;
}

static int parse_sched(struct rthread *th, const json_t *o, struct usnap_err *err)
{
	struct rsched *s = &th->sched;
	json_t *j;
	int64_t nice, priority, runtime, deadline, period, low, high;
	int r = rjson_object(o, "sched", &j, err);

	if (r < 0 || !j)
		return r;
	if ((r = parse_policy(j, &s->policy, err)) < 0 ||
	    (r = rjson_word_or(j, "flags", 0, &s->flags, err)) < 0 ||
	    (r = rjson_int_or(j, "nice", -20, 19, 0, &nice, err)) < 0 ||
	    (r = rjson_int_or(j, "priority", 0, 99, 0, &priority, err)) < 0 ||
	    (r = rjson_int_or(j, "runtime_ns", 0, INT64_MAX, 0, &runtime, err)) < 0 ||
	    (r = rjson_int_or(j, "deadline_ns", 0, INT64_MAX, 0, &deadline, err)) < 0 ||
	    (r = rjson_int_or(j, "period_ns", 0, INT64_MAX, 0, &period, err)) < 0 ||
	    (r = rjson_int_or(j, "util_min", -1, 1024, -1, &low, err)) < 0 ||
	    (r = rjson_int_or(j, "util_max", -1, 1024, -1, &high, err)) < 0)
		return r;
	th->has_sched = true;
	s->size = sizeof(*s);
	s->flags &= ~(uint64_t)SCHED_UTIL_CLAMPS;
	s->nice = (int32_t)nice;
	s->priority = (uint32_t)priority;
	if (s->policy == SCHED_DEADLINE_POLICY) {
		s->runtime = (uint64_t)runtime;
		s->deadline = (uint64_t)deadline;
		s->period = (uint64_t)period;
	}
	th->has_util = low >= 0 && high >= 0;
	s->util_min = th->has_util ? (uint32_t)low : 0;
	s->util_max = th->has_util ? (uint32_t)high : 1024;
	return 0;
}

static int parse_scheduling(struct rthread *th, const json_t *o, struct usnap_err *err)
{
	int64_t ioprio, slack;
	int r;

	if ((r = parse_sched(th, o, err)) < 0 ||
	    (r = rjson_hex(o, "affinity", 1024, &th->affinity, &th->affinity_len, err)) < 0 ||
	    (r = rjson_int_or(o, "ioprio", 0, 0xffff, -1, &ioprio, err)) < 0 ||
	    (r = rjson_int_or(o, "timerslack_ns", 0, INT64_MAX, 0, &slack, err)) < 0)
		return r;
	th->ioprio = (int)ioprio;
	th->timerslack_ns = (uint64_t)slack;
	return 0;
}

static int parse_wait(struct rthread *th, const json_t *o, struct usnap_err *err)
{
	json_t *j;
	int r = rjson_object(o, "interrupted_call", &j, err);

	th->wait = (struct rwait){.nr = -1, .left_ns = -1};
	if (r < 0 || !j)
		return r;
	r = rjson_int(j, "nr", 0, 4095, &th->wait.nr, err);
	return r < 0 ? r : rjson_int_or(j, "left_ns", 0, INT64_MAX, -1, &th->wait.left_ns, err);
}

static int parse_filters(struct rthread *th, const json_t *o, struct usnap_err *err)
{
	json_t *list;
	int r = rjson_array(o, "seccomp_filters", FILTERS_MAX, &list, err);

	if (r < 0 || !list || !json_array_size(list))
		return r;
	th->nr_filters = json_array_size(list);
	th->filters = calloc(th->nr_filters, sizeof(*th->filters));
	if (!th->filters)
		return usnap_fail_errno(err, -ENOMEM, "cannot restore");
	for (size_t i = 0; i < th->nr_filters; i++) {
		const json_t *v = json_array_get(list, i);
		json_int_t nr = json_integer_value(v);

		if (!json_is_integer(v) || nr < 0 || nr > UINT32_MAX)
			return wrong(err, "seccomp_filters");
		th->filters[i] = (uint32_t)nr;
	}
	return 0;
}

int rthread_parse(struct rthread *th, const json_t *o, struct usnap_err *err)
{
	int64_t tid, pdeathsig, stopped;
	int r;

	if (!json_is_object(o))
		return usnap_fail(err, -EBADMSG,
				  "cannot restore: threads of process.json holds no thread");
	if ((r = rjson_int(o, "tid", 1, INT32_MAX, &tid, err)) < 0 ||
	    (r = rjson_innermost(o, "tid_ns", tid, &th->tid, err)) < 0 ||
	    (r = rjson_word(o, "sigmask", &th->sigmask, err)) < 0 ||
	    (r = rjson_int_or(o, "pdeathsig", 0, 64, 0, &pdeathsig, err)) < 0 ||
	    (r = rjson_int_or(o, "stopped_by", 0, 64, 0, &stopped, err)) < 0)
		return r;
	th->image_tid = (pid_t)tid;
	th->pdeathsig = (int)pdeathsig;
	th->stopped = stopped != 0;
	if (th->tid <= 0)
		return wrong(err, "tid_ns");
	if ((r = parse_name(th, o, err)) < 0 || (r = parse_altstack(th, o, err)) < 0 ||
	    (r = parse_lists(th, o, err)) < 0 || (r = parse_scheduling(th, o, err)) < 0 ||
	    (r = parse_wait(th, o, err)) < 0 || (r = parse_filters(th, o, err)) < 0 ||
	    (r = rsignals_parse(&th->pending, o, "pending", err)) < 0)
		return r;
	return rcreds_parse(&th->creds, json_object_get(o, "creds"), err);
}

void rthread_free(struct rthread *th)
{
	rsignals_free(&th->pending);
	rcreds_free(&th->creds);
	free(th->affinity);
	free(th->filters);
	free(th->xstate);
}

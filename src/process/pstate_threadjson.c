/* Threads in JSON; pstate.c has the format. */
#include <stdlib.h>
#include <string.h>

#include "common/util.h"
#include "process/pstate_internal.h"

static json_t *sched_json(const struct thread_state *th)
{
	static const char *const names[] = {"other", "fifo", "rr",	 "batch",
					    NULL,    "idle", "deadline", "ext"};
	const struct sched_raw *s = &th->sched;
	json_t *o = json_object();

	if (s->policy < ARRAY_SIZE(names) && names[s->policy])
		json_object_set_new(o, "policy", json_string(names[s->policy]));
	else
		json_object_set_new(o, "policy", json_integer(s->policy));
	json_object_set_new(o, "flags", json_address(s->flags));
	json_object_set_new(o, "nice", json_integer(s->nice));
	json_object_set_new(o, "priority", json_integer(s->priority));
	if (s->policy == 6) {
		json_object_set_new(o, "runtime_ns", json_integer((json_int_t)s->runtime));
		json_object_set_new(o, "deadline_ns", json_integer((json_int_t)s->deadline));
		json_object_set_new(o, "period_ns", json_integer((json_int_t)s->period));
	}
	if (s->size >= sizeof(*s)) {
		json_object_set_new(o, "util_min", json_integer(s->util_min));
		json_object_set_new(o, "util_max", json_integer(s->util_max));
	}
	return o;
}

/* Bytes of the mask, CPU 0 the lowest bit of the first; no trailing zeros. */
static json_t *affinity_json(const cpu_set_t *set)
{
	const unsigned char *p = (const unsigned char *)set;
	size_t len = sizeof(*set);

	while (len > 1 && !p[len - 1])
		len--;
	return json_hex(p, len);
}

/* Five sets of capabilities, four of each ID: as /proc/PID/status has them. */
json_t *creds_json(const char *status)
{
	static const char *const caps[][2] = {{"CapInh", "cap_inheritable"},
					      {"CapPrm", "cap_permitted"},
					      {"CapEff", "cap_effective"},
					      {"CapBnd", "cap_bounding"},
					      {"CapAmb", "cap_ambient"}};
	static const char *const ids[][2] = {{"Uid", "uid"}, {"Gid", "gid"}, {"Groups", "groups"}};
	json_t *o = json_object();
	uint64_t v;

	for (size_t i = 0; i < ARRAY_SIZE(ids); i++) {
		json_t *a = json_array();

		for (unsigned n = 0; text_number(status, ids[i][0], n, 10, &v); n++)
			json_array_append_new(a, json_integer((json_int_t)v));
		json_object_set_new(o, ids[i][1], a);
	}
	for (size_t i = 0; i < ARRAY_SIZE(caps); i++)
		if (text_number(status, caps[i][0], 0, 16, &v))
			json_object_set_new(o, caps[i][1], json_address(v));
	if (text_number(status, "NoNewPrivs", 0, 10, &v))
		json_object_set_new(o, "no_new_privs", json_boolean(v));
	return o;
}

/* "Name:" with the kernel's escapes undone. */
static void name_json(json_t *o, const char *status)
{
	char name[64];
	size_t n = 0;
	const char *s = text_line(status, "Name");

	for (; s && *s && *s != '\n' && n < sizeof(name) - 1; s++) {
		if (s[0] == '\\' && s[1] == 'n') {
			name[n++] = '\n';
			s++;
		} else if (s[0] == '\\' && s[1] == '\\') {
			name[n++] = '\\';
			s++;
		} else {
			name[n++] = *s;
		}
	}
	json_set_textn(o, "comm", name, n);
}

static void batch_json(const struct thread_state *th, json_t *o)
{
	if (th->has_altstack)
		json_object_set_new(o, "sigaltstack",
				    json_pack("{s:o,s:I,s:i}", "sp", json_address(th->altstack_sp),
					      "size", (json_int_t)th->altstack_size, "flags",
					      (int)th->altstack_flags));
	else
		json_object_set_new(o, "sigaltstack", json_null());
	json_object_set_new(o, "tid_address",
			    th->has_tid_address ? json_address(th->tid_address) : json_null());
	json_object_set_new(o, "pdeathsig",
			    th->has_pdeathsig ? json_integer(th->pdeathsig) : json_null());
}

static json_t *thread_json(const struct pstate *ps, const struct thread_state *th)
{
	const char *status = span_text(th->status);
	const struct thread_prep *prep = threads_find_prep(ps, th->tid);
	json_t *o = json_pack("{s:i}", "tid", (int)th->tid), *a, *pending;
	uint64_t v;

	name_json(o, status);
	a = json_array();
	for (unsigned n = 0; text_number(status, "NSpid", n, 10, &v); n++)
		json_array_append_new(a, json_integer((json_int_t)v));
	json_object_set_new(o, "tid_ns", a);
	json_object_set_new(o, "sigmask", json_address(th->sigmask));
	batch_json(th, o);
	if (th->has_robust)
		json_object_set_new(o, "robust_list",
				    json_pack("{s:o,s:I}", "head", json_address(th->robust_head),
					      "len", (json_int_t)th->robust_len));
	if (th->has_rseq && th->rseq.addr)
		json_object_set_new(
			o, "rseq",
			json_pack("{s:o,s:I,s:o,s:I}", "addr", json_address(th->rseq.addr), "len",
				  (json_int_t)th->rseq.size, "sig", json_address(th->rseq.sig),
				  "flags", (json_int_t)th->rseq.flags));
	if (th->has_sched)
		json_object_set_new(o, "sched", sched_json(th));
	if (th->has_affinity)
		json_object_set_new(o, "affinity", affinity_json(&th->affinity));
	if (th->has_ioprio)
		json_object_set_new(o, "ioprio", json_integer(th->ioprio));
	if (prep && prep->has_timerslack)
		json_object_set_new(o, "timerslack_ns",
				    json_integer((json_int_t)prep->timerslack_ns));
	pending = siginfo_list_json(&th->pending);
	json_object_set_new(o, "pending", pending);
	if (th->group_stop)
		json_object_set_new(o, "stopped_by", json_integer(th->group_stop));
	json_t *interrupted = wait_json(ps, prep, th);
	if (interrupted)
		json_object_set_new(o, "interrupted_call", interrupted);
	if (text_number(status, "Seccomp", 0, 10, &v))
		json_object_set_new(o, "seccomp", json_integer((json_int_t)v));
	json_object_set_new(o, "creds", creds_json(status));
	return o;
}

json_t *threads_json(const struct pstate *ps)
{
	json_t *a = json_array();

	for (size_t i = 0; i < ps->nr_threads; i++)
		json_array_append_new(a, thread_json(ps, &ps->threads[i]));
	return a;
}

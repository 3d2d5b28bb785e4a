/*
 * Signal actions, signals that wait, and the timers that will send some.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include "common/util.h"
#include "process/pstate_internal.h"

/* RLIMIT_SIGPENDING bounds the queue; a user may have raised it. */
#define PENDING_MAX 65536

/* ---- in the freeze ------------------------------------------------------ */

void signals_peek(pid_t tid, bool shared, struct siginfo_list *ret)
{
	siginfo_t some[16];

	free(ret->v);
	*ret = (struct siginfo_list){0};
	for (;;) {
		struct __ptrace_peeksiginfo_args args = {
			.off = ret->n,
			.flags = shared ? PTRACE_PEEKSIGINFO_SHARED : 0,
			.nr = ARRAY_SIZE(some),
		};
		long n = ptrace(PTRACE_PEEKSIGINFO, tid, &args, some);

		if (n <= 0 || ret->n + (size_t)n > PENDING_MAX)
			return;
		siginfo_t *bigger = realloc(ret->v, (ret->n + (size_t)n) * sizeof(*bigger));
		if (!bigger)
			return;
		memcpy(bigger + ret->n, some, (size_t)n * sizeof(*some));
		ret->v = bigger;
		ret->n += (size_t)n;
		if ((size_t)n < ARRAY_SIZE(some))
			return;
	}
}

/* One timer of /proc/PID/timers, as show_timer() in fs/proc/base.c writes:
 *   ID: 0
 *   signal: 14/0000000000000000
 *   notify: signal/pid.1234
 *   ClockID: 1
 */
static const char *parse_timer(const char *s, struct posix_timer *t)
{
	static const char *const how[] = {"signal", "none", "thread"}; /* SIGEV_* */
	unsigned long long sigval = 0;
	char word[16] = "", who[8] = "";

	*t = (struct posix_timer){0};
	s = strstr(s, "ID: ");
	if (!s)
		return NULL;
	t->id = atoi(s + 4);
	const char *line = strstr(s, "\nsignal: ");
	if (!line || sscanf(line, "\nsignal: %d/%llx", &t->signo, &sigval) != 2)
		return NULL;
	t->sigval = sigval;
	line = strstr(line, "\nnotify: ");
	if (!line || sscanf(line, "\nnotify: %15[a-z]/%7[a-z].%d", word, who, &t->target) != 3)
		return NULL;
	for (int i = 0; i < (int)ARRAY_SIZE(how); i++)
		if (!strcmp(word, how[i]))
			t->notify = i;
	if (!strcmp(who, "tid"))
		t->notify |= SIGEV_THREAD_ID;
	line = strstr(line, "\nClockID: ");
	if (!line)
		return NULL;
	t->clock = atoi(line + 10);
	return line + 10;
}

static int parse_timers(struct signal_state *s, const char *text)
{
	struct posix_timer t;
	size_t room = 0;

	s->nr_timers = 0;
	for (const char *p = text; (p = parse_timer(p, &t));) {
		if (s->nr_timers == room) {
			room = room ? room * 2 : 8;
			struct posix_timer *bigger = realloc(s->timers, room * sizeof(*bigger));
			if (!bigger)
				return -ENOMEM;
			s->timers = bigger;
		}
		s->timers[s->nr_timers++] = t;
	}
	return 0;
}

int signals_begin(struct pstate *ps, struct usnap_err *err)
{
	struct signal_state *s = &ps->signals;
	const char *status = span_text(ps->threads[0].status);

	text_number(status, "SigCgt", 0, 16, &s->caught);
	text_number(status, "SigIgn", 0, 16, &s->ignored);
	signals_peek(ps->threads[0].tid, true, &s->pending);
	int r = parse_timers(s, span_text(ps->timers));
	return r < 0 ? usnap_fail_errno(err, r, "cannot collect the timers") : 0;
}

/* Which actions are not told by SigCgt and SigIgn alone: those with a
 * handler, and SIGCHLD, whose flags mean something without one. */
static bool action_wanted(const struct signal_state *s, int signo)
{
	return s->caught >> (signo - 1) & 1 || signo == SIGCHLD;
}

static void add_process(const struct pstate *ps, struct remote_batch *b, struct signal_calls *c)
{
	for (int signo = 1; signo <= 64; signo++) {
		if (!action_wanted(&ps->signals, signo))
			continue;
		int at = remote_batch_data(b, NULL, sizeof(struct action_raw));
		if (at >= 0 && remote_batch_call(b, SYS_rt_sigaction, 1u << 2, (uint64_t)signo, 0,
						 (uint64_t)at, 8, 0) >= 0)
			c->action[signo - 1] = at;
	}
	for (int i = ITIMER_REAL; i <= ITIMER_PROF; i++) {
		c->itimer[i] = remote_batch_data(b, NULL, sizeof(struct itimer_raw));
		remote_batch_call(b, SYS_getitimer, 1u << 1, (uint64_t)i, (uint64_t)c->itimer[i], 0,
				  0, 0);
	}
	c->subreaper = remote_batch_data(b, NULL, 4);
	remote_batch_call(b, SYS_prctl, 1u << 1, PR_GET_CHILD_SUBREAPER, (uint64_t)c->subreaper, 0,
			  0, 0);
}

void signals_add(struct pstate *ps, struct remote_batch *b, struct signal_calls *c,
		 size_t timer_from)
{
	memset(c, 0xff, sizeof(*c)); /* -1 everywhere */
	c->timer_from = c->timer_to = timer_from;
	if (timer_from == 0)
		add_process(ps, b, c);
	while (c->timer_to < ps->signals.nr_timers &&
	       c->timer_to - timer_from < ARRAY_SIZE(c->timer)) {
		int at = remote_batch_data(b, NULL, sizeof(struct itimer_raw));
		int id = ps->signals.timers[c->timer_to].id;

		if (at < 0 || remote_batch_call(b, SYS_timer_gettime, 1u << 1, (uint64_t)id,
						(uint64_t)at, 0, 0, 0) < 0)
			break;
		c->timer[c->timer_to++ - timer_from] = at;
	}
}

void signals_take(struct pstate *ps, const struct remote_batch *b, const struct signal_calls *c)
{
	struct signal_state *s = &ps->signals;

	for (int i = 0; i < 64; i++) {
		int at = c->action[i];
		if (at < 0)
			continue;
		memcpy(&s->actions[i].raw, b->data + at, sizeof(s->actions[i].raw));
		s->actions[i].known =
			!remote_batch_untouched(b, (unsigned)at, sizeof(s->actions[i].raw));
	}
	for (int i = 0; i < 3; i++) {
		int at = c->itimer[i];
		if (at < 0)
			continue;
		memcpy(&s->itimers[i].raw, b->data + at, sizeof(s->itimers[i].raw));
		s->itimers[i].known =
			!remote_batch_untouched(b, (unsigned)at, sizeof(s->itimers[i].raw));
	}
	if (c->subreaper >= 0) {
		memcpy(&s->subreaper, b->data + c->subreaper, 4);
		s->has_subreaper = !remote_batch_untouched(b, (unsigned)c->subreaper, 4);
	}
	for (size_t i = c->timer_from; i < c->timer_to; i++) {
		int at = c->timer[i - c->timer_from];
		struct posix_timer *t = &s->timers[i];
		int64_t its[4];

		memcpy(its, b->data + at, sizeof(its));
		t->has_time = !remote_batch_untouched(b, (unsigned)at, sizeof(its));
		t->interval_s = its[0];
		t->interval_ns = its[1];
		t->value_s = its[2];
		t->value_ns = its[3];
	}
}

/* A timer sent this since its time was read: what it has left is from then on. */
static void note_expiry(struct signal_state *s, const siginfo_t *si)
{
	if (si->si_signo == SIGALRM && si->si_code == SI_KERNEL) {
		s->itimers[ITIMER_REAL].raw.value_s = 0;
		s->itimers[ITIMER_REAL].raw.value_us = 0;
	}
	for (size_t i = 0; i < s->nr_timers && si->si_code == SI_TIMER; i++) {
		struct posix_timer *t = &s->timers[i];

		if (t->id != si->si_timerid)
			continue;
		t->value_s = t->interval_s;
		t->value_ns = t->interval_ns;
	}
}

static void look_again(struct signal_state *s, pid_t tid, bool shared, struct siginfo_list *list)
{
	struct siginfo_list now = {0};

	signals_peek(tid, shared, &now);
	for (size_t i = list->n; i < now.n; i++)
		note_expiry(s, &now.v[i]);
	free(list->v);
	*list = now;
}

/* Timers do not stand still with the threads. One that expires when the signals have been read and
 * its time has not would be in neither. */
void signals_end(struct pstate *ps)
{
	for (size_t i = 0; i < ps->nr_threads; i++)
		look_again(&ps->signals, ps->threads[i].tid, false, &ps->threads[i].pending);
	look_again(&ps->signals, ps->threads[0].tid, true, &ps->signals.pending);
}

/* ---- afterwards ---------------------------------------------------------- */

static json_t *siginfo_json(const siginfo_t *si)
{
	return json_pack("{s:i,s:i,s:o}", "signo", si->si_signo, "code", si->si_code, "siginfo",
			 json_hex(si, sizeof(*si)));
}

json_t *siginfo_list_json(const struct siginfo_list *l)
{
	json_t *a = json_array();

	for (size_t i = 0; i < l->n; i++)
		json_array_append_new(a, siginfo_json(&l->v[i]));
	return a;
}

static json_t *action_json(const struct signal_state *s, int signo)
{
	const struct action_raw *raw = &s->actions[signo - 1].raw;
	json_t *o = json_pack("{s:i}", "signo", signo);

	if (!s->actions[signo - 1].known) {
		json_object_set_new(o, "handler",
				    s->ignored >> (signo - 1) & 1 ? json_string("ignore")
								  : json_null());
		return o;
	}
	json_object_set_new(o, "handler",
			    raw->handler == 0	? json_string("default")
			    : raw->handler == 1 ? json_string("ignore")
						: json_address(raw->handler));
	json_object_set_new(o, "flags", json_address(raw->flags));
	json_object_set_new(o, "mask", json_address(raw->mask));
	json_object_set_new(o, "restorer", json_address(raw->restorer));
	return o;
}

static json_t *itimers_json(const struct signal_state *s)
{
	static const char *const names[] = {"real", "virtual", "prof"};
	json_t *a = json_array();

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		struct itimer_raw it = s->itimers[i].raw;

		/* The kernel starts it anew when its signal is taken (kernel/signal.c,
		 * dequeue_signal()). Until then it has no time left. Armed with next to nothing,
		 * it is in that state again at once; its signal merges with the one that waits. */
		if (i == ITIMER_REAL && !it.value_s && !it.value_us &&
		    (it.interval_s || it.interval_us))
			it.value_us = 1;
		if (!s->itimers[i].known || !(it.value_s || it.value_us))
			continue;
		json_array_append_new(
			a, json_pack("{s:s,s:I,s:I}", "which", names[i], "value_ns",
				     (json_int_t)(it.value_s * 1000000000 + it.value_us * 1000),
				     "interval_ns",
				     (json_int_t)(it.interval_s * 1000000000 +
						  it.interval_us * 1000)));
	}
	return a;
}

static json_t *posix_timers_json(const struct signal_state *s)
{
	json_t *a = json_array();

	for (size_t i = 0; i < s->nr_timers; i++) {
		const struct posix_timer *t = &s->timers[i];
		json_t *o = json_pack("{s:i,s:i,s:i,s:o,s:i,s:i}", "id", t->id, "clock", t->clock,
				      "signo", t->signo, "sigval", json_address(t->sigval),
				      "notify", t->notify, "notify_id", t->target);

		if (t->has_time) {
			json_object_set_new(o, "value_ns",
					    json_integer(t->value_s * 1000000000 + t->value_ns));
			json_object_set_new(
				o, "interval_ns",
				json_integer(t->interval_s * 1000000000 + t->interval_ns));
		}
		json_array_append_new(a, o);
	}
	return a;
}

void signals_json(const struct pstate *ps, json_t *root)
{
	const struct signal_state *s = &ps->signals;
	json_t *actions = json_array();

	/* What is not listed has its default action and no flags. */
	for (int signo = 1; signo <= 64; signo++) {
		const struct action_raw *raw = &s->actions[signo - 1].raw;
		bool plain = s->actions[signo - 1].known && !raw->handler && !raw->flags;

		if ((action_wanted(s, signo) && !plain) || s->ignored >> (signo - 1) & 1)
			json_array_append_new(actions, action_json(s, signo));
	}
	json_object_set_new(root, "signals",
			    json_pack("{s:o,s:o}", "actions", actions, "pending",
				      siginfo_list_json(&s->pending)));
	json_object_set_new(root, "itimers", itimers_json(s));
	json_object_set_new(root, "posix_timers", posix_timers_json(s));
	json_object_set_new(root, "child_subreaper",
			    s->has_subreaper ? json_boolean(s->subreaper) : json_null());
}

void signals_free(struct signal_state *s)
{
	free(s->pending.v);
	free(s->timers);
	*s = (struct signal_state){0};
}

/*
 * Seccomp filters of threads (ptrace(2), PTRACE_SECCOMP_GET_FILTER: takes
 * CAP_SYS_ADMIN). Threads mostly share theirs; which are the same is seen by
 * their bytes when the target runs again.
 */
#include <errno.h>
#include <linux/filter.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>

#include "common/util.h"
#include "process/pstate_internal.h"

#ifndef PTRACE_SECCOMP_GET_FILTER
#define PTRACE_SECCOMP_GET_FILTER 0x420c
#endif

/* Each filter costs a call per thread. A process with more threads than that
 * got its filters before it started them: those that have as many as one that
 * was asked are taken to have the same. */
#define THREADS_ASKED 64
/* The kernel allows 32768 instructions in all, each filter counted with 4 more. */
#define FILTERS_MAX 8192

static uint64_t count_filters(const struct thread_state *th)
{
	const char *status = span_text(th->status);
	uint64_t mode = 0, n = FILTERS_MAX; /* the count: Linux 5.9 */

	text_number(status, "Seccomp", 0, 10, &mode);
	text_number(status, "Seccomp_filters", 0, 10, &n);
	return mode == 2 ? MIN(n, (uint64_t)FILTERS_MAX) : 0;
}

static void collect_filters(struct thread_state *th, uint64_t n)
{
	static const size_t most = BPF_MAXINSNS;
	struct sock_filter *buf = malloc(most * sizeof(*buf));

	th->filters = calloc(n, sizeof(*th->filters));
	for (uint64_t i = 0; buf && th->filters && i < n; i++) {
		long len = ptrace(PTRACE_SECCOMP_GET_FILTER, th->tid, (void *)i, buf);

		if (len <= 0 || (size_t)len > most)
			break;
		struct filter_text *f = &th->filters[i];
		f->bytes = (size_t)len * sizeof(*buf);
		f->p = malloc(f->bytes);
		if (!f->p)
			break;
		memcpy(f->p, buf, f->bytes);
		th->nr_filters = (size_t)i + 1;
	}
	free(buf);
}

void seccomp_collect(struct pstate *ps)
{
	size_t asked = 0;

	for (size_t i = 0; i < ps->nr_threads; i++) {
		struct thread_state *th = &ps->threads[i];

		th->filters_told = count_filters(th);
		if (!th->filters_told)
			continue;
		th->filters_like = i;
		for (size_t k = 0; asked >= THREADS_ASKED && k < i && th->filters_like == i; k++)
			if (ps->threads[k].filters_told == th->filters_told)
				th->filters_like = ps->threads[k].filters_like;
		if (th->filters_like == i && ++asked)
			collect_filters(th, th->filters_told);
	}
}

/* Whether all filters of all threads are in the image. */
bool seccomp_complete(const struct pstate *ps)
{
	for (size_t i = 0; i < ps->nr_threads; i++) {
		const struct thread_state *th = &ps->threads[i];
		uint64_t n = th->filters_told;

		if (n && ps->threads[th->filters_like].nr_filters != n && n != FILTERS_MAX)
			return false;
		if (n && !ps->threads[th->filters_like].nr_filters)
			return false;
	}
	return true;
}

/* The number of a filter in the list, where it is put when it is new. */
static json_t *filter_number(json_t *list, const struct filter_text *f)
{
	json_t *hex = json_hex(f->p, f->bytes), *have;
	size_t i;

	json_array_foreach (list, i, have) {
		if (json_equal(have, hex)) {
			json_decref(hex);
			return json_integer((json_int_t)i);
		}
	}
	json_array_append_new(list, hex);
	return json_integer((json_int_t)json_array_size(list) - 1);
}

/* "seccomp_filters" of the process: the programs; of each thread: their
 * numbers, the one installed last first. */
void seccomp_json(const struct pstate *ps, json_t *root, json_t *threads)
{
	json_t *list = json_array();

	for (size_t i = 0; i < ps->nr_threads; i++) {
		if (!ps->threads[i].filters_told)
			continue;
		const struct thread_state *th = &ps->threads[ps->threads[i].filters_like];
		json_t *numbers = json_array();

		for (size_t k = 0; k < th->nr_filters; k++)
			json_array_append_new(numbers, filter_number(list, &th->filters[k]));
		json_object_set_new(json_array_get(threads, i), "seccomp_filters", numbers);
	}
	json_object_set_new(root, "seccomp_filters", list);
}

void seccomp_forget(struct thread_state *th)
{
	for (size_t i = 0; i < th->nr_filters; i++)
		free(th->filters[i].p);
	free(th->filters);
	th->filters = NULL;
	th->nr_filters = 0;
}

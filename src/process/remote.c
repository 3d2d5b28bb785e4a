/*
 * Batches of remote system calls, and running them on many threads at once;
 * remote.h has the design.
 */
#include "process/remote_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>

#include "common/util.h"

void remote_batch_init(struct remote_batch *b)
{
	b->nr_calls = 0;
	b->data_len = 0;
}

int remote_batch_data(struct remote_batch *b, const void *init, size_t len)
{
	size_t room = ALIGN_UP(len, (size_t)8);

	if (room > REMOTE_MAX_DATA - b->data_len)
		return -ENOSPC;
	int offset = (int)b->data_len;
	if (init)
		memcpy(b->data + offset, init, len);
	else
		memset(b->data + offset, REMOTE_FILL, len);
	b->data_len += (unsigned)room;
	return offset;
}

int remote_batch_call(struct remote_batch *b, long nr, unsigned data_args, uint64_t a0, uint64_t a1,
		      uint64_t a2, uint64_t a3, uint64_t a4)
{
	if (b->nr_calls == REMOTE_MAX_CALLS)
		return -ENOSPC;
	b->calls[b->nr_calls] = (struct remote_call){
		.nr = (uint64_t)nr,
		.args = {a0, a1, a2, a3, a4},
		.data_args = (uint8_t)data_args,
	};
	return (int)b->nr_calls++;
}

int remote_batch_untouched(const struct remote_batch *b, unsigned offset, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (b->data[offset + i] != REMOTE_FILL)
			return 0;
	return 1;
}

int remote_run_all(struct remote_job *jobs, size_t n, const struct target *target,
		   const struct remote_gadgets *g, struct remote_meanwhile meanwhile,
		   struct usnap_err *err)
{
	cleanup_free struct chain *chains = calloc(n, sizeof(*chains));
	int gone = 0;

	if (!chains)
		return usnap_fail_errno(err, -ENOMEM, "cannot make system calls in process %d",
					target->pid);
	/* All are let go before the first is waited for. */
	for (size_t i = 0; i < n; i++) {
		struct chain *c = &chains[i];
		struct remote_job *j = &jobs[i];

		j->result = chain_init(c, j->t, target, g, remote_is_slow(j->t), false);
		c->known = j->known;
		c->wait_nr = j->known ? j->known->wait_nr : 0;
		c->others = chains;
		c->nr_others = i;
		if (j->result == 0 && dispatches_calls(j->t->tid))
			j->result = -EPERM;
		unsigned long options = c->stepped ? PTRACE_O_TRACESYSGOOD : 0;
		if (j->result == 0 && (options || g->seccomp) &&
		    filter_in_the_way(g, trace_options(g, j->t->tid, options)))
			j->result = -EPERM;
		if (j->result == 0)
			j->result = chain_begin(c, j->b);
		if (j->result == 0 && !c->stepped) {
			if (ptrace(PTRACE_CONT, j->t->tid, NULL, NULL) < 0)
				j->result = -ESRCH;
			c->running = true;
		}
	}
	if (meanwhile.fn)
		meanwhile.fn(meanwhile.arg);
	for (size_t i = 0; i < n; i++) {
		struct chain *c = &chains[i];
		struct remote_job *j = &jobs[i];

		if (j->result == 0)
			j->result = c->stepped ? chain_step(c, j->b, NULL, NULL)
					       : chain_wait(c, NULL, NULL);
		if (c->begun && j->result != -ESRCH) {
			int f = chain_finish(c, j->result == 0 ? j->b : NULL);
			if (j->result == 0 || f == -ESRCH)
				j->result = f;
		}
		if (j->result == -ESRCH)
			gone = usnap_fail(err, -ESRCH,
					  "cannot snapshot process %d: its thread %d was killed",
					  target->pid, j->t->tid);
		else if (c->stepped || g->seccomp)
			ptrace(PTRACE_SETOPTIONS, j->t->tid, NULL, NULL);
		chain_free(c);
	}
	/* Those that were in the way of others, one by one. */
	for (size_t i = 0; i < n && gone == 0; i++)
		if (jobs[i].result == -EINPROGRESS)
			gone = remote_run_all(&jobs[i], 1, target, g, (struct remote_meanwhile){0},
					      err);
	return gone;
}

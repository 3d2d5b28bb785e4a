#include "restore/rsignals.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

#include "common/util.h"
#include "restore/rjson.h"

#define PENDING_MAX 65536
#define SIGINFO_BYTES 128
/* si_sys_private, which is the kernel's own business, of a timer's siginfo_t.
 */
#define TIMER_PRIVATE_OFFSET 32

_Static_assert(sizeof(siginfo_t) == SIGINFO_BYTES, "as the kernel has it");

enum {
	AT_ONCE = 256 /* signals in one batch */
};

/* ---- signals that wait ------------------------------------------------------------------------ */

static int parse_one(siginfo_t *ret, const json_t *o, struct usnap_err *err)
{
	cleanup_free unsigned char *raw = NULL;
	int64_t signo, code;
	size_t len = 0;

	int r = rjson_int(o, "signo", 1, 64, &signo, err);
	if (r == 0)
		r = rjson_int_or(o, "code", INT32_MIN, INT32_MAX, SI_USER, &code, err);
	if (r == 0)
		r = rjson_hex(o, "siginfo", SIGINFO_BYTES, &raw, &len, err);
	if (r < 0)
		return r;
	memset(ret, 0, sizeof(*ret));
	if (raw) {
		memcpy(ret, raw, len);
		if (len != SIGINFO_BYTES || ret->si_signo != signo)
			return usnap_fail(err, -EBADMSG,
					  "cannot restore: siginfo of process.json is not of "
					  "signal %d",
					  (int)signo);
		if (ret->si_code == SI_TIMER)
			memset((char *)ret + TIMER_PRIVATE_OFFSET, 0, 4);
	} else {
		ret->si_signo = (int)signo;
		ret->si_code = (int)code;
	}
	if (signo == SIGKILL)
		return usnap_fail(err, -EBADMSG,
				  "cannot restore: a signal that waits is SIGKILL: the process was "
				  "about to end");
	return 0;
}

int rsignals_parse(struct rsignals *ret, const json_t *o, const char *key, struct usnap_err *err)
{
	json_t *list, *one;
	size_t i;

	*ret = (struct rsignals){0};
	int r = rjson_array(o, key, PENDING_MAX, &list, err);
	if (r < 0 || !list || !json_array_size(list))
		return r;
	ret->v = calloc(json_array_size(list), sizeof(*ret->v));
	if (!ret->v)
		return usnap_fail_errno(err, -ENOMEM, "cannot restore");
	json_array_foreach (list, i, one) {
		r = parse_one(&ret->v[ret->n], one, err);
		if (r < 0) {
			rsignals_free(ret);
			return r;
		}
		/* Cannot be blocked: the process is left stopped in the end. */
		if (ret->v[ret->n].si_signo == SIGSTOP)
			ret->stop = true;
		else
			ret->n++;
	}
	return 0;
}

void rsignals_free(struct rsignals *s)
{
	free(s->v);
	*s = (struct rsignals){0};
}

static int queue_some(struct restore *r, struct stub_lane *lane, pid_t tid, bool to_process,
		      const siginfo_t *v, size_t n)
{
	struct stub_batch b;

	stub_reset(r->stub);
	stub_begin(&b, r->stub, n);
	for (size_t i = 0; i < n; i++) {
		uint64_t info = stub_data(&b, &v[i], sizeof(v[i]));
		uint64_t signo = (uint64_t)v[i].si_signo;

		/* To oneself any si_code may be sent (kernel/signal.c), and
     * rt_sigqueueinfo() compares with the sender's TID: only the main thread
     * can send to the process. */
		if (to_process)
			stub_add(&b, SYS_rt_sigqueueinfo, (uint64_t)r->pid, signo, info, 0, 0, 0);
		else
			stub_add(&b, SYS_rt_tgsigqueueinfo, (uint64_t)r->pid, (uint64_t)tid, signo,
				 info, 0, 0);
	}
	return stub_run(&b, lane, NULL);
}

int rsignals_queue(struct restore *r, struct stub_lane *lane, pid_t tid, bool to_process,
		   const struct rsignals *s, struct usnap_err *err)
{
	for (size_t at = 0; at < s->n; at += AT_ONCE) {
		size_t n = MIN(s->n - at, (size_t)AT_ONCE);
		int e = queue_some(r, lane, tid, to_process, s->v + at, n);

		if (e == -EAGAIN) {
			usnap_fail(err, e,
				   "cannot queue the %zu signals that wait for thread %d: more "
				   "than its user may have",
				   s->n, (int)tid);
			return usnap_hint(err, "'ulimit -i' raises how many");
		}
		if (e < 0)
			return usnap_fail_errno(
				err, e, "cannot queue a signal that waits for thread %d", (int)tid);
	}
	return 0;
}

/* ---- actions
 * ----------------------------------------------------------------------------
 */

static int parse_handler(const json_t *o, uint64_t *ret, struct usnap_err *err)
{
	const char *word = json_string_value(json_object_get(o, "handler"));

	if (word && !strcmp(word, "default"))
		*ret = 0;
	else if (word && !strcmp(word, "ignore"))
		*ret = 1;
	else /* null: it could not be asked for, which the image says by itself */
		return rjson_word_or(o, "handler", 0, ret, err);
	return 0;
}

int ractions_parse(struct ractions *ret, const json_t *signals, struct usnap_err *err)
{
	json_t *list, *o;
	size_t i;

	*ret = (struct ractions){0};
	int r = rjson_array(signals, "actions", 64, &list, err);
	if (r < 0)
		return r;
	json_array_foreach (list, i, o) {
		int64_t signo;

		r = rjson_int(o, "signo", 1, 64, &signo, err);
		if (r < 0)
			return r;
		__typeof__(ret->v[0]) *a = &ret->v[signo - 1];
		if ((r = parse_handler(o, &a->handler, err)) < 0 ||
		    (r = rjson_word_or(o, "flags", 0, &a->flags, err)) < 0 ||
		    (r = rjson_word_or(o, "mask", 0, &a->mask, err)) < 0 ||
		    (r = rjson_word_or(o, "restorer", 0, &a->restorer, err)) < 0)
			return r;
	}
	return 0;
}

int ractions_restore(struct restore *r, const struct ractions *a, struct usnap_err *err)
{
	struct stub_batch b;
	size_t failed = 0;

	stub_reset(r->stub);
	stub_begin(&b, r->stub, 64);
	for (int signo = 1; signo <= 64; signo++) {
		if (signo == SIGKILL || signo == SIGSTOP)
			continue;
		uint64_t act = stub_data(&b, &a->v[signo - 1], sizeof(a->v[0]));
		stub_add(&b, SYS_rt_sigaction, (uint64_t)signo, act, 0, 8, 0, 0);
	}
	int e = stub_run(&b, stub_main_lane(r->stub), &failed);
	return e < 0 ? usnap_fail_errno(err, e, "cannot set the action of signal %d",
					(int)b.calls[failed].args[0])
		     : 0;
}

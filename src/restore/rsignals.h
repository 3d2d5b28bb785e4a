/*
 * Signals that wait, as process.json lists them, queued again.
 */
#ifndef USNAP_RESTORE_RSIGNALS_H
#define USNAP_RESTORE_RSIGNALS_H

#include <jansson.h>
#include <signal.h>

#include "restore/restore_internal.h"

/* What the kernel reads of a siginfo_t: all of it, whose first member is
 * si_signo. */
struct rsignals {
	siginfo_t *v;
	size_t n;
	bool stop; /* a SIGSTOP was among them: it is not in v */
};

/* o[key]: pending[] of process.json. */
int rsignals_parse(struct rsignals *ret, const json_t *o, const char *key, struct usnap_err *err);
void rsignals_free(struct rsignals *s);

/* Queued by a thread for itself, which has them blocked; to_process: by the
 * main thread for the whole process. */
int rsignals_queue(struct restore *r, struct stub_lane *lane, pid_t tid, bool to_process,
		   const struct rsignals *s, struct usnap_err *err);

/* What each signal does: signals.actions[]. */
struct ractions {
	struct {
		uint64_t handler, flags, restorer, mask; /* as rt_sigaction(2) reads it */
	} v[64];
};

int ractions_parse(struct ractions *ret, const json_t *signals, struct usnap_err *err);
int ractions_restore(struct restore *r, const struct ractions *a, struct usnap_err *err);

#endif

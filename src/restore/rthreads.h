/*
 * The threads of the process: threads[] of process.json and threads/TID.notes.
 */
#ifndef USNAP_RESTORE_RTHREADS_H
#define USNAP_RESTORE_RTHREADS_H

#include "restore/restore_internal.h"

int rthreads_plan(struct restore *r, struct usnap_err *err);
void rthreads_free(struct rthreads *t);

/* Makes all threads but the main one, under their TIDs; they wait in the stub. */
int rthreads_create(struct restore *r, struct usnap_err *err);

/* What belongs to each thread and is made by system calls of its own: name, alternate stack, robust
 * list, rseq, tid address, scheduling, credentials, pending signals ... */
int rthreads_restore(struct restore *r, struct usnap_err *err);

/* Seizes all threads, takes the stub away, sets registers and masks. The process is complete and
 * stands still. */
int rthreads_finish(struct restore *r, struct usnap_err *err);
/* Lets it run (or leaves it as after SIGSTOP). After a failure some threads may run already. */
int rthreads_release(struct restore *r, struct usnap_err *err);

/* When the process has been sent SIGKILL or has ended: threads that are traced stay as zombies until
 * their tracer has waited for them, and the process with them. */
void rthreads_reap(struct restore *r);

void rthreads_describe(const struct restore *r, json_t *o);

#endif

/*
 * What belongs to the process as a whole and is neither memory, file nor thread.
 */
#ifndef USNAP_RESTORE_RPROC_H
#define USNAP_RESTORE_RPROC_H

#include "restore/restore_internal.h"

int rproc_plan(struct restore *r, struct usnap_err *err);
void rproc_free(struct rproc *p);

/* In the builder, before the files: session and process group, namespaces it must be in. */
int rproc_begin(struct restore *r, struct usnap_err *err);
/* In the builder, after the files: working directory, root, umask, personality,
 * oom_score_adj, coredump_filter. */
int rproc_build(struct restore *r, struct usnap_err *err);

/* By remote calls, before rthreads_restore(): signal actions, interval and POSIX timers (armed last
 * of all, by rproc_arm), limits, dumpable, child subreaper, THP setting. */
int rproc_restore(struct restore *r, struct usnap_err *err);
/* Timers start to run, with the time that was left. The last remote calls. */
int rproc_arm(struct restore *r, struct usnap_err *err);

void rproc_describe(const struct restore *r, json_t *o);

#endif

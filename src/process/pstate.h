/*
 * The state of a process besides its memory: what process.json and
 * threads/TID.notes hold (uffd-snap-image(5)).
 *
 * Three steps, all on the tracer's thread: pstate_prepare() before the
 * freeze does what is slow and does not change; pstate_collect() runs while
 * every thread stands still and only gathers raw facts, as few system calls
 * as can be; pstate_finish() turns them into JSON when the target runs again.
 */
#ifndef USNAP_PROCESS_PSTATE_H
#define USNAP_PROCESS_PSTATE_H

#include <jansson.h>
#include <stddef.h>

#include "common/err.h"
#include "process/facts.h"
#include "process/maps.h"
#include "process/remote.h"
#include "process/target.h"
#include "process/tracee.h"
#include "process/unlinked.h"
#include "process/waits.h"

struct pstate;

int pstate_prepare(struct pstate **ret, const struct target *t, const struct remote_gadgets *g,
		   struct usnap_err *err);

/* May run several times (an attempt that is repeated); the last one counts.
 * meanwhile: called once, while the threads answer. */
int pstate_collect(struct pstate *ps, struct tracees *threads, struct remote_meanwhile meanwhile,
		   struct usnap_err *err);

/* A wait that was seen before the thread was stopped for other reasons, and went on since: since when
 * it lasts. After pstate_prepare(). */
void pstate_know_wait(struct pstate *ps, const struct wait_note *w);

/* The timed wait that thread number i is in, as in struct remote_known; after pstate_collect(). */
long pstate_wait_nr(const struct pstate *ps, size_t i);

/* What a helper was told; of before T0, or of T0 itself. */
void pstate_know_facts(struct pstate *ps, const struct process_facts *f);

/* A child that the process did not mean to have: what was started to look at it, and given to it as the
 * reaper of orphans. After pstate_prepare(). */
void pstate_disown(struct pstate *ps, pid_t child);

/* The mappings as read in this freeze; borrowed until pstate_free(). */
void pstate_set_maps(struct pstate *ps, const struct maps *maps);

/* Calls fn for each descriptor of the last collect that refers to a regular file without a name. */
typedef int pstate_unlinked_fn(void *arg, int fd, const struct stat *st);
int pstate_each_unlinked(const struct pstate *ps, pstate_unlinked_fn *fn, void *arg);

/* What is known of such files; borrowed until pstate_free(). */
void pstate_set_unlinked(struct pstate *ps, const struct unlinked_files *files);

/* process.json as a new reference, "maps" included. */
int pstate_finish(struct pstate *ps, json_t **ret, struct usnap_err *err);

/* The notes of thread number i (0 ... nr - 1), owned by ps. */
size_t pstate_nr_threads(const struct pstate *ps);
int pstate_notes(struct pstate *ps, size_t i, pid_t *ret_tid, const void **ret, size_t *ret_len);

void pstate_free(struct pstate *ps);

#endif

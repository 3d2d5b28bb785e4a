/*
 * What the parts of a restore share.
 *
 * DESIGN. Three actors. The restorer (this program) plans, decompresses and
 * steers. The builder is a clone of it that already has the PID of the
 * process to be: in plain C it makes what is the process's as a whole (files,
 * directory, session), then it enters the stub. The stub is a page of code and
 * a few of requests that the restorer and the builder share (stub.h): from
 * there on the restorer sends system calls to be made in the process, by each
 * of its threads. The builder's own mappings go, the threads are made, the
 * regions are mapped, the restorer fills them from outside with
 * process_vm_writev(2), and in the end ptrace(2) gives every thread its
 * registers and takes the stub away.
 *
 * Until the last step the builder dies with the restorer (PR_SET_PDEATHSIG).
 *
 * Each part has a plan function, which parses its share of process.json into
 * a struct of its own (hostile input: see rjson.h), checks it against this
 * machine and adds problems; and functions for the phases, in the order of
 * restore.c.
 */
#ifndef USNAP_RESTORE_RESTORE_INTERNAL_H
#define USNAP_RESTORE_RESTORE_INTERNAL_H

#include <jansson.h>
#include <uffd-snap.h>

#include "restore/restore.h"
#include "restore/stub.h"

/* Mapped shared by the restorer and the builder. */
struct restore_shared {
	struct usnap_err err; /* why the builder ended */
};

/* A number that was free when looked at is taken by whoever came first, if only for a moment, or is
 * given back a little later than its process is gone: as long as this it is tried again. */
enum {
	ID_TRIES = 100,
	ID_WAIT_US = 10000,
};

struct restore {
	const struct restore_options *o;
	struct usnap_image *img;
	struct usnap_info info;
	json_t *process; /* process.json: an object */
	struct restore_problem *problems;
	size_t nr_problems;

	/* The numbers that the process has for itself: of the innermost PID namespace. */
	pid_t pid, pgid, sid;

	struct place *place; /* place.h */
	struct rfiles *files; /* rfiles.h */
	struct rmem *mem; /* rmem.h */
	struct rthreads *threads; /* rthreads.h */
	struct rproc *proc; /* rproc.h */

	/* While it is built: */
	struct restore_shared *shared;
	struct stub *stub;
	struct guard *guard; /* guard.h */
	pid_t builder; /* as the restorer sees it */
	int builder_pidfd;
};

/* ---- problems.c ---- */

/* Adds a problem; ignored when its kind is among the options' and it is no fatal one. */
int restore_problem(struct restore *r, enum restore_severity severity, const char *kind,
		    const char *fmt, ...) __attribute__((format(printf, 4, 5)));
/* What to do about the problem that was added last; empty: nothing that is known. */
int restore_problem_hint(struct restore *r, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
/* Takes over limits_of_restore[] of the image (severity "consistency": a note). Kinds that a part
 * judges itself, now and here, are left out. */
int problems_from_image(struct restore *r, struct usnap_err *err);
/* Fails with the first obstacle when there is one; the hint says how to ignore it. */
int problems_refuse(const struct restore *r, struct usnap_err *err);
void problems_free(struct restore *r);

#endif

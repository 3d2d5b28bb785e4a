/*
 * The memory of the process: maps[] and mm of process.json, pages of the image.
 */
#ifndef USNAP_RESTORE_RMEM_H
#define USNAP_RESTORE_RMEM_H

#include "restore/restore_internal.h"

int rmem_plan(struct restore *r, struct usnap_err *err);
/* Adds problems for shared memory that others have mapped as well. */
int rmem_judge_peers(struct restore *r, struct usnap_err *err);
void rmem_free(struct rmem *m);

/* Ranges that the stub must keep away from, sorted. Owned by m. */
const struct stub_range *rmem_taken(const struct restore *r, size_t *ret_n);

/* The builder's own mappings go, the regions come: all writable for now. */
int rmem_map(struct restore *r, struct usnap_err *err);
/* The pages, from nr_threads threads. */
int rmem_fill(struct restore *r, struct usnap_err *err);
/* Protections, advice, locks; mm fields, exe, vdso. */
int rmem_finish(struct restore *r, struct usnap_err *err);

void rmem_describe(const struct restore *r, json_t *o);

#endif

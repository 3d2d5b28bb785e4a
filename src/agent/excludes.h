/*
 * The list of what an image need not hold, in the block that the snapshotter
 * reads.
 *
 * It reads it at T0, wherever the threads of the program stand just then, in
 * the middle of a change too. So a change is a row of single stores, after
 * each of which the list says something between what it said and what it will
 * say: an entry counts when its start lies below its end, entries may overlap
 * and come in any order.
 *
 * Callers hold a lock.
 */
#ifndef USNAP_AGENT_EXCLUDES_H
#define USNAP_AGENT_EXCLUDES_H

#include "agent/control.h"

/* Whole pages, start < end. -ENOSPC: there are too many ranges; nothing has changed then. */
int excludes_add(struct agent_control *c, uint64_t start, uint64_t end);
int excludes_remove(struct agent_control *c, uint64_t start, uint64_t end);

#endif

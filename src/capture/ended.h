/*
 * Threads whose end nobody has been told of.
 *
 * A thread's last act, in the kernel, is to clear the word at which pthread_join() waits
 * (CLONE_CHILD_CLEARTID). It does not wait for a userfaultfd then (fs/userfaultfd.c, PF_EXITING): where
 * the word is write-protected it stays, and the joiner waits for ever.
 *
 * A thread writes to that page shortly before, and where it has registered rseq(2), as threads of
 * glibc have since 2.35, so does the kernel whenever the thread has waited: it happens seldom then.
 * The stacks are searched, while every thread stands still, for control blocks of glibc's whose thread
 * is no more, and their words are cleared: in the freeze, so that the image shows none, and when
 * nothing is protected any more; with rseq(2) only if there seems to be one. A waiting joiner looks
 * again when it goes on.
 *
 * The tracer's.
 */
#ifndef USNAP_CAPTURE_ENDED_H
#define USNAP_CAPTURE_ENDED_H

#include <stdbool.h>

#include "process/maps.h"

struct capture;

/* Whether threads hardly ever end unnoticed. */
bool ended_is_noticed(const struct capture *c);
/* Whether there seems to be one, while the process runs: a word is not that of a thread. */
bool ended_is_suspected(struct capture *c);
/* Tells of those on stacks in these mappings, with every thread stopped. */
void ended_tell(struct capture *c, const struct maps *maps);

#endif

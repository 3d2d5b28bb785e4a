/*
 * Words that the kernel writes on behalf of a thread that waits.
 *
 * A write of the kernel's own to a futex does not wait for a userfaultfd
 * (kernel/futex/core.c, fault_in_user_writeable()): where the word is
 * write-protected the call fails with EFAULT, which glibc ends the program for.
 * A thread writes to the word by itself before it calls the kernel, as a rule,
 * and that lifts the protection; not so one that waits for a mutex with priority
 * inheritance and is interrupted: its call starts again by itself, and writes.
 * So the pages of such words are spared: never protected while arming, and copied
 * at T0, while every thread stands still.
 */
#ifndef USNAP_CAPTURE_FUTEXES_H
#define USNAP_CAPTURE_FUTEXES_H

#include <stdbool.h>
#include <stdint.h>

#include "process/target.h"

struct capture;
struct copier;

/* Of a system call: how many of the addresses that it was given the kernel may write to without waiting,
 * 0 to 2. */
unsigned futexes_written(uint64_t nr, uint64_t op, uint64_t addr, uint64_t addr2, uint64_t ret[2]);
/* Whether a thread waits in such a call. False if that is not known. */
bool futexes_is_waiter(const struct target *t, const char *tid);

/* What is spared is not protected until it has been copied, or the attempt is over. The tracer's; 0 or
 * -ENOMEM. */
/* While arming, and before threads are stopped: those of the threads that wait now. */
int futexes_note(struct capture *c);
/* When all have stopped: those of all threads, by their registers. */
int futexes_stopped(struct capture *c);
/* In the freeze: copies what is spared, and populated. */
int futexes_copy(struct capture *c, struct copier *cp);

#endif

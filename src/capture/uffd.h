/*
 * userfaultfd of another process: one function per ioctl, and how to come by
 * the descriptor. All return 0 or negative errno unless said otherwise;
 * addresses and lengths in bytes, page-aligned. -EAGAIN from protect,
 * unprotect, zeropage and copy: an event waits to be read
 * (ioctl_userfaultfd(2)); -ESRCH: the memory is gone (exit, execve).
 */
#ifndef USNAP_CAPTURE_UFFD_H
#define USNAP_CAPTURE_UFFD_H

#include <stdbool.h>
#include <stdint.h>

#include "common/compat.h"
#include "common/err.h"
#include "process/facts.h"
#include "process/maps.h"
#include "process/remote.h"
#include "process/target.h"
#include "process/waits.h"

/* What the moment in which the target was disturbed told besides. */
struct uffd_known {
	struct process_facts facts;
	struct wait_note wait; /* of the thread that was stopped for it; since_ns 0: none */
};

/* Makes a userfaultfd in the target and takes it. Nothing stays behind there;
 * one thread is stopped for the moment that takes. The API handshake is done;
 * *ret_features: what was granted. */
int uffd_take(int *ret_fd, uint64_t *ret_features, struct uffd_known *ret_known,
	      const struct target *t, const struct maps *maps, const struct remote_gadgets *g,
	      struct usnap_err *err);

/* Has fn make calls in a helper beside one thread of the target, an idle one where there is one,
 * which alone stands still meanwhile. ret_wait: what it waited in. What fn returned, or why there is
 * no helper. */
int uffd_with_helper(const struct target *t, const struct maps *maps,
		     const struct remote_gadgets *g, struct wait_note *ret_wait,
		     remote_helper_fn *fn, void *arg, struct usnap_err *err);

int uffd_register(int fd, uint64_t start, uint64_t len, uint64_t mode);
int uffd_unregister(int fd, uint64_t start, uint64_t len);
int uffd_protect(int fd, uint64_t start, uint64_t len);
/* Lifts the protection and wakes who waits. */
int uffd_unprotect(int fd, uint64_t start, uint64_t len);
int uffd_wake(int fd, uint64_t start, uint64_t len);

/* Maps zero pages where there is none, from start on, and wakes. *ret_done:
 * bytes done before the first page that exists (then -EEXIST). */
int uffd_zeropage(int fd, uint64_t start, uint64_t len, uint64_t *ret_done);
int uffd_copy(int fd, uint64_t dst, const void *src, uint64_t len);

/* True while a discard of the target waits for its event to be read. */
bool uffd_event_pending(int fd);

#endif

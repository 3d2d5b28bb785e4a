/*
 * Where the bytes of an archive go: a regular file that can begin again, or
 * a stream. Counts and hashes what passes, keeps to a rate, and can be made
 * to give up from elsewhere while it waits for a reader that does not read.
 *
 * Used by one thread at a time, sink_stop() by any and from signal handlers.
 * Returns 0 or negative errno; -ECANCELED after sink_stop(). Never raises
 * SIGPIPE or SIGXFSZ.
 */
#ifndef USNAP_IMAGE_SINK_H
#define USNAP_IMAGE_SINK_H

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <xxhash.h>

struct sink {
	int fd; /* borrowed */
	int stop_fd; /* eventfd, readable once stopped */
	/* Set by a signal handler, which ends a wait as sink_stop() does; NULL: by none. The owner's
	 * to set after sink_open(). */
	const volatile sig_atomic_t *cancel;
	mode_t type; /* S_IFREG ... of fd */
	bool rewindable;
	bool no_nowait; /* the kernel has no RWF_NOWAIT for this file */
	uint64_t rate_bytes_s, next_ns;
	uint64_t position; /* in the archive */
	_Atomic uint64_t total_bytes; /* written to fd in all; read by any thread */
	_Atomic uint64_t longest_ns; /* that a single write took; read by any thread */
	XXH3_state_t *hash; /* of the archive so far */

	/* What sink_flush_early() has started. */
	pthread_t flusher;
	pthread_mutex_t flush_lock;
	pthread_cond_t to_flusher;
	bool flushes, flush_quit;
	uint64_t flush_from, flush_to; /* positions: where it goes on, how far */
};

/* To be closed also after a failure. */
int sink_open(struct sink *s, int fd, uint64_t rate_bytes_s);

/* At most once: what goes to a file is sent on to the disk as it comes, so that there is less left to do
 * for the sync at the end. By a thread of its own, with the caller's table of descriptors: the disk may
 * take seconds to accept it, and who writes should not stand still for that. */
void sink_flush_early(struct sink *s);

int sink_write(struct sink *s, const void *buf, size_t len);

/* Empties the file and begins again at its start. Only when rewindable. */
int sink_rewind(struct sink *s);

void sink_stop(struct sink *s);
bool sink_stopped(const struct sink *s);
void sink_close(struct sink *s);

#endif

/*
 * Outputs for images, and what becomes of them: files, of which one takes only so much, a full
 * device, and pipes whose reader is slow, leaves in the middle or does not read at all.
 */
#ifndef TESTS_STRESS_OUTPUTS_H
#define TESTS_STRESS_OUTPUTS_H

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "stress.h"

enum {
	FULL_BYTES = 3 << 20
};

enum output_kind {
	TO_FILE,
	TO_CHILD, /* a file; its image continues the last one */
	TO_SLOW_PIPE,
	TO_SMALL_FILE,
	TO_FULL_DEVICE,
	TO_CLOSED_PIPE,
	TO_STUCK_PIPE,
	NR_OUTPUTS
};

static const struct {
	const char *name;
	int error; /* that a writer meets */
} outputs[] = {{"file", 0},
	       {"child", 0},
	       {"slow pipe", 0},
	       {"small file", -EFBIG},
	       {"full device", -ENOSPC},
	       {"closed pipe", -EPIPE},
	       {"stuck pipe", -ECANCELED}};

struct output {
	enum output_kind kind;
	int fd, pipe_end;
	int image_fd; /* what was written, where all of it can be */
	uint64_t chance; /* the reader's */
	pthread_t reader;
	bool have_reader;
};

static inline void *output_reader(void *arg)
{
	struct output *o = arg;
	cleanup_free char *buf = malloc(KIB(64));
	uint64_t all = 0;
	ssize_t n;

	while ((n = read(o->pipe_end, buf, 1 + random_below(&o->chance, KIB(64)))) > 0) {
		all += (uint64_t)n;
		if (o->kind == TO_CLOSED_PIPE && all > FULL_BYTES)
			break;
		if (o->image_fd >= 0 && write(o->image_fd, buf, (size_t)n) != n)
			die("cannot keep the image");
		if (random_below(&o->chance, 4) == 0)
			usleep(500);
	}
	close(take_fd(&o->pipe_end));
	return NULL;
}

/* While this one is open, no file can become larger than a small one. */
static inline void output_limit(const struct output *o, bool on)
{
	struct rlimit l;

	getrlimit(RLIMIT_FSIZE, &l);
	l.rlim_cur = on && o->kind == TO_SMALL_FILE ? (rlim_t)FULL_BYTES : l.rlim_max;
	setrlimit(RLIMIT_FSIZE, &l);
}

static inline void output_begin(struct output *o, enum output_kind kind, uint64_t chance)
{
	int fds[2] = {-1, -1};

	*o = (struct output){.kind = kind, .fd = -1, .pipe_end = -1, .image_fd = -1};
	o->chance = chance;
	if (kind <= TO_SLOW_PIPE)
		o->image_fd = memfd_create("image", MFD_CLOEXEC);
	if (kind == TO_FULL_DEVICE) {
		o->fd = open("/dev/full", O_WRONLY | O_CLOEXEC);
	} else if (kind == TO_SMALL_FILE) {
		o->fd = memfd_create("image", MFD_CLOEXEC);
	} else if (kind == TO_FILE || kind == TO_CHILD) {
		o->fd = dup(o->image_fd);
	} else if (pipe2(fds, O_CLOEXEC) == 0) {
		o->pipe_end = fds[0];
		o->fd = fds[1];
		o->have_reader = kind != TO_STUCK_PIPE;
		if (o->have_reader)
			o->reader = stress_thread(output_reader, o);
	}
	if (o->fd < 0)
		die("cannot open an output");
	output_limit(o, true);
}

/* What was written is complete in image_fd, which stays open. */
static inline void output_end(struct output *o)
{
	output_limit(o, false);
	close(o->fd);
	if (o->have_reader)
		pthread_join(o->reader, NULL);
	else if (o->pipe_end >= 0)
		close(o->pipe_end);
}

#endif

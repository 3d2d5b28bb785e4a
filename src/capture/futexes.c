#include "capture/futexes.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "capture/session.h"
#include "common/io.h"
#include "common/util.h"

#ifndef FUTEX_LOCK_PI2
#define FUTEX_LOCK_PI2 13
#endif

#define OPEN_NS 500000000u

unsigned futexes_written(uint64_t nr, uint64_t op, uint64_t addr, uint64_t addr2, uint64_t ret[2])
{
	if (nr != SYS_futex)
		return 0;
	switch (op & FUTEX_CMD_MASK) {
	case FUTEX_LOCK_PI:
	case FUTEX_LOCK_PI2:
	case FUTEX_TRYLOCK_PI:
	case FUTEX_UNLOCK_PI:
		ret[0] = addr;
		return 1;
	case FUTEX_WAIT_REQUEUE_PI:
	case FUTEX_CMP_REQUEUE_PI:
	case FUTEX_WAKE_OP:
		ret[0] = addr;
		ret[1] = addr2;
		return 2;
	default:
		return 0;
	}
}

/* "202 0x7f... 0x86 ...": number and six arguments of the call that a thread waits in, or "running". */
static unsigned of_thread(int dirfd_, const char *tid, uint64_t ret[2])
{
	cleanup_free char *text = NULL;
	uint64_t arg[5];
	char path[300];
	unsigned nr;

	snprintf(path, sizeof(path), "%s/syscall", tid);
	if (io_read_file_at(dirfd_, path, KIB(4), &text, NULL) < 0 ||
	    sscanf(text, "%u %" SCNx64 " %" SCNx64 " %" SCNx64 " %" SCNx64 " %" SCNx64, &nr,
		   &arg[0], &arg[1], &arg[2], &arg[3], &arg[4]) != 6)
		return 0;
	return futexes_written(nr, arg[1], arg[0], arg[4], ret);
}

bool futexes_is_waiter(const struct target *t, const char *tid)
{
	uint64_t words[2];
	char path[300];

	snprintf(path, sizeof(path), "task/%s", tid);
	return of_thread(t->procfd, path, words) > 0;
}

static int spare(struct capture *c, const uint64_t *words, unsigned n)
{
	int r = 0;

	for (unsigned i = 0; i < n && r == 0; i++) {
		uint64_t page = ALIGN_DOWN(words[i], PAGE_BYTES);

		r = ranges_add(&c->spared, page, page + PAGE_BYTES);
	}
	return r;
}

/* What is protected already. In larger pages that cannot be lifted for a part. */
static int open_spared(struct capture *c)
{
	const uint64_t deadline = now_ns() + OPEN_NS;

	ranges_merge(&c->spared, 0);
	/* From T0 on what is protected is so until it has been copied. */
	if (c->uffd < 0 || c->phase != PHASE_ARM)
		return 0;
	/* Each by itself: neighbours may lie in mappings of which one is not registered. */
	for (size_t i = 0; i < c->spared.n; i++)
		for (uint64_t page = c->spared.r[i].start; page < c->spared.r[i].end;
		     page += PAGE_BYTES)
			/* An event is pending: the fault thread will read it. */
			while (uffd_unprotect(c->uffd, page, PAGE_BYTES) == -EAGAIN && !c->failed &&
			       now_ns() < deadline)
				usleep(10);
	return 0;
}

int futexes_note(struct capture *c)
{
	cleanup_fd int fd = openat(c->target->procfd, "task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cleanup_dir DIR *d = fd < 0 ? NULL : fdopendir(fd);
	const struct dirent *e;
	int r = 0;

	if (!d)
		return 0;
	const int tasks = fd;
	fd = -1;
	while (r == 0 && (e = readdir(d))) {
		uint64_t words[2];

		if (e->d_name[0] != '.')
			r = spare(c, words, of_thread(tasks, e->d_name, words));
	}
	return r < 0 ? r : open_spared(c);
}

int futexes_stopped(struct capture *c)
{
	int r = 0;

	for (size_t i = 0; i < c->tracees.n * 2 && r == 0; i++) {
		const struct tracee *t = &c->tracees.t[i / 2];
		/* A handler that has just begun may return to a call that waits on. */
		const struct user_regs_struct *regs = i % 2 ? &t->before : &t->regs;
		uint64_t words[2];

		r = spare(c, words,
			  futexes_written(regs->orig_rax, regs->rsi, regs->rdi, regs->r8, words));
	}
	return r < 0 ? r : open_spared(c);
}

static int copy_page(struct capture *c, struct copier *cp, uint64_t page)
{
	const struct segment *s = segmap_find(&c->segments, page);
	unsigned budget = 1;

	/* What lies in larger pages is not spared. */
	return s && s->unit == PAGE_BYTES
		       ? freeze_copy_populated(c, cp, page, page + PAGE_BYTES, &budget)
		       : 0;
}

int futexes_copy(struct capture *c, struct copier *cp)
{
	int r = 0;

	for (size_t i = 0; i < c->spared.n && r == 0; i++)
		for (uint64_t page = c->spared.r[i].start; page < c->spared.r[i].end && r == 0;
		     page += PAGE_BYTES)
			r = copy_page(c, cp, page);
	return r;
}

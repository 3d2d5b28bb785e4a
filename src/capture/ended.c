#include "capture/ended.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/utsname.h>

#include "capture/session.h"
#include "common/compat.h"
#include "common/util.h"
#include "process/remote.h"

/* struct pthread of glibc on x86-64, from 2.4 on. */
enum {
	TCB_ALIGN = 64,
	TCB_SELF = 0x10, /* its own address, as at 0 */
	TCB_TID = 0x2d0, /* int32: of the thread, 0 when it has ended */
};

/* Up to 6.18 the kernel writes to it whenever a thread has waited; later, only what has changed. */
static bool kernel_writes_rseq(void)
{
	struct utsname u;
	unsigned major, minor;

	return uname(&u) == 0 && sscanf(u.release, "%u.%u", &major, &minor) == 2 &&
	       (major < 6 || (major == 6 && minor < 19));
}

bool ended_is_noticed(const struct capture *c)
{
	struct {
		uint64_t pointer;
		uint32_t size, sig, flags, pad;
	} rseq = {0};

	return kernel_writes_rseq() &&
	       ptrace(PTRACE_GET_RSEQ_CONFIGURATION, c->tracees.t[0].tid, (void *)sizeof(rseq),
		      &rseq) >= 0 &&
	       rseq.pointer;
}

/* The end of a mapping right above a guard: a stack that pthread_create() made, and on top of it the
 * control block. */
static bool is_stack(const struct vma *v, const struct vma *below)
{
	return v->kind == VMA_ANON && !v->shared && v->prot == (PROT_READ | PROT_WRITE) &&
	       below->end == v->start && below->kind == VMA_ANON && below->prot == PROT_NONE;
}

/* Where fs of each thread points, in order: at its control block, as a rule. */
struct bases {
	uint64_t *v;
	size_t n;
};

static int compare(const void *a, const void *b)
{
	const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* As the process itself knows it. */
static bool is_thread(const struct capture *c, pid_t tid)
{
	for (size_t i = 0; i < c->tracees.n; i++) {
		pid_t pid, inside;

		if (ids_inside(c->target, c->tracees.t[i].tid, &c->gadgets, &pid, &inside) < 0 ||
		    inside == tid || pid == tid)
			return true;
	}
	return false;
}

/* Calls fn for the ID in every control block of glibc's on the page: true ends it, and is returned. */
typedef bool tcb_fn(struct capture *c, void *arg, uint64_t addr, pid_t tid);

static bool look_at(struct capture *c, uint64_t page, tcb_fn *fn, void *arg)
{
	unsigned char bytes[PAGE_BYTES];

	if (memory_read(c, page, bytes, sizeof(bytes)) < 0)
		return false;
	for (size_t at = 0; at + TCB_TID + sizeof(int32_t) <= sizeof(bytes); at += TCB_ALIGN) {
		const uint64_t addr = page + at;
		uint64_t tcb, self;
		int32_t tid;

		memcpy(&tcb, bytes + at, sizeof(tcb));
		memcpy(&self, bytes + at + TCB_SELF, sizeof(self));
		memcpy(&tid, bytes + at + TCB_TID, sizeof(tid));
		if (tcb == addr && self == addr && tid > 0 && fn(c, arg, addr + TCB_TID, tid))
			return true;
	}
	return false;
}

static bool look_at_all(struct capture *c, const struct maps *maps, tcb_fn *fn, void *arg)
{
	for (size_t i = 1; i < maps->n; i++)
		if (is_stack(&maps->v[i], &maps->v[i - 1]) &&
		    look_at(c, maps->v[i].end - PAGE_BYTES, fn, arg))
			return true;
	return false;
}

static bool clear(struct capture *c, void *arg, uint64_t addr, pid_t tid)
{
	const struct bases *bases = arg;
	const uint64_t tcb = addr - TCB_TID;
	int32_t none = 0;
	struct iovec local = {&none, sizeof(none)};
	struct iovec remote = {(void *)(uintptr_t)addr, sizeof(none)};

	/* IDs cost a file for each thread in another PID namespace: only for those that are left. */
	if (!(bases->n && bsearch(&tcb, bases->v, bases->n, sizeof(*bases->v), compare)) &&
	    !is_thread(c, tid) &&
	    process_vm_writev(c->target->pid, &local, 1, &remote, 1, 0) == sizeof(none))
		c->stats.ended_told++;
	return false;
}

void ended_tell(struct capture *c, const struct maps *maps)
{
	struct bases bases = {.v = calloc(c->tracees.n, sizeof(*bases.v))};

	/* Without it each is looked for by its ID. */
	for (; bases.v && bases.n < c->tracees.n; bases.n++)
		bases.v[bases.n] = c->tracees.t[bases.n].regs.fs_base;
	if (bases.n)
		qsort(bases.v, bases.n, sizeof(*bases.v), compare);
	look_at_all(c, maps, clear, &bases);
	free(bases.v);
}

/* The threads of a process that runs, as it knows them itself. */
struct ids {
	pid_t v[4096];
	size_t n;
};

static bool list_ids(const struct capture *c, struct ids *ids)
{
	cleanup_fd int fd = openat(c->target->procfd, "task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cleanup_dir DIR *d = fd < 0 ? NULL : fdopendir(fd);
	const struct dirent *e;
	pid_t pid;

	if (!d)
		return false;
	fd = -1;
	while ((e = readdir(d)) && ids->n < ARRAY_SIZE(ids->v))
		if (e->d_name[0] != '.' && ids_inside(c->target, (pid_t)strtol(e->d_name, NULL, 10),
						      &c->gadgets, &pid, &ids->v[ids->n]) == 0)
			ids->n++;
	return !e;
}

static bool is_none(struct capture *c, void *arg, uint64_t addr, pid_t tid)
{
	const struct ids *ids = arg;

	(void)c, (void)addr;
	for (size_t i = 0; i < ids->n; i++)
		if (ids->v[i] == tid)
			return false;
	return true;
}

bool ended_is_suspected(struct capture *c)
{
	struct maps maps = {0};
	cleanup_free struct ids *ids = calloc(1, sizeof(*ids));
	bool r = true;

	if (ids && maps_read(c->target->procfd, &maps) == 0 && list_ids(c, ids))
		r = look_at_all(c, &maps, is_none, ids);
	maps_free(&maps);
	return r;
}

#include "capture/ended.h"

#include <stdio.h>
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

static void look_at(struct capture *c, uint64_t page)
{
	unsigned char bytes[PAGE_BYTES];

	if (memory_read(c, page, bytes, sizeof(bytes)) < 0)
		return;
	for (size_t at = 0; at + TCB_TID + sizeof(int32_t) <= sizeof(bytes); at += TCB_ALIGN) {
		const uint64_t addr = page + at;
		uint64_t tcb, self;
		int32_t tid, none = 0;

		memcpy(&tcb, bytes + at, sizeof(tcb));
		memcpy(&self, bytes + at + TCB_SELF, sizeof(self));
		memcpy(&tid, bytes + at + TCB_TID, sizeof(tid));
		if (tcb != addr || self != addr || tid <= 0 || is_thread(c, tid))
			continue;
		struct iovec local = {&none, sizeof(none)};
		struct iovec remote = {(void *)(uintptr_t)(addr + TCB_TID), sizeof(none)};
		if (process_vm_writev(c->target->pid, &local, 1, &remote, 1, 0) == sizeof(none))
			c->stats.ended_told++;
	}
}

void ended_tell(struct capture *c, const struct maps *maps)
{
	for (size_t i = 1; i < maps->n; i++)
		if (is_stack(&maps->v[i], &maps->v[i - 1]))
			look_at(c, maps->v[i].end - PAGE_BYTES);
}

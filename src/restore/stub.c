/* System calls made in the process that is being built; stub.h has the design. */
#include "restore/stub.h"

#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "common/io.h"
#include "common/util.h"
#include "restore/stub_internal.h"

enum {
	CODE_BYTES = 4096,
	LANES_BYTES = 1 << 22, /* room for 65,536 threads */
	BATCHES_BYTES = 1 << 24,
	STUB_BYTES = CODE_BYTES + LANES_BYTES + BATCHES_BYTES,
};

struct stub_lane {
	uint32_t state;
	uint32_t pad;
	uint64_t calls, nr_calls, nr_made;
	uint64_t unused[4];
};

_Static_assert(sizeof(struct stub_lane) == 64, "lanes lie in lines of their own");
_Static_assert(sizeof(struct stub_call) == 128 && offsetof(struct stub_call, ret) == 56 &&
		       offsetof(struct stub_call, flags) == 64 &&
		       offsetof(struct stub_lane, nr_made) == 24,
	       "as stub_code.c has it");

struct stub {
	int memfd;
	int pidfd; /* of the process; not ours */
	const volatile sig_atomic_t *cancel; /* or NULL */
	unsigned char *view; /* here */
	uint64_t addr; /* in the process */
	size_t nr_lanes;
	size_t used; /* of the room for batches */
};

/* ---- where ------------------------------------------------------------------------------ */

/* The lowest address above 64 KiB that keeps a distance from what is taken: stacks grow, and so
 * does the heap. */
static uint64_t choose_address(const struct stub_range *taken, size_t nr_taken,
			       const struct stub_range *own, size_t nr_own)
{
	const uint64_t distance = (uint64_t)1 << 32, top = (uint64_t)1 << 46;
	uint64_t at = (uint64_t)1 << 32;
	bool moved = true;

	while (moved && at < top) {
		moved = false;
		for (size_t i = 0; i < nr_taken + nr_own; i++) {
			const struct stub_range *t = i < nr_taken ? &taken[i] : &own[i - nr_taken];

			if (at < t->end + distance && t->start < at + STUB_BYTES + distance &&
			    t->end < top) {
				at = ALIGN_UP(t->end + distance, (uint64_t)1 << 21);
				moved = true;
			} else if (at < t->end + distance &&
				   t->start < at + STUB_BYTES + distance) {
				return 0;
			}
		}
	}
	return at < top ? at : 0;
}

/* Our own mappings, which the builder will have as well. */
static int read_own(struct stub_range **ret, size_t *ret_n)
{
	cleanup_free char *text = NULL;
	cleanup_free struct stub_range *own = NULL;
	size_t n = 0, room = 0;
	int r = io_read_file_at(-1, "/proc/self/maps", MIB(16), &text, NULL);

	for (char *line = text; r == 0 && line && *line; line = strchr(line, '\n') + 1) {
		unsigned long long start, end;

		if (!strchr(line, '\n') || sscanf(line, "%llx-%llx", &start, &end) != 2)
			break;
		if (n == room) {
			room = room * 2 + 64;
			struct stub_range *more = reallocarray(own, room, sizeof(*own));
			if (!more)
				return -ENOMEM;
			own = more;
		}
		own[n++] = (struct stub_range){start, end};
	}
	if (r < 0)
		return r;
	*ret = own;
	*ret_n = n;
	own = NULL;
	return 0;
}

int stub_new(struct stub **ret, const struct stub_range *taken, size_t nr_taken,
	     struct usnap_err *err)
{
	cleanup_free struct stub_range *own = NULL;
	size_t nr_own = 0;
	struct stub *s = calloc(1, sizeof(*s));

	if (!s)
		return usnap_fail_errno(err, -ENOMEM, "cannot make a stub");
	s->pidfd = -1;
	s->view = MAP_FAILED;
	s->memfd = memfd_create("uffd-snap stub", MFD_CLOEXEC);
	int r = s->memfd < 0 || ftruncate(s->memfd, STUB_BYTES) < 0 ? -errno : 0;
	if (r == 0) {
		s->view = mmap(NULL, STUB_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, s->memfd, 0);
		r = s->view == MAP_FAILED ? -errno : read_own(&own, &nr_own);
	}
	if (r == 0) {
		s->addr = choose_address(taken, nr_taken, own, nr_own);
		r = s->addr ? 0 : -ENOMEM;
	}
	if (r < 0) {
		stub_free(s);
		return usnap_fail_errno(err, r, "cannot make a stub");
	}
	/* cppcheck-suppress comparePointers */
	memcpy(s->view, usnap_stub_code, (size_t)(usnap_stub_end - usnap_stub_code));
	s->nr_lanes = 1;
	*ret = s;
	return 0;
}

void stub_free(struct stub *s)
{
	if (!s)
		return;
	if (s->view != MAP_FAILED)
		munmap(s->view, STUB_BYTES);
	if (s->memfd >= 0)
		close(s->memfd);
	free(s);
}

uint64_t stub_addr(const struct stub *s)
{
	return s->addr;
}

size_t stub_len(const struct stub *s)
{
	return STUB_BYTES;
}

uint64_t stub_syscall_insn(const struct stub *s)
{
	/* cppcheck-suppress comparePointers */
	return s->addr + (uint64_t)(usnap_stub_syscall - usnap_stub_code);
}

/* ---- in the builder --------------------------------------------------------------------- */

int stub_map_here(struct stub *s)
{
	void *at = (void *)(uintptr_t)s->addr;

	if (mmap(at, STUB_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, s->memfd,
		 0) != at)
		return errno ? -errno : -EEXIST;
	if (mprotect(at, CODE_BYTES, PROT_READ | PROT_EXEC) < 0)
		return -errno;
	return 0;
}

_Noreturn void stub_enter(struct stub *s)
{
	uint64_t lane = s->addr + CODE_BYTES;

	/* Says that it is there, as after a first batch. */
	__asm__ volatile("movq %0, %%rbx\n"
			 "movq $0, 16(%%rbx)\n"
			 "movl $1, (%%rbx)\n"
			 "jmp *%1\n"
			 :
			 : "r"(lane), "r"(s->addr)
			 : "rbx", "memory");
	__builtin_unreachable();
}

/* ---- batches ---------------------------------------------------------------------------- */

static struct stub_lane *lanes(const struct stub *s)
{
	return (struct stub_lane *)(void *)(s->view + CODE_BYTES);
}

void stub_reset(struct stub *s)
{
	s->used = 0;
}

void stub_begin(struct stub_batch *b, struct stub *s, size_t max_calls)
{
	*b = (struct stub_batch){.stub = s, .room = max_calls};
	b->calls_addr = stub_data(b, NULL, max_calls * sizeof(*b->calls));
	b->calls = b->calls_addr ? stub_local(s, b->calls_addr) : NULL;
	if (!b->calls)
		b->room = 0;
}

uint64_t stub_data(struct stub_batch *b, const void *init, size_t len)
{
	struct stub *s = b->stub;
	size_t room = BATCHES_BYTES - s->used;

	if (len > room || ALIGN_UP(len, (size_t)16) > room) {
		b->full = true;
		return 0;
	}
	unsigned char *p = s->view + CODE_BYTES + LANES_BYTES + s->used;
	s->used += ALIGN_UP(len, (size_t)16);
	if (init)
		memcpy(p, init, len);
	else
		memset(p, 0, len);
	return s->addr + (uint64_t)(p - s->view);
}

void *stub_local(const struct stub *s, uint64_t addr)
{
	return s->view + (addr - s->addr);
}

static int add(struct stub_batch *b, const struct stub_call *call)
{
	if (b->nr_calls == b->room) {
		b->full = true;
		return -ENOSPC;
	}
	b->calls[b->nr_calls] = *call;
	b->calls[b->nr_calls].ret = STUB_NOT_MADE;
	return (int)b->nr_calls++;
}

int stub_add(struct stub_batch *b, long nr, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3,
	     uint64_t a4, uint64_t a5)
{
	return add(b, &(struct stub_call){.nr = nr, .args = {a0, a1, a2, a3, a4, a5}});
}

int stub_try(struct stub_batch *b, long nr, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3,
	     uint64_t a4, uint64_t a5)
{
	return add(b, &(struct stub_call){
			      .nr = nr, .args = {a0, a1, a2, a3, a4, a5}, .flags = STUB_MAY_FAIL});
}

struct stub_lane *stub_lane_new(struct stub *s)
{
	if (s->nr_lanes == LANES_BYTES / sizeof(struct stub_lane))
		return NULL;
	struct stub_lane *l = lanes(s) + s->nr_lanes++;
	/* Without a call: the thread says that it is there. */
	*l = (struct stub_lane){.state = STUB_WORK};
	return l;
}

struct stub_lane *stub_main_lane(struct stub *s)
{
	return lanes(s);
}

int stub_add_clone(struct stub_batch *b, uint64_t args, size_t args_len,
		   const struct stub_lane *lane)
{
	uint64_t addr = b->stub->addr + (uint64_t)((const unsigned char *)lane - b->stub->view);

	return stub_add(b, SYS_clone3, args, args_len, 0, 0, 0, addr);
}

/* ---- running ---------------------------------------------------------------------------- */

static uint32_t state_of(const struct stub_lane *l)
{
	return __atomic_load_n(&l->state, __ATOMIC_ACQUIRE);
}

/* Waits while the lane is in state; -ESRCH when the process has ended. */
static int wait_while(struct stub *s, struct stub_lane *l, uint32_t state)
{
	/* Woken by the process itself; the time limit is for its death. */
	struct timespec limit = {.tv_nsec = 20 * 1000 * 1000};

	for (uint32_t now = state_of(l); now == state; now = state_of(l)) {
		if (syscall(SYS_futex, &l->state, FUTEX_WAIT, now, &limit, NULL, 0) == 0 ||
		    (errno != ETIMEDOUT && errno != EINTR))
			continue;
		if (s->cancel && *s->cancel)
			return -ESRCH;
		struct pollfd p = {.fd = s->pidfd, .events = POLLIN};
		if (poll(&p, 1, 0) == 1 && state_of(l) == state)
			return -ESRCH;
	}
	return 0;
}

int stub_wait_ready(struct stub *s, int pidfd, const volatile sig_atomic_t *cancel)
{
	struct stub_lane *l = lanes(s);

	s->pidfd = pidfd;
	s->cancel = cancel;
	int r = wait_while(s, l, STUB_IDLE);
	return r < 0 ? r : wait_while(s, l, STUB_WORK);
}

static void start(struct stub_batch *b, struct stub_lane *l)
{
	l->calls = b->calls_addr;
	l->nr_calls = b->nr_calls;
	l->nr_made = 0;
	__atomic_store_n(&l->state, STUB_WORK, __ATOMIC_RELEASE);
	syscall(SYS_futex, &l->state, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static int result(const struct stub_batch *b, size_t *ret_failed)
{
	for (size_t i = 0; i < b->nr_calls; i++) {
		const struct stub_call *c = &b->calls[i];

		if (c->ret >= 0 || c->ret < -4095)
			if (c->ret != STUB_NOT_MADE)
				continue;
		if (c->flags & STUB_MAY_FAIL)
			continue;
		if (ret_failed)
			*ret_failed = i;
		return c->ret == STUB_NOT_MADE ? -ECANCELED : (int)c->ret;
	}
	return 0;
}

/* A new thread looks into the batch that made it for its lane: until it has it, the batch stays. */
static int wait_for_new(struct stub_batch *b)
{
	for (size_t i = 0; i < b->nr_calls; i++) {
		const struct stub_call *c = &b->calls[i];

		if (c->nr == SYS_clone3 && c->ret > 0 &&
		    wait_while(b->stub, stub_local(b->stub, c->args[5]), STUB_WORK) < 0)
			return -ESRCH;
	}
	return 0;
}

int stub_run_all(struct stub_batch *const *b, struct stub_lane *const *l, size_t n,
		 size_t *ret_batch, size_t *ret_failed)
{
	int r = 0;

	for (size_t i = 0; i < n; i++)
		if (b[i]->full)
			return -ENOSPC;
	for (size_t i = 0; i < n; i++)
		start(b[i], l[i]);
	for (size_t i = 0; i < n; i++)
		if (wait_while(b[i]->stub, l[i], STUB_WORK) < 0 || wait_for_new(b[i]) < 0)
			return -ESRCH;
	for (size_t i = 0; i < n && r == 0; i++) {
		r = result(b[i], ret_failed);
		if (r < 0 && ret_batch)
			*ret_batch = i;
	}
	return r;
}

int stub_run(struct stub_batch *b, struct stub_lane *lane, size_t *ret_failed)
{
	return stub_run_all(&b, &lane, 1, NULL, ret_failed);
}

int64_t stub_call(struct stub *s, long nr, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3,
		  uint64_t a4, uint64_t a5)
{
	struct stub_batch b;
	size_t used = s->used;

	stub_begin(&b, s, 1);
	stub_try(&b, nr, a0, a1, a2, a3, a4, a5);
	int r = stub_run(&b, lanes(s), NULL);
	int64_t ret = r < 0 ? r : b.calls[0].ret;
	s->used = used;
	return ret;
}

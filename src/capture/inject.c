#include "capture/inject.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "capture/session.h"
#include "common/util.h"
#include "process/agent_find.h"
#include "process/filters.h"

enum {
	INSTRUCTION = 5,
	BREAKPOINT = 0xcc,
	STOP_NS = 20000000,
	STOP_DOUBLED = 3, /* where threads have to wait for a CPU to stop */
	REMOVE_TRIES = 60, /* each of which is a stop, the next after twice the time */
	CLEAN_TRIES = 4, /* for what another one has left, and could not take out either */
	REMOVE_WAIT_US = 1000,
	REMOVE_DOUBLED = 6,
	STACK_LOOK = 65536, /* bytes of each stack in which a return address would lie */
	CODE_PAGES = 2,
	ENTER_BYTES = 15, /* of an entry, until a thread is counted */
	CONTROL_PAGES = (sizeof(struct agent_control) + AGENT_PAGE - 1) / AGENT_PAGE,
};
/* Of libc's code at most. */
#define TEXT_MAX ((uint64_t)8 << 20)
/* How far a jump reaches, with room to spare. */
#define REACH ((uint64_t)1 << 30)

/* One page of nothing around each. */
#define CODE_AT PAGE_BYTES
#define CONTROL_AT (CODE_AT + (CODE_PAGES + 1) * PAGE_BYTES)
#define BEACON_AT (CONTROL_AT + (CONTROL_PAGES + 1) * PAGE_BYTES)
#define ALL_BYTES (BEACON_AT + (AGENT_BEACON_PAGES + 1) * PAGE_BYTES)

/* The code, in this program's own memory, where it is never run. */
extern const unsigned char __start_gateblob[], __stop_gateblob[];
extern const unsigned char blob_gate_control[], blob_gate_back[], blob_gate_critical_start[],
	blob_gate_critical_end[];
extern const int32_t blob_gate_offsets[], blob_gate_outs[];

static size_t offset_of(const void *p)
{
	return (uintptr_t)p - (uintptr_t)__start_gateblob;
}

static const struct {
	unsigned char code[16];
	unsigned char len;
	unsigned char align; /* of the first byte */
} shapes[GATE_SITES] = {
	/* mov $nr, %eax; syscall; cmp $-4095, %rax; jae */
	[GATE_MUNMAP] = {{0xb8, 0x0b, 0, 0, 0, 0x0f, 0x05, 0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff,
			  0x73},
			 14,
			 16},
	[GATE_MADVISE] = {{0xb8, 0x1c, 0, 0, 0, 0x0f, 0x05, 0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff,
			   0x73},
			  14,
			  16},
	/* cmp $-4096, %rax; ja */
	[GATE_MREMAP] = {{0xb8, 0x19, 0, 0, 0, 0x0f, 0x05, 0x48, 0x3d, 0x00, 0xf0, 0xff, 0xff,
			  0x77},
			 14,
			 1},
	[GATE_MMAP] = {{0xb8, 0x09, 0, 0, 0, 0x0f, 0x05, 0x48, 0x3d, 0x00, 0xf0, 0xff, 0xff, 0x77},
		       14,
		       1},
	/* mov __curbrk@GOT, %rdx */
	[GATE_BRK] = {{0xb8, 0x0c, 0, 0, 0, 0x0f, 0x05, 0x48, 0x8b, 0x15}, 10, 16},
};

bool inject_is_there(const struct capture *c)
{
	return c->inject.len;
}

uint64_t inject_beacon(const struct capture *c)
{
	return c->inject.base + BEACON_AT;
}

uint64_t inject_control(const struct capture *c)
{
	return c->inject.base + CONTROL_AT;
}

static bool put(const struct capture *c, uint64_t addr, const void *data, size_t len)
{
	return pwrite(c->inject.fd, data, len, (off_t)addr) == (ssize_t)len;
}

static bool get(const struct capture *c, uint64_t addr, void *data, size_t len)
{
	return pread(c->inject.fd, data, len, (off_t)addr) == (ssize_t)len;
}

/* ---- where ------------------------------------------------------------------------------------- */

static const struct vma *find_libc(const struct maps *maps)
{
	for (size_t i = 0; i < maps->n; i++) {
		const struct vma *v = &maps->v[i];
		const char *name = strrchr(v->path, '/');

		if (v->kind == VMA_FILE && v->prot == (PROT_READ | PROT_EXEC) && name &&
		    (strcmp(name, "/libc.so.6") == 0 || strncmp(name, "/libc-2.", 8) == 0) &&
		    v->end - v->start <= TEXT_MAX)
			return v;
	}
	return NULL;
}

/* What of libc's code is there; zeros for the rest. What is not there is not run either, and may be
 * anybody's to supply. */
static bool read_text(const struct capture *c, const struct vma *libc, unsigned char *text)
{
	const uint64_t there = UINT64_C(1) << 63;
	const size_t n = (libc->end - libc->start) / PAGE_BYTES;
	cleanup_free uint64_t *pages = calloc(n, sizeof(*pages));

	if (!pages || pread(c->target->pagemap_fd, pages, n * sizeof(*pages),
			    (off_t)(libc->start / PAGE_BYTES * sizeof(*pages))) !=
			      (ssize_t)(n * sizeof(*pages)))
		return false;
	for (size_t i = 0; i < n; i++)
		if (pages[i] & there &&
		    !get(c, libc->start + i * PAGE_BYTES, text + i * PAGE_BYTES, PAGE_BYTES))
			return false;
	return true;
}

/* Each the only one of its kind, so that nothing else can be meant. Returns how many. */
static unsigned find_sites(const struct vma *libc, const unsigned char *text,
			   struct inject_site sites[GATE_SITES])
{
	const size_t len = libc->end - libc->start;
	unsigned n = 0;

	for (unsigned i = 0; i < GATE_SITES; i++) {
		const unsigned char *found = NULL, *p = text;
		bool several = false;

		sites[i] = (struct inject_site){0};
		if (!shapes[i].len)
			continue;
		while ((p = memmem(p, len - (size_t)(p - text), shapes[i].code, shapes[i].len))) {
			several |= found != NULL;
			found = p++;
		}
		if (!found || several || (size_t)(found - text) % shapes[i].align)
			continue;
		/* Written at once: a write that crosses pages could end between them. */
		if ((libc->start + (uint64_t)(found - text)) % PAGE_BYTES >
		    PAGE_BYTES - INSTRUCTION)
			continue;
		sites[i].addr = libc->start + (uint64_t)(found - text);
		memcpy(sites[i].old, found, INSTRUCTION);
		n++;
	}
	return n;
}

/* A gap of len bytes from which libc can be reached and the other way round; 0: none. */
static uint64_t find_gap(const struct maps *maps, const struct vma *libc, uint64_t len)
{
	for (size_t i = 1; i < maps->n; i++) {
		uint64_t from = maps->v[i - 1].end, to = maps->v[i].start;

		/* Not next to anything: a stack may grow, and the first thread's grows far. */
		if (strncmp(maps->v[i].path, "[stack", 6) == 0 || to < from + len + MIB(4) ||
		    to + REACH < libc->start || to > libc->end + REACH)
			continue;
		return ALIGN_DOWN(to - len - MIB(2), PAGE_BYTES);
	}
	return 0;
}

/* ---- putting it there ------------------------------------------------------------------------------ */

static int build(struct remote_helper *h, void *arg, struct usnap_err *err)
{
	struct capture *c = arg;
	const uint64_t at = c->inject.base, code_len = CODE_PAGES * PAGE_BYTES;
	const uint64_t beacon_len = AGENT_BEACON_PAGES * PAGE_BYTES;
	const uint64_t code = at + CODE_AT, control = at + CONTROL_AT, beacon = at + BEACON_AT;
	unsigned char text[CODE_PAGES * PAGE_BYTES] = {0};
	const size_t len = offset_of(__stop_gateblob);
	uint64_t back[GATE_SITES] = {0};

	if (len > sizeof(text) ||
	    remote_helper_call(h, SYS_mmap, at, ALL_BYTES, PROT_NONE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE,
			       (uint64_t)-1) != (int64_t)at)
		return -ENOMEM;
	c->inject.len = ALL_BYTES;
	memcpy(text, __start_gateblob, len);
	memcpy(text + offset_of(blob_gate_control), &control, sizeof(control));
	for (unsigned i = 0; i < GATE_SITES; i++)
		back[i] = c->inject.sites[i].addr + INSTRUCTION + 2;
	memcpy(text + offset_of(blob_gate_back), back, sizeof(back));
	const struct agent_control block = {
		.magic = AGENT_MAGIC,
		.version = AGENT_VERSION,
		.size = sizeof(block),
		.flags = AGENT_INJECTED | AGENT_PATCHED,
		.pid = c->target->pid,
		.beacon = beacon,
		.critical_start = code + offset_of(blob_gate_critical_start),
		.critical_end = code + offset_of(blob_gate_critical_end),
	};
	const struct agent_beacon head = {.magic = AGENT_MAGIC, .self = beacon, .control = control};
	const uint64_t rw = PROT_READ | PROT_WRITE;

	/* The beacon before the code: what a death at any point leaves is known for what it is. */
	if (remote_helper_call(h, SYS_mprotect, control, CONTROL_PAGES * PAGE_BYTES, rw, 0, 0) ||
	    !put(c, control, &block, sizeof(block)) ||
	    remote_helper_call(h, SYS_mprotect, beacon, beacon_len, rw, 0, 0) ||
	    !put(c, beacon, &head, sizeof(head)) ||
	    remote_helper_call(h, SYS_mprotect, beacon, beacon_len, PROT_READ, 0, 0) ||
	    remote_helper_call(h, SYS_mprotect, code, code_len, rw, 0, 0) ||
	    !put(c, code, text, sizeof(text)) ||
	    remote_helper_call(h, SYS_mprotect, code, code_len, PROT_READ | PROT_EXEC, 0, 0)) {
		remote_helper_call(h, SYS_munmap, at, ALL_BYTES, 0, 0, 0);
		c->inject.len = 0;
		return -EPERM;
	}
	return 0;
}

void inject_prepare(struct capture *c)
{
	struct inject *in = &c->inject;
	struct maps maps = {0};
	struct filters_seen filters;

	if (in->tried || c->uffd < 0 || c->asks.control)
		return;
	in->tried = true;
	/* The gate makes calls that the program may never have made: a filter could end it for them. */
	if (filters_look(c->target, &filters) < 0 || filters.any ||
	    maps_read(c->target->procfd, &maps) < 0)
		return;
	in->fd = openat(c->target->procfd, "mem", O_RDWR | O_CLOEXEC);
	const struct vma *libc = find_libc(&maps);
	cleanup_free unsigned char *text = libc ? calloc(1, libc->end - libc->start) : NULL;
	if (in->fd >= 0 && text && read_text(c, libc, text) && find_sites(libc, text, in->sites) &&
	    (in->base = find_gap(&maps, libc, ALL_BYTES))) {
		struct wait_note wait;
		struct usnap_err why = {0};
		int r = uffd_with_helper(c->target, &maps, &c->gadgets, &wait, build, c, &why);

		/* Its doorbells are all that is registered of it. */
		if (in->len && (r < 0 || uffd_register(c->uffd, inject_beacon(c) + PAGE_BYTES,
						       AGENT_SLOTS * PAGE_BYTES,
						       UFFDIO_REGISTER_MODE_MISSING) < 0))
			inject_remove(c);
	}
	c->stats.injected = in->len > 0;
	maps_free(&maps);
}

/* ---- hiding it -------------------------------------------------------------------------------------- */

void inject_hide(const struct capture *c, struct maps *maps)
{
	const uint64_t start = c->inject.base, end = start + c->inject.len;
	size_t n = 0;

	if (!c->inject.len)
		return;
	for (size_t i = 0; i < maps->n; i++) {
		struct vma *v = &maps->v[i];

		if (v->start >= start && v->end <= end)
			continue;
		/* Nothing else is next to it, or has become so since. */
		if (v->start < start && v->end > start)
			v->end = start;
		else if (v->start < end && v->end > end)
			v->start = end;
		maps->v[n++] = *v;
	}
	maps->n = n;
}

/* ---- leading there, and back --------------------------------------------------------------------- */

/* Where the copy of an instruction of the gate is. */
static uint64_t code_at(const struct capture *c, int32_t offset)
{
	return c->inject.base + CODE_AT + offset_of(blob_gate_offsets) + (uint64_t)(int64_t)offset;
}

static void make_jump(const struct capture *c, unsigned site, unsigned char jump[INSTRUCTION])
{
	int32_t distance = (int32_t)(code_at(c, blob_gate_offsets[site]) -
				     (c->inject.sites[site].addr + INSTRUCTION));

	jump[0] = 0xe9;
	memcpy(jump + 1, &distance, sizeof(distance));
}

/* A breakpoint on top of our jump is a uprobe's, as it is we who trace: it puts its own first byte
 * back one day, and the rest must fit it. */
static bool under_probe(const unsigned char *now, const unsigned char *jump)
{
	return now[0] == BREAKPOINT && memcmp(now + 1, jump + 1, INSTRUCTION - 1) == 0;
}

/* False when something may lead there still. What somebody else has put there since stays. */
static bool write_back(struct capture *c)
{
	bool back = true;

	for (unsigned i = 0; i < GATE_SITES; i++) {
		struct inject_site *s = &c->inject.sites[i];
		unsigned char now[INSTRUCTION], jump[INSTRUCTION];

		if (!s->addr || !s->leads)
			continue;
		make_jump(c, i, jump);
		if (get(c, s->addr, now, sizeof(now)) && under_probe(now, jump) &&
		    put(c, s->addr + 1, s->old + 1, INSTRUCTION - 1)) {
			s->leads = false;
			continue;
		}
		if (!get(c, s->addr, now, sizeof(now)) || under_probe(now, jump) ||
		    (memcmp(now, jump, sizeof(now)) == 0 &&
		     (!put(c, s->addr, s->old, INSTRUCTION) || !get(c, s->addr, now, sizeof(now)) ||
		      memcmp(now, s->old, sizeof(now)) != 0)))
			back = false;
		else
			s->leads = false;
	}
	c->inject.leads = !back;
	return back;
}

bool inject_has_written(const struct capture *c, uint64_t page)
{
	for (unsigned i = 0; i < GATE_SITES; i++) {
		const struct inject_site *s = &c->inject.sites[i];

		if (s->leads && s->addr < page + PAGE_BYTES && s->addr + INSTRUCTION > page)
			return true;
	}
	return false;
}

/* Written to already, and not in the image (regions.c): that must not be hidden by ours. */
static bool is_written(struct capture *c, uint64_t addr)
{
	const struct vma *v = maps_find(&c->maps, addr);

	return v && region_unseen(c, v->start, v->end) &&
	       region_has_own(c, ALIGN_DOWN(addr, PAGE_BYTES),
			      ALIGN_UP(addr + INSTRUCTION, PAGE_BYTES)) != 0;
}

void inject_lead(struct capture *c)
{
	struct inject *in = &c->inject;

	if (!in->len)
		return;
	in->leads = true;
	for (unsigned i = 0; i < GATE_SITES; i++) {
		struct inject_site *s = &in->sites[i];
		unsigned char now[INSTRUCTION], jump[INSTRUCTION];

		/* A debugger may have been there. */
		if (!s->addr || !get(c, s->addr, now, sizeof(now)) ||
		    memcmp(now, s->old, sizeof(now)) != 0 || is_written(c, s->addr))
			continue;
		make_jump(c, i, jump);
		s->leads = true;
		put(c, s->addr, jump, sizeof(jump));
		/* Who is about to make the call is led there, too. */
		for (size_t k = 0; k < c->tracees.n; k++) {
			struct tracee *t = &c->tracees.t[k];

			if (t->regs.rip == s->addr + INSTRUCTION && (int64_t)t->regs.orig_rax < 0)
				ptrace(PTRACE_POKEUSER, t->tid,
				       offsetof(struct user_regs_struct, rip), s->addr);
		}
	}
}

/* Those that run before a thread is counted as being inside, and after. */
static bool uncounted(const struct capture *c, uint64_t rip)
{
	for (unsigned i = 0; i < GATE_SITES; i++) {
		if (!shapes[i].len)
			continue;
		uint64_t entry = code_at(c, blob_gate_offsets[i]);
		if ((rip >= entry && rip < entry + ENTER_BYTES) ||
		    rip == code_at(c, blob_gate_outs[i]))
			return true;
	}
	return false;
}

/* Whether a thread is in there, or will come back to it: a signal may have interrupted one where it
 * is not counted, and has put its registers on a stack. */
static bool occupied(struct capture *c)
{
	const uint64_t start = c->inject.base, end = start + c->inject.len;
	uint64_t inside = 0;
	cleanup_free uint64_t *stack = malloc(STACK_LOOK);

	if (!stack || !get(c, inject_control(c) + GATE_INSIDE, &inside, sizeof(inside)) || inside)
		return true;
	for (size_t i = 0; i < c->tracees.n; i++) {
		const struct user_regs_struct *r = &c->tracees.t[i].regs;
		uint64_t from = ALIGN_DOWN(r->rsp, sizeof(uint64_t));

		if (r->rip >= start && r->rip < end)
			return true;
		ssize_t n = pread(c->inject.fd, stack, STACK_LOOK, (off_t)from);
		for (ssize_t k = 0; k < n / (ssize_t)sizeof(uint64_t); k++)
			if (stack[k] >= start && stack[k] < end && uncounted(c, stack[k]))
				return true;
	}
	return false;
}

static int unmap(struct remote_helper *h, void *arg, struct usnap_err *err)
{
	struct capture *c = arg;

	if (remote_helper_call(h, SYS_munmap, c->inject.base, c->inject.len, 0, 0, 0) == 0)
		c->inject.len = 0;
	return 0;
}

/* Nobody is led there any more, and nobody is in there. */
static int make_free(struct capture *c)
{
	return (c->inject.leads && !write_back(c)) || occupied(c) ? -EAGAIN : 0;
}

/* All stand still for a look alone: calls take long on a machine that is busy. */
static int remove_once(struct capture *c, uint64_t stop_ns)
{
	struct wait_note wait;
	struct usnap_err why = {0};
	struct maps maps = {0};
	int r = capture_all_stopped(c, stop_ns, make_free);

	if (r < 0)
		return r;
	if (maps_read(c->target->procfd, &maps) < 0)
		return -EAGAIN;
	uffd_with_helper(c->target, &maps, &c->gadgets, &wait, unmap, c, &why);
	maps_free(&maps);
	return c->inject.len ? -EAGAIN : 0;
}

static int take_out(struct capture *c, unsigned tries)
{
	uint64_t stop_ns = STOP_NS;
	int r = c->inject.len ? -EAGAIN : 0;

	for (unsigned i = 0; r == -EAGAIN && i < tries; i++) {
		if (i > 0)
			usleep(REMOVE_WAIT_US << MIN(i, (unsigned)REMOVE_DOUBLED));
		r = remove_once(c, stop_ns);
		if (r == -EAGAIN && c->straggler == 'R')
			stop_ns = MIN(stop_ns * 2, (uint64_t)STOP_NS << STOP_DOUBLED);
	}
	if (r == 0 || r == -ESRCH) {
		if (c->inject.fd >= 0)
			close(c->inject.fd);
		c->inject.fd = -1;
		c->inject.len = 0;
		return 0;
	}
	return -EBUSY;
}

int inject_remove(struct capture *c)
{
	int r = take_out(c, REMOVE_TRIES);

	c->stats.inject_left = r < 0;
	return r;
}

/* ---- what a dead snapshotter has left ----------------------------------------------------------- */

/* The same code as ours, but for what it is told when it is put there. */
static bool same_code(const unsigned char *there)
{
	const size_t len = offset_of(__stop_gateblob);
	const size_t from = offset_of(blob_gate_control);
	const size_t to = offset_of(blob_gate_back) + GATE_SITES * sizeof(uint64_t);

	return memcmp(there, __start_gateblob, from) == 0 &&
	       memcmp(there + to, __start_gateblob + to, len - to) == 0;
}

/* What leads from libc to the gate at in->base. */
static void find_jumps(struct capture *c, const unsigned char *there)
{
	uint64_t back[GATE_SITES];

	memcpy(back, there + offset_of(blob_gate_back), sizeof(back));
	for (unsigned i = 0; i < GATE_SITES; i++) {
		struct inject_site *s = &c->inject.sites[i];
		const uint64_t addr = back[i] - INSTRUCTION - 2;
		unsigned char now[INSTRUCTION];
		int32_t distance;

		*s = (struct inject_site){0};
		if (!shapes[i].len || !get(c, addr, now, sizeof(now)) ||
		    (now[0] != 0xe9 && now[0] != BREAKPOINT))
			continue;
		memcpy(&distance, now + 1, sizeof(distance));
		if (addr + INSTRUCTION + (uint64_t)(int64_t)distance !=
		    code_at(c, blob_gate_offsets[i]))
			continue;
		s->addr = addr;
		s->leads = true;
		memcpy(s->old, shapes[i].code, INSTRUCTION);
	}
}

static bool is_zero(const unsigned char *p, size_t len)
{
	return !*p && memcmp(p, p + 1, len - 1) == 0;
}

/* Takes one out. What is not as we know it stays, and is the target's own, as the image has it; so
 * does what a thread does not come out of. Then there is to be no second one. */
static void clean(struct capture *c, const struct agent_found *found)
{
	struct inject *in = &c->inject;
	unsigned char there[CODE_PAGES * PAGE_BYTES];

	in->base = found->control - CONTROL_AT;
	if (found->control <= CONTROL_AT || found->beacon != in->base + BEACON_AT)
		return;
	in->fd = openat(c->target->procfd, "mem", O_RDWR | O_CLOEXEC);
	if (in->fd < 0)
		return;
	memset(in->sites, 0, sizeof(in->sites));
	/* Without code nothing has led there yet. */
	if (get(c, in->base + CODE_AT, there, sizeof(there)) &&
	    (same_code(there) || is_zero(there, sizeof(there)))) {
		if (same_code(there))
			find_jumps(c, there);
		in->len = ALL_BYTES;
		in->leads = true;
		in->tried |= take_out(c, CLEAN_TRIES) < 0;
	}
	in->len = 0;
	in->leads = false;
	if (in->fd >= 0)
		close(in->fd);
	in->fd = -1;
}

void inject_clean(struct capture *c)
{
	struct agent_found found;

	if (c->inject.len || !c->registered)
		return;
	for (size_t i = 0; i < c->maps.n; i++)
		if (agent_beacon_fits(&c->maps.v[i]) &&
		    agent_look(c->target->pid, c->maps.v[i].start, &found) &&
		    found.block.flags & AGENT_INJECTED)
			clean(c, &found);
}

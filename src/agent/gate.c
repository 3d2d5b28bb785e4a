/* What gatecall.S cannot decide by itself: which memory a call discards, and to ask for it. See gate.h. */
#include "agent/gate.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

#include "agent/agent.h"
#include "agent/raw.h"

#ifndef MADV_DONTNEED_LOCKED /* Linux 5.18 */
#define MADV_DONTNEED_LOCKED 24
#endif
#ifndef MADV_GUARD_INSTALL /* Linux 6.13 */
#define MADV_GUARD_INSTALL 102
#endif
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

enum {
	RINGS = 4, /* without an answer: nobody listens */
	SLOT_ROUNDS = 1000, /* of SLOT_WAIT_NS: then a slot is taken by force */
	SLOT_WAIT_NS = 50000,
	REMAP_TRIES = 1000, /* of REMAP_WAIT_NS */
	REMAP_WAIT_NS = 1000000,
	MOVE_TRIES = 2000, /* of MOVE_WAIT_NS */
	MOVE_WAIT_NS = 50000,
};

_Static_assert(offsetof(struct agent_control, active) == GATE_ACTIVE, "as gatecall.S has it");
_Static_assert(offsetof(struct agent_control, inside) == GATE_INSIDE, "as gatecall.S has it");

static uint64_t load(const uint64_t *p)
{
	return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}

static void store(uint64_t *p, uint64_t v)
{
	__atomic_store_n(p, v, __ATOMIC_SEQ_CST);
}

static bool swap32(uint32_t *p, uint32_t from, uint32_t to)
{
	return __atomic_compare_exchange_n(p, &from, to, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static bool swap64(uint64_t *p, uint64_t from, uint64_t to)
{
	return __atomic_compare_exchange_n(p, &from, to, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static void pause_for(int64_t ns)
{
	const struct {
		int64_t seconds, ns;
	} wait = {0, ns};

	/* The one that libc's sleeping calls make: a filter that knows the program allows it. */
	raw_call(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, (uintptr_t)&wait, 0, 0, 0);
}

/* ---- what a call discards ------------------------------------------------------------------------ */

struct wish {
	enum agent_ask what;
	unsigned nr_ranges;
	struct agent_range ranges[2];
};

/* Whole pages; nothing when it is not a possible range: the kernel will say so. */
static void wish_range(struct wish *w, uint64_t start, uint64_t len)
{
	uint64_t end = start + len;

	start &= ~(uint64_t)(AGENT_PAGE - 1);
	if (!len || end < start || end > UINT64_MAX - AGENT_PAGE)
		return;
	end = (end + AGENT_PAGE - 1) & ~(uint64_t)(AGENT_PAGE - 1);
	w->ranges[w->nr_ranges++] = (struct agent_range){start, end};
}

static bool advice_discards(uint64_t advice)
{
	return advice == MADV_DONTNEED || advice == MADV_FREE || advice == MADV_REMOVE ||
	       advice == MADV_DONTNEED_LOCKED || advice == MADV_GUARD_INSTALL;
}

static void wish_mremap(struct wish *w, const uint64_t *args)
{
	uint64_t old = args[0], old_len = args[1], len = args[2], flags = args[3];

	/* What is moved is followed. */
	if (len < old_len)
		wish_range(w, old + len, old_len - len);
	if (flags & MREMAP_FIXED)
		wish_range(w, args[4], len);
}

/* False: nothing that anybody need know of. */
static bool find_wish(const struct agent_control *c, const struct gate_call *call, struct wish *w)
{
	const uint64_t *args = call->args;

	w->what = AGENT_ASK_RANGE;
	w->nr_ranges = 0;
	switch (call->nr) {
	case SYS_munmap:
		wish_range(w, args[0], args[1]);
		break;
	case SYS_madvise:
		if (advice_discards(args[2] & UINT32_MAX))
			wish_range(w, args[0], args[1]);
		break;
	case SYS_mremap:
		wish_mremap(w, args);
		break;
	case SYS_mmap:
		if (args[3] & MAP_FIXED && !(args[3] & MAP_FIXED_NOREPLACE))
			wish_range(w, args[0], args[1]);
		break;
	case SYS_brk: {
		uint64_t now = args[0] ? (uint64_t)raw_call(SYS_brk, 0, 0, 0, 0, 0, 0) : 0;

		if (args[0] < now)
			wish_range(w, args[0], now - args[0]);
		break;
	}
	case SYS_exit_group:
	case SYS_execve:
	case SYS_execveat:
		/* A child, be it one that has its parent's memory, ends without further ado. */
		if (c->flags & AGENT_ON_EXIT_WAIT &&
		    raw_call(SYS_getpid, 0, 0, 0, 0, 0, 0) == c->pid) {
			w->what = AGENT_ASK_ALL;
			w->ranges[w->nr_ranges++] = (struct agent_range){0, 0};
		}
		break;
	}
	return w->nr_ranges > 0;
}

/* ---- asking -------------------------------------------------------------------------------------- */

static uint64_t doorbell(const struct agent_control *c, const struct agent_slot *slot)
{
	return c->beacon + AGENT_PAGE * (1 + (uint64_t)(slot - c->slots));
}

/* Makes the pages absent again. */
static void give_back(uint64_t start, uint64_t len)
{
	/* Locked memory is refused (mlockall()). */
	if (raw_call(SYS_madvise, start, len, MADV_DONTNEED, 0, 0, 0) < 0)
		raw_call(SYS_madvise, start, len, MADV_DONTNEED_LOCKED, 0, 0, 0);
}

/* A page that has been answered stays until it is given back, which costs an event: that is done for
 * all at once, when all have been used. */
static void renew_doorbells(struct agent_control *c, uint64_t session)
{
	give_back(c->beacon + AGENT_PAGE, (uint64_t)AGENT_SLOTS * AGENT_PAGE);
	store(&c->epoch_session, session);
	__atomic_add_fetch(&c->epoch, 1, __ATOMIC_SEQ_CST);
}

/* NULL: active has changed. The owner's mark differs from those of all others that may be at work. */
static struct agent_slot *take_slot(struct agent_control *c, uint64_t session, uint32_t mark)
{
	if (load(&c->epoch_session) != session)
		renew_doorbells(c, session);
	for (unsigned round = 0; load(&c->active) == session; round++) {
		bool forced = round >= SLOT_ROUNDS;

		for (int fresh = 1; fresh >= 0; fresh--) {
			if (!fresh && round == 0)
				renew_doorbells(c, session);
			for (unsigned i = 0; i < AGENT_SLOTS; i++) {
				struct agent_slot *s = &c->slots[(i + (mark >> 8)) % AGENT_SLOTS];
				uint32_t owner = __atomic_load_n(&s->owner, __ATOMIC_SEQ_CST);

				if (fresh && load(&s->epoch) == load(&c->epoch))
					continue;
				if (owner && load(&s->session) == session && !forced)
					continue;
				if (swap32(&s->owner, owner, mark))
					return s;
			}
		}
		/* All are waiting. */
		pause_for(SLOT_WAIT_NS);
	}
	return NULL;
}

enum answer {
	SAVED,
	NOBODY, /* listens */
	CHANGED, /* active has changed, or somebody else used the slot: start over */
};

/* Whether the slot still says what we have written. */
static bool still_ours(const struct agent_slot *s, uint32_t mark, const struct agent_slot *asked)
{
	return __atomic_load_n(&s->owner, __ATOMIC_SEQ_CST) == mark &&
	       load(&s->request) == asked->request && load(&s->start) == asked->start &&
	       load(&s->end) == asked->end && load(&s->session) == asked->session &&
	       __atomic_load_n(&s->what, __ATOMIC_SEQ_CST) == asked->what;
}

static enum answer ring(struct agent_control *c, struct agent_slot *s, uint32_t mark,
			const struct agent_slot *asked)
{
	for (unsigned i = 0; i < RINGS; i++) {
		/* It was there already, answered for somebody else. */
		if (i > 0)
			give_back(doorbell(c, s), AGENT_PAGE);
		(void)*(const volatile char *)(uintptr_t)doorbell(c, s);
		bool ours = still_ours(s, mark, asked);
		if (ours && load(&s->ack) == asked->request)
			return SAVED;
		if (!ours || load(&c->active) != asked->session)
			return CHANGED;
	}
	return NOBODY;
}

static enum answer ask(struct agent_control *c, uint64_t session, enum agent_ask what,
		       const struct agent_range *range)
{
	/* The address of something on the own stack; a signal handler's differs from that of what it
	 * interrupted. */
	const uint32_t mark = (uint32_t)((uintptr_t)__builtin_frame_address(0) >> 4) | 1;
	struct agent_slot *s = take_slot(c, session, mark);

	if (!s)
		return CHANGED;
	const struct agent_slot asked = {
		.what = what,
		.start = range->start,
		.end = range->end,
		.session = session,
		.request = __atomic_add_fetch(&c->nr_requests, 1, __ATOMIC_SEQ_CST),
	};
	store(&s->epoch, load(&c->epoch));
	__atomic_store_n(&s->what, asked.what, __ATOMIC_SEQ_CST);
	store(&s->start, asked.start);
	store(&s->end, asked.end);
	store(&s->session, asked.session);
	store(&s->request, asked.request);
	enum answer answer = ring(c, s, mark, &asked);
	swap32(&s->owner, mark, 0);
	return answer;
}

uint64_t gate_hold(struct agent_control *c, const struct gate_call *call)
{
	struct wish w;
	uint64_t session;

	while ((session = load(&c->active))) {
		enum answer answer = SAVED;

		if (!c->beacon || !find_wish(c, call, &w))
			return session;
		for (unsigned i = 0; i < w.nr_ranges && answer == SAVED; i++)
			answer = ask(c, session, w.what, &w.ranges[i]);
		if (answer == SAVED)
			return session;
		if (answer == NOBODY)
			__atomic_compare_exchange_n(&c->active, &session, 0, false,
						    __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	}
	return 0;
}

/* ---- moving ------------------------------------------------------------------------------------- */

/*
 * Two moves at a time, the one to where the other came from, can be reported in the wrong order: so
 * there is one at a time while a snapshot is active. Nobody waits for long: the owner may be what
 * this signal handler has interrupted, or a thread of the parent, and this is a child's copy.
 */
static bool lock_moves(struct agent_control *c, uint64_t session)
{
	for (unsigned i = 0; i < MOVE_TRIES && load(&c->active) == session; i++) {
		uint64_t none = 0;

		if (__atomic_compare_exchange_n(&c->moving, &none, 1, false, __ATOMIC_SEQ_CST,
						__ATOMIC_SEQ_CST))
			return true;
		pause_for(MOVE_WAIT_NS);
	}
	/* Nobody will ever give it back, perhaps. */
	store(&c->moving, 0);
	return false;
}

static int64_t move(struct agent_control *c, const struct gate_call *call)
{
	uint64_t session = load(&c->active);
	bool locked = session && lock_moves(c, session);
	int64_t r = gate_make(call->nr, call->args[0], call->args[1], call->args[2], call->args[3],
			      call->args[4], call->args[5]);

	if (locked)
		store(&c->moving, 0);
	return r;
}

int64_t gate_mremap(struct agent_control *c, const struct gate_call *call)
{
	/* While memory is registered, and while it is given back, a mapping is in two parts, and
	 * the kernel takes only one at a time (mm/mremap.c). When the call answers that may be over:
	 * what was the case before it counts, too. */
	for (unsigned i = 0; i < REMAP_TRIES; i++) {
		bool at_work = load(&c->at_work);
		int64_t r = move(c, call);

		if (r != -EFAULT || (!at_work && !load(&c->at_work)))
			return r;
		swap64(&c->at_work, AGENT_AT_WORK, AGENT_MOVER_WAITS);
		pause_for(REMAP_WAIT_NS);
	}
	/* It is a mistake of the program's; and the snapshotter is dead if it has not heard of it. */
	swap64(&c->at_work, AGENT_MOVER_WAITS, 0);
	return -EFAULT;
}

#ifndef GATE_BLOB

uint64_t gate_back[GATE_SITES];

extern const char gate_critical_start[] __attribute__((visibility("hidden")));
extern const char gate_critical_end[] __attribute__((visibility("hidden")));

void gate_tell(struct agent_control *c)
{
	c->critical_start = (uintptr_t)gate_critical_start;
	c->critical_end = (uintptr_t)gate_critical_end;
}

/* Called from gatecall.S as well, where _exit(2) comes later. */
__attribute__((destructor)) void gate_exit(void)
{
	const struct gate_call call = {.nr = SYS_exit_group};

	gate_hold(&agent_control, &call);
}

#endif

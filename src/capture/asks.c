#include "capture/asks.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/random.h>
#include <unistd.h>

#include "capture/session.h"
#include "common/util.h"
#include "process/agent_find.h"

/* Copied before faults are looked at again. */
#define BITE_BYTES ((uint64_t)1 << 20)
/* Nothing is mapped above; with five levels of page tables. */
#define TOP (UINT64_C(1) << 56)
/* The gate has three instructions there. */
#define CRITICAL_BYTES 32

/*
 * Reads and writes of the target's block. It is not registered, as of the
 * latest mappings; should the target have put something else in its place,
 * they fail where nothing is.
 */
static bool get(struct capture *c, uint64_t addr, void *buf, size_t len)
{
	return pread(c->asks.fd, buf, len, (off_t)addr) == (ssize_t)len;
}

static bool put(struct capture *c, uint64_t addr, uint64_t value)
{
	return pwrite(c->asks.fd, &value, sizeof(value), (off_t)addr) == (ssize_t)sizeof(value);
}

#define FIELD(c, field) ((c)->asks.control + offsetof(struct agent_control, field))

/* ---- the tracer's ------------------------------------------------------------------------------- */

/* In initialised data, as the agent's is: a page of it that is written raises no fault. */
static bool lies_well(const struct capture *c, uint64_t control)
{
	const struct vma *v = maps_find(&c->maps, control);

	return v && (v->kind == VMA_FILE || v->kind == VMA_SHMEM_PRIVATE) && !v->shared &&
	       v->prot & PROT_WRITE && v->end - control >= sizeof(struct agent_control) &&
	       region_how(c, v) == HOW_FROZEN;
}

void asks_find(struct capture *c)
{
	struct agent_found found;

	asks_free(&c->asks);
	bool there = inject_is_there(c) ? agent_look(c->target->pid, inject_beacon(c), &found) == 1
					: agent_find(c->target->pid, &c->maps, &found) == 1 &&
						  lies_well(c, found.control);
	if (there) {
		c->asks.fd = openat(c->target->procfd, "mem", O_RDWR | O_CLOEXEC);
		there = c->asks.fd >= 0;
	}
	pthread_mutex_lock(&c->fault_lock);
	/* Whoever waits still rings again, where the beacon is now. */
	if (c->asks.nr_rung)
		uffd_wake(c->uffd, c->asks.beacon, AGENT_BEACON_PAGES * PAGE_BYTES);
	memset(c->asks.slots, 0, sizeof(c->asks.slots));
	c->asks.nr_rung = 0;
	c->asks.beacon = there ? found.beacon : 0;
	c->asks.control = there ? found.control : 0;
	pthread_mutex_unlock(&c->fault_lock);
	/* A snapshotter that was killed has left it so. Nobody else can be at work: the memory is
	 * registered with us. */
	if (there && c->registered && found.block.active)
		put(c, FIELD(c, active), 0);
	if (there && c->uffd >= 0)
		put(c, FIELD(c, at_work), AGENT_AT_WORK);
}

void asks_forget(struct capture *c)
{
	pthread_mutex_lock(&c->fault_lock);
	c->asks.session = 0;
	c->asks.beacon = c->asks.control = 0;
	c->asks.nr_rung = 0;
	memset(c->asks.slots, 0, sizeof(c->asks.slots));
	pthread_mutex_unlock(&c->fault_lock);
}

bool asks_mover_waits(struct capture *c)
{
	uint64_t at_work;

	if (!c->asks.control || !get(c, FIELD(c, at_work), &at_work, sizeof(at_work)) ||
	    at_work != AGENT_MOVER_WAITS)
		return false;
	put(c, FIELD(c, at_work), AGENT_AT_WORK);
	return true;
}

void asks_leave(struct capture *c)
{
	if (c->asks.control)
		put(c, FIELD(c, at_work), 0);
}

void asks_set_back(struct capture *c)
{
	uint64_t critical[2];

	if (!c->asks.control || !get(c, FIELD(c, critical_start), critical, sizeof(critical)) ||
	    critical[1] - critical[0] > CRITICAL_BYTES)
		return;
	for (size_t i = 0; i < c->tracees.n; i++) {
		struct tracee *t = &c->tracees.t[i];

		/* Only the gate itself has this in rcx there: a call of ours may have been made with
		 * the same instruction. */
		if (t->regs.rip <= critical[0] || t->regs.rip >= critical[1] ||
		    t->regs.rcx != FIELD(c, active))
			continue;
		if (ptrace(PTRACE_POKEUSER, t->tid, offsetof(struct user_regs_struct, rip),
			   critical[0]) == 0)
			t->regs.rip = critical[0];
	}
}

void asks_begin(struct capture *c, bool hold)
{
	uint64_t session = 0;

	/* The mappings are those of T0 now. */
	if (!c->asks.control || (!inject_is_there(c) && !lies_well(c, c->asks.control)) ||
	    getrandom(&session, sizeof(session), GRND_NONBLOCK) != sizeof(session) || !session)
		return;
	put(c, FIELD(c, last_session), session);
	if (hold || c->uffd < 0)
		return;
	pthread_mutex_lock(&c->fault_lock);
	/* They come and go. */
	pageset_depopulate(c->pages, c->asks.beacon + AGENT_PAGE, AGENT_SLOTS);
	c->asks.session = session;
	pthread_mutex_unlock(&c->fault_lock);
	if (!put(c, FIELD(c, active), session))
		c->asks.session = 0;
	else
		inject_lead(c);
}

void asks_end(struct capture *c)
{
	uint64_t one = 1;

	if (!c->asks.session)
		return;
	put(c, FIELD(c, active), 0);
	c->asks.session = 0;
	(void)!write(c->wake_fd, &one, sizeof(one));
}

void asks_free(struct asks *asks)
{
	if (asks->fd >= 0)
		close(asks->fd);
	asks->fd = -1;
}

/* ---- the fault thread's ------------------------------------------------------------------------- */

bool asks_is_doorbell(const struct capture *c, uint64_t addr)
{
	return c->asks.beacon && addr >= c->asks.beacon + AGENT_PAGE &&
	       addr - c->asks.beacon < (uint64_t)AGENT_BEACON_PAGES * AGENT_PAGE;
}

void asks_ring(struct capture *c, uint64_t addr)
{
	struct ask *ask = &c->asks.slots[(addr - c->asks.beacon) / AGENT_PAGE - 1];
	uint64_t one = 1;

	if (!ask->rung) {
		*ask = (struct ask){.rung = true};
		c->asks.nr_rung++;
	}
	/* The tracer, too, reads what the target raises. */
	if (!pthread_equal(pthread_self(), c->fault_tid))
		(void)!write(c->wake_fd, &one, sizeof(one));
}

/* Nobody need be asked (any more). */
static bool idle(const struct capture *c)
{
	return c->phase != PHASE_PRESERVE || capture_stopping(c) || !c->asks.session;
}

static bool same_wish(const struct agent_slot *a, const struct agent_slot *b)
{
	return a->request == b->request && a->session == b->session && a->what == b->what &&
	       a->start == b->start && a->end == b->end;
}

enum progress {
	DONE,
	MORE,
	WAIT,
};

static enum progress save_range(struct capture *c, struct ask *ask, uint64_t *budget)
{
	const uint64_t start = ask->start, end = ask->end;
	uint64_t addr;
	struct segment s;

	while (discard_first_unsaved(c, ask->at, end, &addr)) {
		if (!*budget)
			return MORE;
		if (!arm_segment(c, addr, end, &s))
			break;
		uint64_t from = MAX(addr, s.start), before = c->stats.fault_pages;
		uint64_t len = MIN(MIN(end, s.end) - from, *budget);
		enum served r = fault_copy(c, &s, s.key + (from - s.start), len);

		c->stats.asked_pages += c->stats.fault_pages - before;
		c->stats.fault_pages = before;
		if (r != SERVED)
			return WAIT;
		if (capture_stopping(c))
			return DONE;
		*budget -= len;
		ask->at = from + len;
	}
	/* What the sweep has claimed it saves, or gives back. */
	if (discard_first_unsaved(c, start, end, &ask->at))
		return WAIT;
	ask->at = end;
	/* What was not copied must not go before it has been looked at. */
	return !c->unseen_checked && region_unseen(c, start, end) ? WAIT : DONE;
}

/* Reads what is asked for, and saves it. */
static enum progress save(struct capture *c, struct ask *ask, uint64_t addr, uint64_t *budget)
{
	if (!ask->known) {
		if (!get(c, addr, &ask->slot, sizeof(ask->slot)))
			return DONE;
		ask->known = true;
		ask->at = ask->start = ALIGN_DOWN(ask->slot.start, PAGE_BYTES);
		ask->end = ALIGN_UP(MIN(ask->slot.end, TOP), PAGE_BYTES);
	}
	/* It rings again after its answer, or it belongs to another snapshot. */
	if (ask->slot.session != c->asks.session || ask->slot.ack == ask->slot.request)
		return DONE;
	if (ask->slot.what != AGENT_ASK_RANGE)
		return WAIT;
	enum progress p = save_range(c, ask, budget);
	if (p == DONE && !capture_stopping(c)) {
		struct agent_slot now;

		/* Somebody else has taken the slot, or it was being filled. */
		if (!get(c, addr, &now, sizeof(now)))
			return DONE;
		if (!same_wish(&now, &ask->slot)) {
			ask->known = false;
			return MORE;
		}
		ask->acknowledge = true;
	}
	return p;
}

static enum progress serve(struct capture *c, unsigned i, uint64_t *budget)
{
	struct ask *ask = &c->asks.slots[i];
	uint64_t addr = FIELD(c, slots) + i * sizeof(struct agent_slot), done;

	if (!ask->saved) {
		enum progress p = idle(c) ? DONE : save(c, ask, addr, budget);

		if (p != DONE)
			return p;
		ask->saved = true;
		if (ask->acknowledge) {
			c->stats.asks++;
			put(c, addr + offsetof(struct agent_slot, ack), ask->slot.request);
		}
	}
	uint64_t page = c->asks.beacon + AGENT_PAGE * (1 + (uint64_t)i);
	int r = uffd_zeropage(c->uffd, page, PAGE_BYTES, &done);
	if (r == -EAGAIN)
		return WAIT;
	if (r < 0)
		uffd_wake(c->uffd, page, PAGE_BYTES);
	return DONE;
}

enum asks_left asks_serve(struct capture *c)
{
	uint64_t budget = BITE_BYTES;
	enum asks_left left = ASKS_NONE;

	for (unsigned k = 0; k < AGENT_SLOTS && c->asks.nr_rung; k++) {
		unsigned i = (c->asks.next + k) % AGENT_SLOTS;

		if (!c->asks.slots[i].rung)
			continue;
		enum progress p = serve(c, i, &budget);
		if (p == DONE) {
			c->asks.slots[i].rung = false;
			c->asks.nr_rung--;
		} else {
			left = MAX(left, p == MORE ? ASKS_GO : ASKS_WAIT);
		}
		if (!budget) {
			c->asks.next = i + 1;
			return c->asks.nr_rung ? ASKS_GO : ASKS_NONE;
		}
	}
	c->asks.next = (c->asks.next + 1) % AGENT_SLOTS;
	return left;
}

/*
 * What the agent in a target and the snapshotter share: a block of the
 * target's memory, and pages that are doorbells.
 *
 * The block lies in initialised data, which is a written private mapping of a
 * file: userfaultfd never protects it, the snapshotter reads and writes it
 * with process_vm_readv(2) and process_vm_writev(2). It is found by a beacon:
 * a read-only private anonymous mapping of AGENT_BEACON_PAGES pages, the first
 * of which begins with struct agent_beacon and the rest of which are doorbells,
 * one for each slot, never written by anybody.
 *
 * A thread that is about to discard memory while a snapshot is active takes a
 * slot, says which range, and reads the slot's doorbell. That page does not
 * exist: the read is a MISSING fault, which the snapshotter answers when the
 * range is saved. A snapshotter that dies takes the userfaultfd with it, and
 * the kernel answers with a page of zeros: nobody waits for the dead. An answer
 * without an acknowledgement in the slot says that nobody listens.
 *
 * Everything in here is untrusted to the snapshotter.
 */
#ifndef USNAP_AGENT_CONTROL_H
#define USNAP_AGENT_CONTROL_H

#include <stdint.h>

#define AGENT_MAGIC "uffd-snap agent" /* 16 bytes with its NUL */

enum {
	AGENT_VERSION = 1,
	AGENT_SLOTS = 64,
	AGENT_PAGE = 4096,
	AGENT_BEACON_PAGES = 1 + AGENT_SLOTS,
	AGENT_NAME_MAX = 64, /* with its NUL */
	AGENT_EXCLUDES = 64,
};

/* Start of the beacon mapping. */
struct agent_beacon {
	char magic[16]; /* AGENT_MAGIC */
	uint64_t self; /* address of the beacon */
	uint64_t control; /* address of struct agent_control */
};

/* A range that is about to be discarded: [start, end), bytes. */
struct agent_slot {
	uint32_t owner; /* 0: free */
	uint32_t what; /* enum agent_ask */
	uint64_t start, end;
	uint64_t request; /* written last by the agent: differs from every one before */
	uint64_t ack; /* written by the snapshotter: the request that is dealt with */
	uint64_t session; /* as the agent saw it */
	uint64_t epoch; /* the agent's: of its last use, as in the block */
	uint64_t reserved;
};

enum agent_work {
	AGENT_AT_WORK = 1,
	AGENT_MOVER_WAITS = 2,
};

enum agent_ask {
	AGENT_ASK_RANGE = 0, /* save [start, end) */
	AGENT_ASK_ALL = 1, /* everything: the process is about to end, or to become another one */
};

struct agent_range {
	uint64_t start, end;
};

enum {
	AGENT_INHERIT = 1, /* children are snapshot-ready as well */
	AGENT_ON_EXIT_WAIT = 2, /* exit and execve wait for an active snapshot */
	AGENT_INJECTED = 4, /* put there by a snapshotter for a while, not by the program */
	AGENT_PATCHED = 8, /* calls that libc makes itself are held back too */
};

struct agent_control {
	char magic[16]; /* AGENT_MAGIC */
	uint32_t version, size; /* AGENT_VERSION, sizeof(struct agent_control) */
	uint32_t flags;
	int32_t pid; /* whose block it is: a child of fork() has a copy */
	uint64_t beacon;
	/* The instructions from the last look at active to the system call itself. A thread that
	 * is stopped at one of them, T0 being now, is set back to the first. */
	uint64_t critical_start, critical_end; /* [start, end): end is behind the syscall */
	uint64_t active; /* the snapshot that must be asked, or 0. Written by the snapshotter */
	uint64_t last_session; /* the last snapshot whose T0 was reached. By the snapshotter */
	uint32_t restored; /* how often this process has been brought back. By restore */
	uint32_t nr_excludes;
	char name[AGENT_NAME_MAX]; /* NUL-terminated; "": none */
	/* The agent's: how often it has given the pages of all doorbells back, for which session last,
	 * and how many requests there have been. */
	uint64_t epoch, epoch_session, nr_requests;
	uint64_t asked; /* how often a signal has asked for a snapshot. By the agent */
	/* 0, or AGENT_AT_WORK: a mapping may be in two parts for a moment, which mremap() does not
	 * take. By the snapshotter. AGENT_MOVER_WAITS: it has met one, and tries again. */
	uint64_t at_work;
	uint64_t moving; /* the agent's: a lock */
	uint64_t inside; /* calls that are on their way through an injected gate */
	uint64_t reserved[1];
	struct agent_range excludes[AGENT_EXCLUDES]; /* what an image need not hold: read at T0 */
	struct agent_slot slots[AGENT_SLOTS];
};

_Static_assert(sizeof(struct agent_slot) == 64, "a cache line");

#endif

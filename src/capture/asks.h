/*
 * The engine's side of the agent's gate (agent/control.h): threads of the
 * target that are about to discard memory ask for it to be saved first, and
 * wait in a fault on a doorbell until that is answered.
 *
 * The fault thread serves them between faults, a bite at a time; it never
 * waits for anybody. What is acknowledged is saved: everything else is
 * answered without an acknowledgement, and the agent finds out why.
 */
#ifndef USNAP_CAPTURE_ASKS_H
#define USNAP_CAPTURE_ASKS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "agent/control.h"

struct capture;

struct ask {
	bool rung; /* somebody waits for the doorbell, or did */
	bool known; /* slot has been read */
	bool saved; /* the doorbell is all that is left to do */
	bool acknowledge;
	struct agent_slot slot;
	uint64_t start, end; /* whole pages of it */
	uint64_t at; /* what lies before it has been dealt with */
};

/* With fault_lock, except where it says otherwise. */
struct asks {
	int fd; /* /proc/PID/mem, to write: of this memory whatever the process runs later. The tracer's */
	uint64_t beacon, control; /* where the agent is; 0: there is none */
	_Atomic uint64_t session; /* what the agent has been told to ask; 0: nothing */
	struct ask slots[AGENT_SLOTS];
	unsigned nr_rung, next; /* next: whose turn it is */
};

/* The tracer's, in the order of an attempt. Finds the agent among the latest mappings: before they
 * are registered and, since it may have been loaded meanwhile, after that. */
void asks_find(struct capture *c);
/* While every thread stands still, with its registers read: whoever is between the gate's look and
 * the system call is to look again. */
void asks_set_back(struct capture *c);
/* At the end of the freeze: from T0 on the agent has to ask. With hold it need not. */
void asks_begin(struct capture *c, bool hold);
/* Nothing is left to be asked for. Without fault_lock. */
void asks_end(struct capture *c);
/* The memory is the kernel's again. */
void asks_leave(struct capture *c);
/* Where the agent was there may be anything now. Without fault_lock. */
void asks_forget(struct capture *c);
/* Whether mremap() has met a mapping in two parts since the last time. */
bool asks_mover_waits(struct capture *c);
void asks_free(struct asks *asks);

bool asks_is_doorbell(const struct capture *c, uint64_t addr);
/* A fault on a doorbell. */
void asks_ring(struct capture *c, uint64_t addr);

enum asks_left {
	ASKS_NONE,
	ASKS_WAIT, /* for somebody else: a block, an event, a page that the sweep has in hand */
	ASKS_GO, /* there is more to do */
};
/* Serves asks up to a bite. */
enum asks_left asks_serve(struct capture *c);

#endif

/*
 * The gate: what the program's discarding system calls go through. While a
 * snapshot is active, one waits until the snapshotter has saved what it is
 * about to discard; else it costs a comparison.
 *
 * DESIGN. gate_call() (gatecall.S) looks at the block's "active" and makes the
 * system call, with nothing in between but the branch. The snapshotter sets
 * active while every thread stands still, and sets back who stands between
 * look and call: so after T0 no call is made by a thread that saw an older
 * value, but for one that a signal has interrupted there, or that the kernel
 * starts again by itself: what it discards is an event, as without the gate.
 * Where active is not what was expected, gate_hold() asks, and tells what to
 * expect next: the session that has been asked, or 0.
 *
 * An answer is believed when the slot holds the acknowledgement and still all
 * that was asked, so that it does no harm when two threads use the same slot:
 * both ask again. That is how slots are taken back that nobody will ever
 * free (a signal handler jumped out of the wait; the owner was a thread of
 * the parent, and this is a child's copy).
 *
 * Nobody listens when the doorbell's page comes into being without an
 * acknowledgement, several times: the snapshotter is dead, or this is the
 * child of a fork() and has a copy of active. Then active is reset by whoever
 * finds out first.
 *
 * The code refers to nothing but itself and the block, relative to itself.
 */
#ifndef USNAP_AGENT_GATE_H
#define USNAP_AGENT_GATE_H

/* Offset of active in struct agent_control, for gatecall.S. */
#define GATE_ACTIVE 56
#define GATE_INSIDE 192

/* Calls of libc's that can be led here; their numbers are those of the entries in gatecall.S. */
#define GATE_MUNMAP 0
#define GATE_MADVISE 1
#define GATE_MREMAP 2
#define GATE_MMAP 3
#define GATE_BRK 4
#define GATE_LD_MUNMAP 5
#define GATE_EXECVE 6
#define GATE_SYSCALL 7
#define GATE_EXIT 8
#define GATE_SITES 9

#ifndef __ASSEMBLER__

#include <stdint.h>

#include "agent/control.h"

/* A system call as gatecall.S puts it on the stack. */
struct gate_call {
	uint64_t nr, args[6];
};

/* Makes a system call that may discard memory. Returns what the kernel returned. */
int64_t gate_make(uint64_t nr, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4,
		  uint64_t a5);

/* From gatecall.S. Waits until what the call discards is saved. Returns what active must be for the call
 * to be made. */
uint64_t gate_hold(struct agent_control *c, const struct gate_call *call);

/* Makes an mremap(). */
int64_t gate_mremap(struct agent_control *c, const struct gate_call *call);

/* When the process ends: waits for a snapshot that is active, if that is wanted. */
void gate_exit(void);

/* Writes into the block where the gate's critical instructions are. */
void gate_tell(struct agent_control *c);

/* Where a call of libc's is led to instead, and where each goes on afterwards. */
uint64_t gate_entry(unsigned site);
extern uint64_t gate_back[GATE_SITES] __attribute__((visibility("hidden")));

#endif
#endif

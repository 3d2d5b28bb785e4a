/*
 * Inside the agent library: src/agent only.
 *
 * The agent lives in somebody else's program. It starts no thread, keeps no
 * descriptor, takes nothing from the program's heap, and nothing in it may
 * fail in a way that the program notices. What runs on behalf of a call of
 * the program (gate*.[cS]) runs wherever that call may be made, a signal
 * handler and the child of a vfork() included: no thread-local storage, no
 * errno, no locks, no library.
 */
#ifndef USNAP_AGENT_AGENT_H
#define USNAP_AGENT_AGENT_H

#include "agent/control.h"

/* Initialised, and therefore in a written private mapping of the library's file. */
extern struct agent_control agent_control __attribute__((visibility("hidden")));

/* ready.c: reads the environment, sets flags and name, enters the process in the registry. Called
 * once, by the constructor: beacon and block are complete, no call is held back yet. */
void agent_ready_start(void) __attribute__((weak, visibility("hidden")));

/* Makes block and beacon say that they are this process's: after fork(), in a child that takes over
 * for its parent. */
void agent_take_over(void);

#endif

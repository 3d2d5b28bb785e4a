/*
 * Inside the agent: what it sees of the process and of others, and the entry
 * that it makes for the process in the run directory (common/rundir.h).
 *
 * By system calls of its own: what the program or another preloaded library
 * puts in the place of libc's functions is not asked. Called by the only
 * thread there is, when the program starts or has just been forked.
 */
#ifndef USNAP_AGENT_SURROUNDINGS_H
#define USNAP_AGENT_SURROUNDINGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A process as /proc shows it, which may be another PID than the program sees. */
struct around {
	uint32_t pid, ppid;
	uint64_t start; /* field 22 of stat */
};

/* pid 0: this process. False: there is none, or it has ended. */
bool around_look(uint32_t pid, struct around *ret);

/* Value of a variable of the environment, or NULL. */
const char *around_env(const char *name);
/* The same when it is "1". */
bool around_env_is_set(const char *name);

/* Appends to a string in a buffer; what does not fit makes it too long for good. */
struct around_text {
	char *buf;
	size_t room, len;
	bool too_long;
};

void around_add(struct around_text *t, const char *s);
void around_add_number(struct around_text *t, uint64_t n, unsigned base);

/* Does the agent in its memory say that it is ready? False where that cannot be seen. */
bool around_is_ready(const struct around *who);
/* Is there an entry for this process? */
bool around_has_entry(const struct around *who);
/* Does the one of this process say that it follows a process that still lives? */
bool around_entry_waits(const struct around *who);
void around_drop_entry(const struct around *who);
/* follows: nr processes, those with PID 0 left out. */
void around_enter(const struct around *who, const char *name, uint64_t beacon,
		  const struct around *follows, unsigned nr);

#endif

/*
 * What a process can be asked only by a call that returns it: by a helper
 * thread (remote.h), which shares its memory and has the credentials of the
 * thread it was made beside.
 */
#ifndef USNAP_PROCESS_FACTS_H
#define USNAP_PROCESS_FACTS_H

#include <stdint.h>

#include "process/remote.h"

struct process_facts {
	/* What the call returned: negative where the kernel does not tell. */
	int64_t brk, dumpable, securebits, mdwe, memory_merge, io_flusher, membarrier;
};

/* Nothing known. */
void facts_forget(struct process_facts *f);
void facts_ask(struct remote_helper *h, struct process_facts *ret);

#endif

#include "process/facts.h"

#include <sys/prctl.h>
#include <sys/syscall.h>

#ifndef PR_GET_MDWE
#define PR_GET_MDWE 66 /* Linux 6.3 */
#endif
#ifndef PR_GET_MEMORY_MERGE
#define PR_GET_MEMORY_MERGE 68 /* Linux 6.4 */
#endif
#define MEMBARRIER_GET_REGISTRATIONS (1 << 9) /* Linux 6.3 */

void facts_forget(struct process_facts *f)
{
	*f = (struct process_facts){-1, -1, -1, -1, -1, -1, -1};
}

void facts_ask(struct remote_helper *h, struct process_facts *ret)
{
	ret->brk = remote_helper_call(h, SYS_brk, 0, 0, 0, 0, 0);
	ret->dumpable = remote_helper_call(h, SYS_prctl, PR_GET_DUMPABLE, 0, 0, 0, 0);
	ret->securebits = remote_helper_call(h, SYS_prctl, PR_GET_SECUREBITS, 0, 0, 0, 0);
	ret->mdwe = remote_helper_call(h, SYS_prctl, PR_GET_MDWE, 0, 0, 0, 0);
	ret->memory_merge = remote_helper_call(h, SYS_prctl, PR_GET_MEMORY_MERGE, 0, 0, 0, 0);
	ret->membarrier =
		remote_helper_call(h, SYS_membarrier, MEMBARRIER_GET_REGISTRATIONS, 0, 0, 0, 0);
	/* Wants CAP_SYS_RESOURCE of the target. */
	ret->io_flusher = remote_helper_call(h, SYS_prctl, PR_GET_IO_FLUSHER, 0, 0, 0, 0);
}

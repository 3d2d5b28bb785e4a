/* System calls without a library: no errno, nothing of the thread's. */
#ifndef USNAP_AGENT_RAW_H
#define USNAP_AGENT_RAW_H

#include <stdbool.h>
#include <stdint.h>

static inline int64_t raw_call(int64_t nr, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3,
			       uint64_t a4, uint64_t a5)
{
	register uint64_t r10 __asm__("r10") = a3;
	register uint64_t r8 __asm__("r8") = a4;
	register uint64_t r9 __asm__("r9") = a5;
	int64_t result = nr;

	__asm__ volatile("syscall"
			 : "+a"(result)
			 : "D"(a0), "S"(a1), "d"(a2), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

/* What the kernel takes for a failure. */
static inline bool raw_failed(int64_t result)
{
	return (uint64_t)result > (uint64_t)-4096;
}

#endif

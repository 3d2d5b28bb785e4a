/* Start of the agent: the block, the beacon by which it is found, and the rest in turn. */
#include "agent/agent.h"

#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "agent/gate.h"
#include "agent/patch.h"
#include "agent/raw.h"

__attribute__((aligned(AGENT_PAGE))) struct agent_control agent_control = {
	.magic = AGENT_MAGIC,
	.version = AGENT_VERSION,
	.size = sizeof(struct agent_control),
};

/* Between two pages that nobody can read, so that the kernel does not join it with a neighbour: it
 * is known by its size. */
static uint64_t make_beacon(void)
{
	const uint64_t len = (uint64_t)AGENT_BEACON_PAGES * AGENT_PAGE;
	int64_t at = raw_call(SYS_mmap, 0, len + 2 * AGENT_PAGE, PROT_NONE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, (uint64_t)-1, 0);

	if (raw_failed(at))
		return 0;
	uint64_t start = (uint64_t)at + AGENT_PAGE;
	if (raw_call(SYS_mprotect, start, len, PROT_READ | PROT_WRITE, 0, 0, 0) == 0) {
		*(struct agent_beacon *)(uintptr_t)start = (struct agent_beacon){
			.magic = AGENT_MAGIC,
			.self = start,
			.control = (uintptr_t)&agent_control,
		};
		if (raw_call(SYS_mprotect, start, len, PROT_READ, 0, 0, 0) == 0)
			return start;
	}
	raw_call(SYS_munmap, (uint64_t)at, len + 2 * AGENT_PAGE, 0, 0, 0, 0);
	return 0;
}

void agent_take_over(void)
{
	agent_control.pid = (int32_t)raw_call(SYS_getpid, 0, 0, 0, 0, 0, 0);
}

/* The snapshotter reads it only where it is memory of the process's own, not of the file. */
static void touch_control(void)
{
	volatile unsigned char *p = (volatile unsigned char *)&agent_control;

	for (size_t at = 0; at < sizeof(agent_control); at += AGENT_PAGE) {
		unsigned char byte = p[at];

		p[at] = byte;
	}
}

/* As early as can be: later the program may have threads. */
__attribute__((constructor(101))) static void start_agent(void)
{
	agent_take_over();
	touch_control();
	gate_tell(&agent_control);
	agent_control.beacon = make_beacon();
	/* Without it nobody will ever ask for anything. */
	if (!agent_control.beacon)
		return;
	if (agent_ready_start)
		agent_ready_start();
	patch_start();
}

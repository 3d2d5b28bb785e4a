/*
 * DESIGN. /proc/TID/sched tells when a sleeping thread has gone to sleep
 * (se.exec_start, with CONFIG_SCHED_DEBUG), by the clock of the CPU that it
 * slept on (rq_clock_task() in kernel/sched/core.c): without the time that
 * interrupts and other guests took. What that clock says now is found by
 * sleeping there ourselves. It runs no faster than CLOCK_MONOTONIC, so a wait
 * never seems longer than it was, and no timer fires early for it.
 */
#include "process/waits.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>

#include "common/io.h"
#include "common/util.h"

/* The two clocks tick alike but for what NTP slews. */
#define SLEW 2000
#define MARGIN_NS 200000

static char *read_text(const struct target *t, pid_t tid, const char *name)
{
	char path[64];
	char *text = NULL;

	snprintf(path, sizeof(path), "task/%d/%s", (int)tid, name);
	return io_read_file_at(t->procfd, path, KIB(64), &text, NULL) < 0 ? NULL : text;
}

int wait_open_status(const struct target *t, pid_t tid)
{
	char path[64];

	snprintf(path, sizeof(path), "task/%d/status", (int)tid);
	int fd = openat(t->procfd, path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

bool wait_read_blocks(int fd, uint64_t *ret)
{
	static const char key[] = "\nvoluntary_ctxt_switches:";
	char text[8192];
	ssize_t n = fd < 0 ? -1 : pread(fd, text, sizeof(text) - 1, 0);

	if (n <= 0)
		return false;
	text[n] = '\0';
	const char *s = strstr(text, key);
	if (!s)
		return false;
	*ret = strtoull(s + sizeof(key) - 1, NULL, 10);
	return true;
}

/* "se.exec_start   :   11772227.398831": milliseconds. */
static uint64_t parse_exec_start(const char *sched)
{
	const char *s = sched ? strstr(sched, "se.exec_start") : NULL;
	unsigned long long ms, ns;

	s = s ? strchr(s, ':') : NULL;
	return s && sscanf(s + 1, " %llu.%6llu", &ms, &ns) == 2 ? ms * 1000000 + ns : 0;
}

/* "35 0x7ffd.. 0x.. ... sp pc", six arguments. */
static bool parse_call(const char *text, struct wait_note *w)
{
	unsigned long long a[8];

	if (!text || sscanf(text, "%ld 0x%llx 0x%llx 0x%llx 0x%llx 0x%llx 0x%llx 0x%llx 0x%llx",
			    &w->nr, &a[0], &a[1], &a[2], &a[3], &a[4], &a[5], &a[6], &a[7]) != 9)
		return false;
	for (int i = 0; i < 6; i++)
		w->args[i] = a[i];
	w->sp = a[6];
	w->pc = a[7];
	return true;
}

/* Which call goes on as restart_syscall(2): by where in the kernel it sleeps. */
static long resolve(const struct target *t, const struct wait_note *w)
{
	cleanup_free char *where = read_text(t, w->tid, "wchan");

	if (!where || !strcmp(where, "0") || !where[0])
		return SYS_restart_syscall;
	if (strstr(where, "poll"))
		return SYS_poll;
	if (strstr(where, "futex"))
		return SYS_futex;
	/* Only these two are left. The first argument is an address or the number of a clock. */
	return w->args[0] >= 4096 && w->args[0] >> 47 == 0 &&
			       (int32_t)w->args[0] != (int64_t)w->args[0]
		       ? SYS_nanosleep
		       : SYS_clock_nanosleep;
}

/* What the clock of a CPU says now, in CLOCK_MONOTONIC's terms: the difference. */
static bool clock_of_cpu(struct wait_clocks *clocks, int cpu, int64_t *ret_ahead)
{
	cpu_set_t before, there;

	for (unsigned i = 0; i < clocks->n; i++)
		if (clocks->v[i].cpu == cpu) {
			*ret_ahead = clocks->v[i].ahead_ns;
			return true;
		}
	cleanup_free char *sched = NULL;

	if (cpu < 0 || cpu >= CPU_SETSIZE || sched_getaffinity(0, sizeof(before), &before) < 0)
		return false;
	CPU_ZERO(&there);
	CPU_SET(cpu, &there);
	if (sched_setaffinity(0, sizeof(there), &there) < 0)
		return false;
	/* Having slept, we have been given the CPU a moment ago. */
	nanosleep(&(struct timespec){.tv_nsec = 1000}, NULL);
	io_read_file_at(AT_FDCWD, "/proc/thread-self/sched", KIB(64), &sched, NULL);
	/* Afterwards: what comes between makes a wait seem shorter, never longer than it was. */
	uint64_t now = now_ns();
	uint64_t then = parse_exec_start(sched);
	sched_setaffinity(0, sizeof(before), &before);
	*ret_ahead = (int64_t)(now - then);
	if (then && clocks->n < ARRAY_SIZE(clocks->v)) {
		clocks->v[clocks->n].cpu = cpu;
		clocks->v[clocks->n++].ahead_ns = *ret_ahead;
	}
	return then;
}

/* The CPU of /proc/TID/stat, field 39. */
static int cpu_of(const char *stat)
{
	const char *s = stat ? strrchr(stat, ')') : NULL;

	for (int i = 2; s && i < 39; i++) {
		s = strchr(s, ' ');
		if (s)
			s++;
	}
	return s ? atoi(s) : -1;
}

static void find_since(const struct target *t, struct wait_clocks *clocks, struct wait_note *w)
{
	cleanup_free char *sched = read_text(t, w->tid, "sched");
	cleanup_free char *stat = read_text(t, w->tid, "stat");
	uint64_t began = parse_exec_start(sched), now;
	int64_t ahead;

	if (!began || !clock_of_cpu(clocks, cpu_of(stat), &ahead))
		return;
	now = now_ns();
	int64_t waited = (int64_t)now - ahead - (int64_t)began;
	if (waited < 0)
		waited = 0;
	waited -= waited / SLEW;
	w->since_ns = now - (uint64_t)MAX(waited - MARGIN_NS, (int64_t)0);
}

static void look_at_time(const struct target *t, struct wait_clocks *clocks, struct wait_note *w)
{
	cleanup_fd int fd = wait_open_status(t, w->tid);
	uint64_t again;

	if (!wait_read_blocks(fd, &w->blocks))
		return;
	find_since(t, clocks, w);
	/* Still the same wait: nothing ran in between. */
	if (!wait_read_blocks(fd, &again) || again != w->blocks)
		w->since_ns = 0;
}

bool wait_is(const struct wait_note *w, const struct user_regs_struct *r)
{
	return w->tid && w->sp == r->rsp && w->pc == r->rip && w->args[0] == r->rdi &&
	       w->args[1] == r->rsi && w->args[2] == r->rdx && w->args[3] == r->r10 &&
	       ((long)r->orig_rax == w->nr || r->orig_rax == SYS_restart_syscall);
}

void wait_look(const struct target *t, pid_t tid, struct wait_clocks *clocks, struct wait_note *ret)
{
	cleanup_free char *call = read_text(t, tid, "syscall");

	*ret = (struct wait_note){.tid = tid};
	if (!parse_call(call, ret))
		goto none;
	ret->restarted = ret->nr == SYS_restart_syscall;
	if (ret->restarted)
		ret->nr = resolve(t, ret);
	switch (ret->nr) {
	case SYS_poll:
		if ((int32_t)ret->args[2] < 0)
			return; /* without an end */
		break;
	case SYS_futex:
		if ((ret->args[1] & FUTEX_CMD_MASK) != FUTEX_WAIT || !ret->args[3])
			return; /* its arguments say it all */
		break;
	case SYS_nanosleep:
	case SYS_clock_nanosleep:
	case SYS_restart_syscall:
		break;
	default:
		goto none;
	}
	look_at_time(t, clocks, ret);
	return;
none:
	ret->tid = 0;
}

bool wait_unbroken(const struct target *t, const struct wait_note *w)
{
	cleanup_fd int fd = w->tid ? wait_open_status(t, w->tid) : -1;
	uint64_t blocks;

	/* It was woken to be stopped, once; being stopped counts. */
	return wait_read_blocks(fd, &blocks) && blocks == w->blocks + 1;
}

/*
 * Small things that the kernel makes of nothing: eventfd, timerfd, signalfd,
 * pidfd; and descriptors of namespaces.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/compat.h"
#include "common/util.h"
#include "restore/rfiles_internal.h"
#include "restore/rjson.h"

#ifndef TFD_IOC_SET_TICKS
#define TFD_IOC_SET_TICKS _IOW('T', 0, uint64_t)
#endif

static void *new_state(struct rdesc *d, size_t size, struct usnap_err *err)
{
	d->state = calloc(1, size);
	if (!d->state)
		usnap_fail_errno(err, -ENOMEM, "cannot restore the descriptors");
	return d->state;
}

/* ---- eventfd -------------------------------------------------------------------- */

struct reventfd {
	uint64_t count;
	int64_t semaphore;
};

int reventfd_plan(struct restore *r, struct rdesc *d, struct usnap_err *err)
{
	struct reventfd *e = new_state(d, sizeof(*e), err);
	int ret;

	if (!e)
		return -ENOMEM;
	if ((ret = rjson_word_or(d->more, "count", 0, &e->count, err)) < 0)
		return ret;
	/* Not told before Linux 6.5. */
	return rjson_int_or(d->more, "semaphore", 0, 1, 0, &e->semaphore, err);
}

int reventfd_make(struct restore *r, struct rdesc *d, int *ret_fd, struct usnap_err *err)
{
	const struct reventfd *e = d->state;
	cleanup_fd int fd = eventfd(0, EFD_CLOEXEC | (d->flags & O_NONBLOCK) |
					       (e->semaphore ? EFD_SEMAPHORE : 0));

	if (fd < 0)
		return rfile_fail(err, -errno, d, "make");
	/* The highest count is one that only the kernel can bring about. */
	uint64_t count = MIN(e->count, UINT64_MAX - 1);
	if (count && write(fd, &count, sizeof(count)) < 0)
		return rfile_fail(err, -errno, d, "set the count of");
	*ret_fd = take_fd(&fd);
	return 0;
}

/* ---- timerfd -------------------------------------------------------------------- */

struct rtimerfd {
	int64_t clock, settime_flags, value_ns, interval_ns, ticks;
};

int rtimerfd_plan(struct restore *r, struct rdesc *d, struct usnap_err *err)
{
	struct rtimerfd *t = new_state(d, sizeof(*t), err);
	int ret;

	if (!t)
		return -ENOMEM;
	if ((ret = rjson_int_or(d->more, "clock", 0, 15, CLOCK_MONOTONIC, &t->clock, err)) < 0 ||
	    (ret = rjson_int_or(d->more, "settime_flags", 0, 3, 0, &t->settime_flags, err)) < 0 ||
	    (ret = rjson_int_or(d->more, "value_ns", 0, INT64_MAX, 0, &t->value_ns, err)) < 0 ||
	    (ret = rjson_int_or(d->more, "interval_ns", 0, INT64_MAX, 0, &t->interval_ns, err)) < 0)
		return ret;
	return rjson_int_or(d->more, "ticks", 0, INT64_MAX, 0, &t->ticks, err);
}

int rtimerfd_make(struct restore *r, struct rdesc *d, int *ret_fd, struct usnap_err *err)
{
	const struct rtimerfd *t = d->state;
	int fd = timerfd_create((clockid_t)t->clock, TFD_CLOEXEC | (d->flags & O_NONBLOCK));

	if (fd < 0)
		return rfile_fail(err, -errno, d, "make");
	*ret_fd = fd;
	return 0;
}

static uint64_t clock_at_t0(const struct restore *r, int64_t clock)
{
	switch (clock) {
	case CLOCK_REALTIME:
	case CLOCK_REALTIME_ALARM:
		return r->info.t0_realtime_ns;
	case CLOCK_BOOTTIME:
	case CLOCK_BOOTTIME_ALARM:
		return r->info.t0_boottime_ns;
	default:
		return r->info.t0_monotonic_ns;
	}
}

/* A timer that was set to go off at a time of the clock goes off at that time, at once when it is
 * over; any other after the time that was left. The ticks that wait to be read are those that were.
 *
 * A periodic one with ticks and no time: an image from before the time was asked for. Its period
 * begins now. */
int rtimerfd_finish(struct finish *f, const struct rdesc *d)
{
	const struct rtimerfd *t = d->state;
	uint64_t value = (uint64_t)t->value_ns, ticks = (uint64_t)t->ticks;
	uint64_t flags = (uint64_t)t->settime_flags;

	if (!value && !t->interval_ns && !ticks && !flags)
		return 0; /* as it was made */
	if (!value && ticks) {
		flags = 0;
		value = t->interval_ns ? (uint64_t)t->interval_ns : 1;
		ticks = t->interval_ns || ticks > 1 ? ticks : 0; /* it goes off at once */
	} else if (value && flags & TFD_TIMER_ABSTIME) {
		value += clock_at_t0(finish_restore(f), t->clock);
	}
	struct itimerspec its = {
		.it_value = {(time_t)(value / 1000000000), (long)(value % 1000000000)},
		.it_interval = {t->interval_ns / 1000000000, t->interval_ns % 1000000000},
	};
	uint64_t addr = finish_data(f, &its, sizeof(its));
	int r = finish_add(f, d, "set the timer of", SYS_timerfd_settime, (uint64_t)d->fd, flags,
			   addr, 0, 0, 0);
	if (r < 0 || !ticks)
		return r;
	addr = finish_data(f, &ticks, sizeof(ticks));
	/* Only with CONFIG_CHECKPOINT_RESTORE. */
	return finish_try(f, d, SYS_ioctl, (uint64_t)d->fd, TFD_IOC_SET_TICKS, addr);
}

/* ---- signalfd ------------------------------------------------------------------- */

int rsignalfd_plan(struct restore *r, struct rdesc *d, struct usnap_err *err)
{
	uint64_t *mask = new_state(d, sizeof(*mask), err);

	return mask ? rjson_word_or(d->more, "mask", 0, mask, err) : -ENOMEM;
}

int rsignalfd_make(struct restore *r, struct rdesc *d, int *ret_fd, struct usnap_err *err)
{
	/* The kernel's set, which is shorter than libc's. */
	long fd = syscall(SYS_signalfd4, -1, d->state, sizeof(uint64_t),
			  O_CLOEXEC | (d->flags & O_NONBLOCK));

	if (fd < 0)
		return rfile_fail(err, -errno, d, "make");
	*ret_fd = (int)fd;
	return 0;
}

/* ---- pidfd ---------------------------------------------------------------------- */

/* Of the process itself, or of one that has ended and been waited for. */
int rpidfd_plan(struct restore *r, struct rdesc *d, struct usnap_err *err)
{
	int64_t *pid = new_state(d, sizeof(*pid), err);
	int ret = pid ? rjson_int_or(d->more, "pid", -1, INT32_MAX, -1, pid, err) : -ENOMEM;

	if (ret < 0 || *pid == -1 || *pid == r->files->image_pid)
		return ret;
	d->how = RFILE_NULL;
	return rfile_problem(r, err, RESTORE_REFUSE, "pidfd", "fd %d: refers to another process",
			     d->fd);
}

/* Of a child that has ended. */
static int pidfd_of_nobody(void)
{
	int fd = -1;
	struct clone_args args = {
		.flags = CLONE_PIDFD, .pidfd = (uintptr_t)&fd, .exit_signal = SIGCHLD};
	long pid = syscall(SYS_clone3, &args, sizeof(args));

	if (pid == 0)
		_exit(0);
	if (pid < 0)
		return -errno;
	while (waitpid((pid_t)pid, NULL, 0) < 0 && errno == EINTR)
		;
	return fd;
}

int rpidfd_make(struct restore *r, struct rdesc *d, int *ret_fd, struct usnap_err *err)
{
	uint64_t flags = 0;
	long fd = -1;

	rjson_word_or(d->o, "flags", 0, &flags, NULL);
	if (*(int64_t *)d->state == -1)
		fd = pidfd_of_nobody();
	else if ((fd = syscall(SYS_pidfd_open, getpid(), flags & (O_NONBLOCK | PIDFD_THREAD))) < 0)
		fd = -errno;
	if (fd < 0)
		return rfile_fail(err, (int)fd, d, "make");
	*ret_fd = (int)fd;
	return rfile_set_flags(*ret_fd, d->flags);
}

/* ---- namespaces ------------------------------------------------------------------- */

/* "net:[4026531840]" */
static bool split_name(const char *path, char name[static 24])
{
	static const char *const known[] = {"cgroup", "ipc",  "mnt",  "net",
					    "pid",    "time", "user", "uts"};
	size_t len = strcspn(path, ":");

	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		if (strlen(known[i]) == len && !strncmp(known[i], path, len)) {
			snprintf(name, 24, "%s", known[i]);
			return true;
		}
	return false;
}

/* The process's own come back as those that it gets; others that are still there would have to be
 * found by whoever is in them. */
int rnamespace_plan(struct restore *r, struct rdesc *d, struct usnap_err *err)
{
	json_t *own;
	const char *link = NULL;
	char name[24];
	int ret = rjson_object(r->process, "namespaces", &own, err);

	if (ret < 0)
		return ret;
	bool known = split_name(d->path, name);
	if (known && own && (ret = rjson_text_or(own, name, NULL, &link, err)) < 0)
		return ret;
	if (known && link && !strcmp(link, d->path))
		return 0;
	d->how = RFILE_NULL;
	return rfile_problem(r, err, RESTORE_REFUSE, "namespace-descriptor",
			     "fd %d: %s is not a namespace of the process itself", d->fd, d->path);
}

int rnamespace_make(struct restore *r, struct rdesc *d, int *ret_fd, struct usnap_err *err)
{
	char name[24], path[64];

	if (!split_name(d->path, name))
		return rfile_fail(err, -EINVAL, d, "open");
	snprintf(path, sizeof(path), "/proc/self/ns/%s", name);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return rfile_fail(err, -errno, d, "open");
	*ret_fd = fd;
	return 0;
}

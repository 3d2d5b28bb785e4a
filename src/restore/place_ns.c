/* Namespaces made and furnished; place.h has the design. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/io.h"
#include "common/util.h"
#include "restore/place_internal.h"

#ifndef CLONE_NEWTIME /* Linux 5.6 */
#define CLONE_NEWTIME 0x00000080
#endif

bool place_capable(int cap)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2] = {{0}};

	return syscall(SYS_capget, &header, data) == 0 && data[cap / 32].effective & 1u << cap % 32;
}

/*
 * Asks for the PID that this process has: the kernel looks at permissions
 * before it finds that the number is in use (alloc_pid() in kernel/pid.c).
 */
int place_may_choose_pids(void)
{
	pid_t own = getpid();
	struct clone_args args = {
		.exit_signal = SIGCHLD,
		.set_tid = (uintptr_t)&own,
		.set_tid_size = 1,
	};
	long pid = syscall(SYS_clone3, &args, sizeof(args));

	if (pid == 0)
		_exit(0);
	if (pid > 0) {
		while (waitpid((pid_t)pid, NULL, 0) < 0 && errno == EINTR)
			;
		return 0;
	}
	return errno == EEXIST ? 0 : -errno;
}

uint64_t place_clone_flags(const struct place_spaces *s)
{
	return (s->users ? CLONE_NEWUSER : 0) | (s->pids ? CLONE_NEWPID | CLONE_NEWNS : 0);
}

static int write_file(const char *path, const char *text)
{
	cleanup_fd int fd = open(path, O_WRONLY | O_CLOEXEC);

	return fd < 0 ? -errno : io_write_full(fd, text, strlen(text));
}

static int read_setting(const char *path, char *buf, size_t room)
{
	cleanup_free char *text = NULL;
	int r = io_read_file_at(AT_FDCWD, path, KIB(4), &text, NULL);

	if (r < 0)
		return r;
	snprintf(buf, room, "%.*s", (int)strcspn(text, "\n"), text);
	return 0;
}

/* What this system has against user namespaces of ordinary users. */
static int hint_users(struct usnap_err *err, int code)
{
	char value[32];

	if (code == -ENOSPC || code == -EUSERS)
		return usnap_hint(err, "raise user.max_user_namespaces (sysctl), or run as root");
	if (read_setting("/proc/sys/kernel/unprivileged_userns_clone", value, sizeof(value)) == 0 &&
	    !strcmp(value, "0"))
		return usnap_hint(err, "'sysctl kernel.unprivileged_userns_clone=1', or run as "
				       "root");
	if (read_setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", value,
			 sizeof(value)) == 0 &&
	    strcmp(value, "0") != 0)
		return usnap_hint(err, "'sysctl kernel.apparmor_restrict_unprivileged_userns=0', "
				       "or an AppArmor profile for uffd-snap with 'userns,', or "
				       "run as root");
	return usnap_hint(err, "run as root, or where a seccomp profile or security module "
			       "allows user namespaces");
}

int place_no_clone(const struct place_spaces *s, int code, struct usnap_err *err)
{
	usnap_fail_errno(err, code, "cannot make a PID namespace%s",
			 s->users ? " within a user namespace" : "");
	if (s->users)
		return hint_users(err, code);
	if (code == -ENOSPC)
		return usnap_hint(err, "raise user.max_pid_namespaces and user.max_mnt_namespaces "
				       "(sysctl)");
	return code;
}

/* The own user and group, and nobody else's: all that an ordinary user may map. */
static int map_users(uid_t uid, gid_t gid, struct usnap_err *err)
{
	char line[64];
	int r = write_file("/proc/self/setgroups", "deny");

	if (r == 0 || r == -ENOENT) {
		snprintf(line, sizeof(line), "%u %u 1", (unsigned)uid, (unsigned)uid);
		r = write_file("/proc/self/uid_map", line);
	}
	if (r == 0) {
		snprintf(line, sizeof(line), "%u %u 1", (unsigned)gid, (unsigned)gid);
		r = write_file("/proc/self/gid_map", line);
	}
	if (r == 0)
		return 0;
	usnap_fail_errno(err, r, "cannot map user %u into the user namespace", (unsigned)uid);
	return hint_users(err, r);
}

/* Everything is mounted as outside, now and later, but /proc, which shows the new PIDs. */
static int mount_proc(struct usnap_err *err)
{
	if (mount(NULL, "/proc", NULL, MS_PRIVATE, NULL) == 0 &&
	    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) == 0)
		return 0;
	int r = -errno;
	usnap_fail_errno(err, r, "cannot mount '/proc' for the PID namespace");
	if (r == -EPERM || r == -EACCES)
		return usnap_hint(err, "in a container that hides parts of /proc this cannot be: "
				       "restore outside of it, or under numbers that are free "
				       "(--same-pid)");
	return r;
}

int place_set_clocks(const struct timens_offsets *offsets, struct usnap_err *err)
{
	const struct {
		const char *name;
		int64_t ns;
	} clocks[] = {{"monotonic", offsets->monotonic_ns}, {"boottime", offsets->boottime_ns}};
	char text[160];
	size_t len = 0;
	int r = 0;

	for (size_t i = 0; i < ARRAY_SIZE(clocks); i++) {
		int64_t seconds = clocks[i].ns / 1000000000, rest = clocks[i].ns % 1000000000;

		if (rest < 0) {
			seconds--;
			rest += 1000000000;
		}
		len += (size_t)snprintf(text + len, sizeof(text) - len,
					"%s %" PRId64 " %" PRId64 "\n", clocks[i].name, seconds,
					rest);
	}
	if (unshare(CLONE_NEWTIME) < 0)
		r = -errno;
	if (r == 0)
		r = write_file("/proc/self/timens_offsets", text);
	if (r == 0) {
		/* This process, too: what it computes with, the clocks of the process must show. */
		cleanup_fd int ns = open("/proc/self/ns/time_for_children", O_RDONLY | O_CLOEXEC);

		if (ns < 0 || setns(ns, CLONE_NEWTIME) < 0)
			r = -errno;
	}
	if (r == 0)
		return 0;
	usnap_fail_errno(err, r, "cannot set the clocks of the process in a time namespace");
	if (r == -EPERM)
		return usnap_hint(err,
				  "run as root (CAP_SYS_ADMIN and CAP_SYS_TIME), or with "
				  "--pid-namespace where user namespaces are allowed; --ignore "
				  "clocks lets the clocks jump");
	return usnap_hint(err, "--ignore clocks lets the clocks of the process jump");
}

int place_furnish(const struct place_spaces *s, uid_t uid, gid_t gid, struct usnap_err *err)
{
	int r = 0;

	/* The /proc of outside still: it shows this process to itself. */
	if (s->users)
		r = map_users(uid, gid, err);
	if (r == 0 && s->pids)
		r = mount_proc(err);
	if (r == 0 && s->clocks)
		r = place_set_clocks(&s->offsets, err);
	return r;
}

int place_try(const struct place_spaces *s, struct usnap_err *err)
{
	uid_t uid = geteuid();
	gid_t gid = getegid();
	struct clone_args args = {.flags = place_clone_flags(s), .exit_signal = SIGCHLD};
	struct usnap_err *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
					MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (shared == MAP_FAILED)
		return usnap_fail_errno(err, -errno, "cannot try out namespaces");
	long pid = syscall(SYS_clone3, &args, sizeof(args));
	if (pid == 0)
		_exit(place_furnish(s, uid, gid, shared) < 0 ? 1 : 0);
	int r = pid < 0 ? place_no_clone(s, -errno, err) : 0;
	if (pid > 0) {
		int status = 0;

		while (waitpid((pid_t)pid, &status, 0) < 0 && errno == EINTR)
			;
		if (status && !shared->code)
			usnap_fail(shared, -ECHILD, "cannot try out namespaces: the child ended");
		if (shared->code) {
			*err = *shared;
			r = shared->code;
		}
	}
	munmap(shared, sizeof(*shared));
	return r;
}

/*
 * Seccomp filters, as in containers: which of the system calls that we need they refuse, here and
 * in a target.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cli/check.h"
#include "common/io.h"
#include "common/util.h"
#include "process/filters.h"

#define NOWHERE ((uint64_t)-1)

/* clang-format off */
static const struct filter_call snapshot_calls[] = {
	{"ptrace", SYS_ptrace, {PTRACE_SEIZE, 0}, ESRCH},
	{"process_vm_readv", SYS_process_vm_readv, {0, 0, NOWHERE}, EINVAL},
	{"pidfd_open", SYS_pidfd_open, {NOWHERE, 0}, EINVAL},
	{"pidfd_getfd", SYS_pidfd_getfd, {NOWHERE, 0, 0}, EBADF},
	{"pidfd_send_signal", SYS_pidfd_send_signal, {NOWHERE, 0, 0, 0}, EBADF},
	{"kcmp", SYS_kcmp, {NOWHERE, NOWHERE}, ESRCH},
};

static const struct filter_call restore_calls[] = {
	{"clone3", SYS_clone3, {0, 0}, EINVAL},
	{"process_vm_writev", SYS_process_vm_writev, {0, 0, NOWHERE}, EINVAL},
	{"unshare", SYS_unshare, {1}, EINVAL}, /* 1 is no flag */
	{"setns", SYS_setns, {NOWHERE, 0}, EBADF},
	{"mount", SYS_mount, {0, 0, 0, 0, 0}, EFAULT},
};
/* clang-format on */

static int own_mode(void)
{
	cleanup_free char *text = NULL;

	if (io_read_file_at(AT_FDCWD, "/proc/self/status", KIB(256), &text, NULL) < 0)
		return 0;
	const char *s = strstr(text, "\nSeccomp:");
	return s ? (int)strtol(s + strlen("\nSeccomp:"), NULL, 10) : 0;
}

static bool can_open_device(void)
{
	cleanup_fd int fd = open("/dev/userfaultfd", O_RDONLY | O_CLOEXEC);

	return fd >= 0;
}

/* What the calls of a list that do not pass are called, each once. */
static size_t name_refused(const struct filter_call *calls, size_t n, char *buf, size_t size)
{
	enum filter_result result[32];
	size_t refused = 0, len = 0;

	buf[0] = '\0';
	n = MIN(n, ARRAY_SIZE(result));
	filters_try(calls, n, result);
	for (size_t i = 0; i < n; i++) {
		if (result[i] == FILTER_PASSED || (refused && calls[i].name == calls[i - 1].name))
			continue;
		refused++;
		if (len < size)
			len += (size_t)snprintf(buf + len, size - len, "%s%s", len ? ", " : "",
						calls[i].name);
	}
	return refused;
}

static void settle_calls(struct check *c, const struct filter_call *calls, size_t n)
{
	char refused[160];

	if (!name_refused(calls, n, refused, sizeof(refused))) {
		check_settle(c, CHECK_OK, "all pass the seccomp filter that is in force here");
		return;
	}
	check_settle(c, CHECK_MISSING, "a seccomp filter, as of a container, refuses %s", refused);
	check_grant(c,
		    "a seccomp profile that lets %s through, such as uffd-snap-seccomp.json among "
		    "the examples%s; or run outside of the container",
		    refused,
		    strstr(refused, "pidfd_getfd") ? "; docker's own does with --cap-add SYS_PTRACE"
						   : "");
}

/* Nothing else says why a right that one has is of no use. */
void check_filters(struct checks *cs)
{
	struct check *s =
		check_add(cs, "system calls of snapshots", false, "what fails for it shows above");
	struct check *r = check_add(cs, "system calls of restores", false,
				    "no restore, or none in a PID namespace");

	if (!own_mode()) {
		check_settle(s, CHECK_OK, "no seccomp filter here");
		check_settle(r, CHECK_OK, "no seccomp filter here");
		return;
	}
	settle_calls(s, snapshot_calls, ARRAY_SIZE(snapshot_calls));
	settle_calls(r, restore_calls, ARRAY_SIZE(restore_calls));
}

/* ---- the target --------------------------------------------------------------- */

static bool may_suspend(const struct checks *cs)
{
	for (size_t i = 0; i < cs->n; i++)
		if (!strcmp(cs->c[i].name, CHECK_SUSPENDING))
			return cs->c[i].state == CHECK_OK;
	return false;
}

static void settle_shared(struct check *c)
{
	const struct filter_call *calls;
	size_t n = filters_target_calls(&calls);
	char refused[160];

	if (!filters_are_harmless()) {
		check_settle(c, CHECK_MISSING,
			     "those of this container, which end a process for a call that a "
			     "snapshot makes in its target");
		check_grant(c, "a seccomp profile that refuses with an error, or root on the host");
		return;
	}
	if (!name_refused(calls, n, refused, sizeof(refused))) {
		check_settle(c, CHECK_OK, "those of this container; what a snapshot calls passes");
		return;
	}
	/* The first of the list has a substitute; what comes after the calls that
	 * make the userfaultfd and steer the threads is asked for what it tells. */
	bool no_syscall = strncmp(refused, "userfaultfd", 11) == 0;
	const char *essential[] = {"clone", "close", "getpid", "tgkill", "rt_sigprocmask"};
	bool fails = no_syscall && (!can_open_device() || strstr(refused, "ioctl") ||
				    strstr(refused, "socketpair") || strstr(refused, "recvmsg"));
	for (size_t i = 0; i < ARRAY_SIZE(essential); i++)
		fails = fails || strstr(refused, essential[i]);
	check_settle(c, fails ? CHECK_MISSING : CHECK_OK,
		     "those of this container, which refuse %s%s", refused,
		     fails ? "" : ": a snapshot can do without");
	if (fails)
		check_grant(c,
			    "a seccomp profile that lets %s through, such as "
			    "uffd-snap-seccomp.json among the examples%s",
			    refused,
			    no_syscall ? "; in place of userfaultfd also --device "
					 "/dev/userfaultfd, with permission to open it"
				       : "");
}

void check_target_filter(struct checks *cs, const struct target *t)
{
	struct check *c = check_add(cs, "seccomp filters of the target", true, "no snapshot of it");
	struct filters_seen seen;

	if (filters_look(t, &seen) < 0)
		return;
	if (!seen.any) {
		check_settle(c, CHECK_OK, "none");
	} else if (may_suspend(cs)) {
		check_settle(c, CHECK_OK, "suspended for the calls that a snapshot makes");
	} else if (seen.ours) {
		settle_shared(c);
	} else {
		check_settle(c, CHECK_MISSING,
			     "there are some that this command is not under: what they would do "
			     "is not known, and they cannot be suspended from here");
		check_grant(c, "run as root and under no filter, for a container on its host; or "
			       "start the command from the target, as UFFD_SNAP_EVERY does, or the "
			       "target from it ('uffd-snap run')");
	}
}

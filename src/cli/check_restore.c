/* What a restore needs. */
#include <errno.h>
#include <linux/capability.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "cli/check.h"
#include "restore/place_ns.h"

#ifndef PR_SET_MM_MAP_SIZE /* Linux 3.18 */
#define PR_SET_MM_MAP_SIZE 15
#endif

static void check_choosing(struct checks *cs)
{
	struct check *c = check_add(cs, "choosing PIDs", false,
				    "a restored process gets its numbers in a PID namespace only");
	int r = place_may_choose_pids();

	check_settle(c, r < 0 ? CHECK_MISSING : CHECK_OK, "clone3(2) with set_tid: %s",
		     r < 0 ? strerrordesc_np(-r) : "works");
	if (r == -EPERM)
		check_grant(c,
			    "run as root, or 'setcap cap_checkpoint_restore,cap_sys_ptrace+ep' on "
			    "the program");
	else if (r < 0)
		check_grant(c, "Linux 5.5 or newer; in a container: a seccomp profile that lets "
			       "clone3(2) through");
}

static void settle_spaces(struct check *c, const struct place_spaces *s)
{
	struct usnap_err err = {0};

	if (place_try(s, &err) == 0) {
		check_settle(c, CHECK_OK, "made and furnished%s",
			     s->users ? ", within a user namespace" : "");
		return;
	}
	check_settle(c, CHECK_MISSING, "%.190s", err.text);
	check_grant(c, "%s", err.hint);
}

static void check_spaces(struct checks *cs)
{
	struct place_spaces s = {.pids = true, .users = !place_capable(CAP_SYS_ADMIN)};

	settle_spaces(check_add(cs, "PID namespaces", false,
				"a process whose numbers are taken, or may not be chosen, cannot "
				"be restored"),
		      &s);
	s.clocks = true;
	settle_spaces(check_add(cs, "time namespaces", false,
				"the clocks of a process restored on another machine, or after a "
				"reboot, jump"),
		      &s);
}

static void check_memory_map(struct checks *cs)
{
	struct check *c = check_add(cs, "PR_SET_MM_MAP", false, "no process can be restored");
	unsigned size = 0;
	int r = prctl(PR_SET_MM, PR_SET_MM_MAP_SIZE, &size, 0, 0) < 0 ? -errno : 0;

	check_settle(c, r < 0 ? CHECK_MISSING : CHECK_OK, "prctl(2): %s",
		     r < 0 ? strerrordesc_np(-r) : "works");
	if (r < 0)
		check_grant(c, "a kernel with CONFIG_CHECKPOINT_RESTORE");
}

static void check_vm_write(struct checks *cs)
{
	struct check *c = check_add(cs, "process_vm_writev", false, "no process can be restored");
	volatile char from = 1, to = 0;
	struct iovec local = {(void *)&from, 1}, remote = {(void *)&to, 1};
	int r = process_vm_writev(getpid(), &local, 1, &remote, 1, 0) == 1 ? 0 : -errno;

	check_settle(c, r < 0 ? CHECK_MISSING : CHECK_OK, "process_vm_writev(2): %s",
		     r < 0 ? strerrordesc_np(-r) : "works");
	if (r < 0)
		check_grant(c, "in a container: a seccomp profile that lets the call through, as "
			       "with --cap-add SYS_PTRACE");
}

void check_restore(struct checks *cs)
{
	check_choosing(cs);
	check_spaces(cs);
	check_memory_map(cs);
	check_vm_write(cs);
}

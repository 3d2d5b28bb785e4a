/* Can this process be taken? */
#include <fcntl.h>
#include <linux/capability.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/check.h"
#include "common/io.h"
#include "common/util.h"
#include "process/target.h"

#define INITIAL_USER_NS 4026531837u /* PROC_USER_INIT_INO, include/linux/proc_ns.h */

static bool in_initial_user_ns(const struct target *t)
{
	struct stat st;

	return fstatat(t->procfd, "ns/user", &st, 0) == 0 && st.st_ino == INITIAL_USER_NS;
}

/* The userfaultfd is made by the target, with the target's permissions: or
 * from /dev/userfaultfd, which is opened here and handed over. */
static void check_target_userfaultfd(struct checks *cs, const struct target *t)
{
	struct check *c = check_add(cs, "userfaultfd in the target", true, "no snapshot of it");
	cleanup_free char *sysctl = NULL;
	bool open_to_all = io_read_file_at(AT_FDCWD, "/proc/sys/vm/unprivileged_userfaultfd", 64,
					   &sysctl, NULL) == 0 &&
			   atoi(sysctl);
	bool capable = check_capabilities(t->procfd) & (1ull << CAP_SYS_PTRACE);
	cleanup_fd int device = open("/dev/userfaultfd", O_RDONLY | O_CLOEXEC);

	if (device >= 0) {
		check_settle(c, CHECK_OK, "/dev/userfaultfd can be handed to it");
	} else if (open_to_all) {
		check_settle(c, CHECK_OK, "vm.unprivileged_userfaultfd is 1");
	} else if (capable && in_initial_user_ns(t)) {
		check_settle(c, CHECK_OK, "it holds CAP_SYS_PTRACE");
	} else {
		check_settle(c, CHECK_MISSING,
			     "no access to /dev/userfaultfd here, vm.unprivileged_userfaultfd is "
			     "0, and the target has no CAP_SYS_PTRACE%s",
			     capable ? " in the initial user namespace" : "");
		check_grant(c, "run as root; or 'setfacl -m u:USER:r /dev/userfaultfd' for the "
			       "user who takes the snapshot; or 'sysctl -w "
			       "vm.unprivileged_userfaultfd=1'");
	}
}

void check_target(struct checks *cs, pid_t pid)
{
	struct check *c = check_add(cs, "the target", true, "no snapshot of it");
	struct usnap_err err = {0};
	struct target t;

	if (target_open(&t, pid, &err) < 0) {
		check_settle(c, CHECK_MISSING, "%s", err.text);
		check_grant(c, "%s", err.hint);
		return;
	}
	check_settle(c, CHECK_OK, "process %d (%s)", (int)pid, t.comm);
	check_target_userfaultfd(cs, &t);
	check_target_filter(cs, &t);
	target_close(&t);
}

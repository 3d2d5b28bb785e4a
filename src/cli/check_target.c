/* Can this process be taken? */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/check.h"
#include "common/io.h"
#include "common/util.h"
#include "process/target.h"

#define INITIAL_USER_NS 4026531837u /* PROC_USER_INIT_INO, include/linux/proc_ns.h */

enum {
	MAX_GROUPS = 64
};

struct credentials {
	uid_t uid; /* of file accesses */
	gid_t gid;
	gid_t groups[MAX_GROUPS];
	size_t nr_groups;
	bool complete;
};

static bool read_credentials(int procfd, struct credentials *ret)
{
	cleanup_free char *text = NULL;
	unsigned id[4];

	*ret = (struct credentials){.complete = true};
	if (io_read_file_at(procfd, "status", KIB(256), &text, NULL) < 0)
		return false;
	const char *s = strstr(text, "\nUid:");
	if (!s || sscanf(s + 5, "%u %u %u %u", &id[0], &id[1], &id[2], &id[3]) != 4)
		return false;
	ret->uid = id[3];
	s = strstr(text, "\nGid:");
	if (!s || sscanf(s + 5, "%u %u %u %u", &id[0], &id[1], &id[2], &id[3]) != 4)
		return false;
	ret->gid = id[3];
	s = strstr(text, "\nGroups:");
	if (!s)
		return true;
	for (s += 8; *s && *s != '\n';) {
		char *end;
		unsigned long g = strtoul(s, &end, 10);

		if (end == s)
			break;
		if (ret->nr_groups == MAX_GROUPS) {
			ret->complete = false;
			break;
		}
		ret->groups[ret->nr_groups++] = (gid_t)g;
		s = end + strspn(end, " \t");
	}
	return true;
}

/* Could the target open the device? Tried in a child with the target's
 * identity, so that modes, ACLs and mount options all have their say.
 * 1 yes, 0 no, -1 not known. */
static int target_can_open_device(const struct target *t)
{
	struct credentials cred;
	cleanup_fd int dir = openat(t->procfd, "root/dev", O_PATH | O_DIRECTORY | O_CLOEXEC);

	if (dir < 0 || !read_credentials(t->procfd, &cred))
		return -1;
	pid_t pid = fork();
	if (pid < 0)
		return -1;
	if (pid == 0) {
		if (cred.uid != geteuid() || geteuid() == 0) {
			if (!cred.complete || setgroups(cred.nr_groups, cred.groups) < 0 ||
			    setresgid(cred.gid, cred.gid, cred.gid) < 0 ||
			    setresuid(cred.uid, cred.uid, cred.uid) < 0)
				_exit(2);
		}
		_exit(openat(dir, "userfaultfd", O_RDWR | O_CLOEXEC) >= 0 ? 0 : 1);
	}
	int status;
	while (waitpid(pid, &status, 0) < 0) {
		if (errno != EINTR)
			return -1;
	}
	if (!WIFEXITED(status) || WEXITSTATUS(status) == 2)
		return -1;
	return WEXITSTATUS(status) == 0;
}

static bool in_initial_user_ns(const struct target *t)
{
	struct stat st;

	return fstatat(t->procfd, "ns/user", &st, 0) == 0 && st.st_ino == INITIAL_USER_NS;
}

/* The userfaultfd is made by the target, with the target's permissions. */
static void check_target_userfaultfd(struct checks *cs, const struct target *t)
{
	struct check *c = check_add(cs, "userfaultfd in the target", true, "no snapshot of it");
	cleanup_free char *sysctl = NULL;
	bool open_to_all = io_read_file_at(AT_FDCWD, "/proc/sys/vm/unprivileged_userfaultfd", 64,
					   &sysctl, NULL) == 0 &&
			   atoi(sysctl);
	bool capable = check_capabilities(t->procfd) & (1ull << CAP_SYS_PTRACE);
	int device = target_can_open_device(t);

	if (open_to_all) {
		check_settle(c, CHECK_OK, "vm.unprivileged_userfaultfd is 1");
	} else if (capable && in_initial_user_ns(t)) {
		check_settle(c, CHECK_OK, "it holds CAP_SYS_PTRACE");
	} else if (device == 1) {
		check_settle(c, CHECK_OK, "it can open /dev/userfaultfd");
	} else {
		check_settle(c, device < 0 ? CHECK_UNKNOWN : CHECK_MISSING,
			     "it has no CAP_SYS_PTRACE%s, vm.unprivileged_userfaultfd is 0, %s",
			     capable ? " in the initial user namespace" : "",
			     device < 0 ? "and whether it can open /dev/userfaultfd is not known"
					: "and it cannot open /dev/userfaultfd");
		check_grant(c, "'sysctl -w vm.unprivileged_userfaultfd=1'; or 'setfacl -m "
			       "u:USER:rw /dev/userfaultfd' for the user the target runs as");
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
	target_close(&t);
}

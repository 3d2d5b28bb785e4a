#include "capture/sharers.h"

#include <dirent.h>
#include <errno.h>
#include <linux/kcmp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/procstat.h"
#include "common/util.h"

/* The main thread may have ended: it has no memory then, as kernel threads have none. */
static pid_t live_thread(pid_t target)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/%d/task", (int)target);

	cleanup_dir DIR *d = opendir(path);
	struct dirent *e;

	while (d && (e = readdir(d))) {
		pid_t tid = atoi(e->d_name);
		struct procstat st;

		if (tid > 0 && procstat_read(tid, &st) == 0 && !st.ends)
			return tid;
	}
	return 0;
}

static bool shares(pid_t a, pid_t b)
{
	return syscall(SYS_kcmp, a, b, KCMP_VM, 0, 0) == 0;
}

int sharers_note(struct sharers *s, pid_t target)
{
	cleanup_dir DIR *d = opendir("/proc");
	pid_t like = live_thread(target);
	struct dirent *e;

	s->nr = 0;
	while (like && d && (e = readdir(d))) {
		pid_t pid = atoi(e->d_name);

		if (pid <= 0 || pid == target || !shares(like, pid))
			continue;
		pid_t *more = realloc(s->pid, (s->nr + 1) * sizeof(*more));

		if (!more)
			return -ENOMEM;
		s->pid = more;
		s->pid[s->nr++] = pid;
	}
	return 0;
}

int sharers_check(const struct sharers *s, pid_t target, struct usnap_err *err)
{
	pid_t like = s->nr ? live_thread(target) : 0;

	for (size_t i = 0; like && i < s->nr; i++) {
		struct procstat st;

		if (!shares(like, s->pid[i]) || procstat_read(s->pid[i], &st) < 0 || st.ends)
			continue;
		usnap_fail(err, -ENOTSUP,
			   "cannot snapshot process %d: process %d (%s) shares its memory without "
			   "being a thread of it, and does not stop with it",
			   (int)target, (int)s->pid[i], st.comm);
		return usnap_hint(err,
				  "it works once that has ended, or runs a program of its own");
	}
	return 0;
}

void sharers_free(struct sharers *s)
{
	free(s->pid);
	*s = (struct sharers){0};
}

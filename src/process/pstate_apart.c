/*
 * Threads that do not share what threads of a process share as a rule: working
 * directory, root and umask (CLONE_FS), descriptors (CLONE_FILES), namespaces.
 * Of these the image has those of the process alone.
 *
 * Not asked in the freeze. A thread that has left the first two cannot come
 * back to them: what is shared after T0 was shared at T0, and what was not
 * before it was not at T0. Between, a thread that may have left is told of.
 * Namespaces are read before the freeze, as those of the process are.
 */
#include <errno.h>
#include <linux/kcmp.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/io.h"
#include "common/util.h"
#include "process/pstate_internal.h"

enum {
	APART_FS = 1,
	APART_FILES = 2,
	APART_NAMESPACES = 4,
};

/* Those that one thread of several can change; mnt only with APART_FS. */
static const char *const names[] = {
	"cgroup", "ipc", "mnt", "net", "pid_for_children", "time_for_children", "uts"};
_Static_assert(ARRAY_SIZE(names) == NR_THREAD_NAMESPACES, "a link for each");

/* Empty: it has none any more, or does not tell. */
static void read_link(const struct pstate *ps, pid_t tid, size_t i, ns_link *ret)
{
	char path[64];

	snprintf(path, sizeof(path), "%d/ns/%s", (int)tid, names[i]);
	ssize_t n = readlinkat(ps->task_fd, path, *ret, sizeof(*ret) - 1);
	(*ret)[MAX(n, 0)] = '\0';
}

static bool links_differ(const struct pstate *ps, pid_t tid, const char *name)
{
	cleanup_free char *a = NULL, *b = NULL;
	char path[64];

	snprintf(path, sizeof(path), "%d/%s", (int)tid, name);
	if (io_readlink_at(ps->task_fd, path, &a) < 0)
		return false;
	snprintf(path, sizeof(path), "%d/%s", (int)ps->like, name);
	return io_readlink_at(ps->task_fd, path, &b) == 0 && strcmp(a, b) != 0;
}

static bool differs(const struct pstate *ps, pid_t tid, int type)
{
	long r = syscall(SYS_kcmp, ps->like, tid, type, 0, 0);

	/* Where the kernel has no kcmp, or does not tell us, this much can be seen. */
	if (r < 0 && errno != ESRCH && type == KCMP_FS)
		return links_differ(ps, tid, "cwd") || links_differ(ps, tid, "root");
	return r > 0;
}

static bool namespaces_differ(const struct pstate *ps, pid_t tid)
{
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		ns_link link;

		read_link(ps, tid, i, &link);
		if (link[0] && ps->like_ns[i][0] && strcmp(link, ps->like_ns[i]) != 0)
			return true;
	}
	return false;
}

static unsigned look(const struct pstate *ps, pid_t tid, bool namespaces)
{
	unsigned found = 0;

	if (!ps->like || tid == ps->like)
		return 0;
	if (differs(ps, tid, KCMP_FS))
		found |= APART_FS;
	if (differs(ps, tid, KCMP_FILES))
		found |= APART_FILES;
	if (namespaces && namespaces_differ(ps, tid))
		found |= APART_NAMESPACES;
	/* Of a thread that ends all of it is taken, its memory first. */
	return found && differs(ps, tid, KCMP_VM) ? 0 : found;
}

/* The process is as its main thread is; when that has ended, as any other. */
static void take_as_process(struct pstate *ps, pid_t tid)
{
	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		read_link(ps, tid, i, &ps->like_ns[i]);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (ps->like_ns[i][0])
			ps->like = tid;
}

void apart_prepare(struct pstate *ps)
{
	take_as_process(ps, ps->t->pid);
	for (size_t i = 0; i < ps->nr_preps && !ps->like; i++)
		take_as_process(ps, ps->preps[i].tid);
	for (size_t i = 0; i < ps->nr_preps; i++)
		ps->preps[i].apart = look(ps, ps->preps[i].tid, true);
}

void limit_apart(const struct pstate *ps, json_t *l)
{
	static const struct {
		unsigned bit;
		const char *what;
	} kinds[] = {
		{APART_FS, "a working directory, a root and a umask"},
		{APART_FILES, "a table of descriptors"},
		{APART_NAMESPACES, "namespaces"},
	};
	size_t n[ARRAY_SIZE(kinds)] = {0};
	pid_t first[ARRAY_SIZE(kinds)] = {0};

	for (size_t i = 0; i < ps->nr_threads; i++) {
		pid_t tid = ps->threads[i].tid;
		const struct thread_prep *p = threads_find_prep(ps, tid);
		unsigned found = (p ? p->apart : 0) | look(ps, tid, !p);

		for (size_t k = 0; k < ARRAY_SIZE(kinds); k++)
			if (found & kinds[k].bit && !n[k]++)
				first[k] = tid;
	}
	for (size_t k = 0; k < ARRAY_SIZE(kinds); k++)
		if (n[k])
			limit_add(l, "thread-context", "refuse",
				  "%zu threads (the first is %d) have %s of their own, which the "
				  "image has not",
				  n[k], (int)first[k], kinds[k].what);
}

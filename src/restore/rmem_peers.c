/*
 * Shared memory with a name that others have mapped: a restore would make of
 * it what it was at T0, under their hands.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "common/util.h"
#include "restore/rmem_internal.h"

struct peer {
	pid_t pid;
	char comm[32];
};

/* As /proc/PID/maps has it. */
struct identity {
	unsigned major, minor;
	unsigned long long inode;
};

/* Whether what is there now becomes what it was. */
static bool is_rewritten(const struct rmem *m, const struct rmem_object *ob, struct identity *ret)
{
	bool shared = false;
	struct stat st;

	for (size_t i = ob->at; i < ob->at + ob->nr_regions; i++)
		shared |= m->order[i]->shared;
	if (!shared)
		return false;
	/* The identifier of a segment is its inode. */
	*ret = (struct identity){ob->first->dev_major, ob->first->dev_minor, ob->first->inode};
	if (ob->how == OBJECT_SYSV)
		return true;
	if (ob->how != OBJECT_PATH || !ob->memory || stat(ob->first->path, &st) < 0)
		return false;
	*ret = (struct identity){major(st.st_dev), minor(st.st_dev), st.st_ino};
	return true;
}

static bool maps(const char *pid, const struct identity *id)
{
	cleanup_free char *line = NULL;
	struct identity have;
	bool found = false;
	char path[64];
	size_t room = 0;

	snprintf(path, sizeof(path), "/proc/%.20s/maps", pid);
	FILE *f = fopen(path, "re");
	while (f && !found && getline(&line, &room, f) > 0)
		found = sscanf(line, "%*x-%*x %*4s %*x %x:%x %llu", &have.major, &have.minor,
			       &have.inode) == 3 &&
			have.major == id->major && have.minor == id->minor &&
			have.inode == id->inode;
	if (f)
		fclose(f);
	return found;
}

static void read_comm(struct peer *p)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/comm", (int)p->pid);
	FILE *f = fopen(path, "re");
	if (!f || !fgets(p->comm, sizeof(p->comm), f))
		p->comm[0] = '\0';
	p->comm[strcspn(p->comm, "\n")] = '\0';
	if (f)
		fclose(f);
}

/* Of those whose maps this user may read. */
static bool find_peer(const struct identity *id, struct peer *ret)
{
	DIR *d = opendir("/proc");
	struct dirent *e;
	bool found = false;

	while (d && !found && (e = readdir(d))) {
		ret->pid = (pid_t)strtol(e->d_name, NULL, 10);
		found = ret->pid > 0 && ret->pid != getpid() && maps(e->d_name, id);
	}
	if (d)
		closedir(d);
	if (found)
		read_comm(ret);
	return found;
}

int rmem_judge_peers(struct restore *r, struct usnap_err *err)
{
	const struct rmem *m = r->mem;
	int e = 0;

	for (size_t i = 0; i < m->nr_objects && e == 0; i++) {
		const struct rmem_object *ob = &m->objects[i];
		struct identity id;
		struct peer p;

		if (is_rewritten(m, ob, &id) && find_peer(&id, &p))
			e = restore_problem(r, RESTORE_REFUSE, "shared-memory-in-use",
					    "'%.2000s': process %d (%s) has it mapped, and would "
					    "find in it what it was when the snapshot was taken",
					    ob->first->path, (int)p.pid, p.comm);
	}
	return e < 0 ? usnap_fail_errno(err, e, "cannot restore the memory") : 0;
}

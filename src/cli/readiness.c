#include "cli/readiness.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "common/io.h"
#include "common/util.h"
#include "store/store.h"

/* What the process takes for its own PID; 0: cannot be told. */
static pid_t innermost(pid_t pid)
{
	cleanup_free char *text = NULL;
	char path[32], *s, *end;
	long v = 0;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	if (io_read_file_at(AT_FDCWD, path, KIB(256), &text, NULL) < 0 ||
	    !(s = strstr(text, "\nNSpid:")))
		return 0;
	for (s += 7; *s == '\t' || *s == ' '; s = end) {
		v = strtol(s, &end, 10);
		if (end == s)
			break;
	}
	return (pid_t)v;
}

static bool find(pid_t pid, struct agent_found *ret)
{
	struct maps maps = {0};
	char path[32];
	bool found;

	snprintf(path, sizeof(path), "/proc/%d", (int)pid);
	cleanup_fd int procfd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (procfd < 0 || maps_read(procfd, &maps) < 0)
		return false;
	found = agent_find(pid, &maps, ret) > 0;
	maps_free(&maps);
	return found;
}

bool readiness_agent(pid_t pid, uint64_t beacon, struct agent_found *ret)
{
	if (!(beacon && agent_look(pid, beacon, ret) > 0) && !find(pid, ret))
		return false;
	return !(ret->block.flags & AGENT_INJECTED) && ret->block.pid > 0 &&
	       ret->block.pid == innermost(pid);
}

bool readiness_of(const struct registry *r, pid_t pid, bool look, char name[RUNDIR_NAME_MAX + 1])
{
	const struct registry_entry *e = r ? registry_of(r, pid) : NULL;
	struct agent_found found;

	/* What it would follow as a daemon lives: it is a child like others. */
	if (!e && r && registry_knows(r, pid))
		return false;

	name[0] = '\0';
	if (e)
		snprintf(name, RUNDIR_NAME_MAX + 1, "%s", e->name);
	else if (look && readiness_agent(pid, 0, &found))
		snprintf(name, RUNDIR_NAME_MAX + 1, "%.*s", RUNDIR_NAME_MAX, found.block.name);
	else
		return false;
	/* It was written by others: as the name of a directory it must be one. */
	if (*name && !store_name_valid(name))
		name[0] = '\0';
	return true;
}

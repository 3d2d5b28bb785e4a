#include "cli/readiness.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "common/io.h"
#include "common/util.h"
#include "store/store.h"

enum {
	PATIENCE_MS = 500, /* with the memory of somebody else's process */
	MAX_LOOKS = 8 /* at mappings of one that look like a beacon from outside */
};

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

/* By all its user IDs: the owner of its directory in /proc is root when it is not dumpable. */
bool readiness_is_ours(pid_t pid)
{
	cleanup_free char *text = NULL;
	const char *s;
	char path[32];
	unsigned id[4];

	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	if (io_read_file_at(AT_FDCWD, path, KIB(256), &text, NULL) < 0 ||
	    !(s = strstr(text, "\nUid:")) ||
	    sscanf(s, " Uid: %u %u %u %u", &id[0], &id[1], &id[2], &id[3]) != 4)
		return false;
	for (size_t i = 0; i < ARRAY_SIZE(id); i++)
		if (id[i] != geteuid())
			return false;
	return true;
}

/*
 * What others have mapped there may be a file whose pages somebody hands out when it pleases him
 * (FUSE, userfaultfd): who reads it waits, and not even SIGKILL always ends that. So it is a child
 * who reads.
 */
static bool look_from_afar(pid_t pid, uint64_t beacon, struct agent_found *ret)
{
	int pipe_[2];
	bool found;

	if (pipe2(pipe_, O_CLOEXEC) < 0)
		return false;
	pid_t child = fork();
	if (child == 0) {
		if (agent_look(pid, beacon, ret) > 0)
			io_write_full(pipe_[1], ret, sizeof(*ret));
		_exit(0);
	}
	close(pipe_[1]);
	struct pollfd p = {.fd = pipe_[0], .events = POLLIN};
	found = child > 0 && poll(&p, 1, PATIENCE_MS) > 0 &&
		io_read_full(pipe_[0], ret, sizeof(*ret)) == 0;
	if (child > 0 && !p.revents)
		kill(child, SIGKILL);
	else if (child > 0)
		waitpid(child, NULL, 0);
	close(pipe_[0]);
	return found;
}

static bool look(pid_t pid, uint64_t beacon, struct agent_found *ret)
{
	return readiness_is_ours(pid) ? agent_look(pid, beacon, ret) > 0
				      : look_from_afar(pid, beacon, ret);
}

static bool find(pid_t pid, struct agent_found *ret)
{
	struct maps maps = {0};
	char path[32];
	unsigned nr = 0;
	bool found = false;

	snprintf(path, sizeof(path), "/proc/%d", (int)pid);
	cleanup_fd int procfd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (procfd < 0 || maps_read(procfd, &maps) < 0)
		return false;
	for (size_t i = 0; i < maps.n && !found && nr < MAX_LOOKS; i++)
		if (agent_beacon_fits(&maps.v[i])) {
			found = look(pid, maps.v[i].start, ret);
			nr++;
		}
	maps_free(&maps);
	return found;
}

bool readiness_agent(pid_t pid, uint64_t beacon, struct agent_found *ret)
{
	if (!(beacon && look(pid, beacon, ret)) && !find(pid, ret))
		return false;
	return !(ret->block.flags & AGENT_INJECTED) && ret->block.pid > 0 &&
	       ret->block.pid == innermost(pid);
}

bool readiness_of(const struct registry *r, pid_t pid, bool look_inside,
		  char name[RUNDIR_NAME_MAX + 1])
{
	const struct registry_entry *e = r ? registry_of(r, pid) : NULL;
	struct agent_found found;

	/* What it would follow as a daemon lives: it is a child like others. */
	if (!e && r && registry_knows(r, pid))
		return false;

	name[0] = '\0';
	if (e)
		snprintf(name, RUNDIR_NAME_MAX + 1, "%s", e->name);
	else if (look_inside && readiness_agent(pid, 0, &found))
		snprintf(name, RUNDIR_NAME_MAX + 1, "%.*s", RUNDIR_NAME_MAX, found.block.name);
	else
		return false;
	/* It was written by others: as the name of a directory it must be one. */
	if (*name && !store_name_valid(name))
		name[0] = '\0';
	return true;
}

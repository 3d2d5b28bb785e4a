#include "cli/restore_agent.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uffd-snap.h>

#include "cli/cli.h"
#include "cli/cmd_run.h"
#include "cli/msg.h"
#include "cli/readiness.h"
#include "common/io.h"
#include "common/procstat.h"
#include "common/util.h"

enum {
	MAX_ENVIRONMENT = 1 << 20
};

/* Of an environment as /proc shows it: strings, one after the other. */
static const char *variable(const char *env, size_t len, const char *name)
{
	size_t n = strlen(name);

	for (const char *e = env; e && e < env + len; e += strlen(e) + 1)
		if (!strncmp(e, name, n) && e[n] == '=')
			return e + n + 1;
	return NULL;
}

/* As the agent would have (service.c): not where "run" has it in hand. What it asks for is in memory
 * that it can write to: for another user's we would write files with our rights where he likes. */
static void serve(pid_t pid, uint64_t start_ticks, const char *name)
{
	static const char *const wanted[] = {"UFFD_SNAP_EVERY", "UFFD_SNAP_SIGNAL",
					     "UFFD_SNAP_KEEP", "UFFD_SNAP_STORE"};
	cleanup_free char *env = NULL;
	char path[64], which[64];
	const char *argv[] = {"uffd-snap", "run", "--background", "--pid", which, NULL};
	size_t len;

	snprintf(path, sizeof(path), "/proc/%d/environ", (int)pid);
	if (getenv("UFFD_SNAP_SUPERVISED") || !readiness_is_ours(pid) ||
	    io_read_file_at(AT_FDCWD, path, MAX_ENVIRONMENT, &env, &len) < 0 ||
	    variable(env, len, "UFFD_SNAP_SUPERVISED") ||
	    (!variable(env, len, wanted[0]) && !variable(env, len, wanted[1])))
		return;
	snprintf(which, sizeof(which), "%d:%" PRIu64, (int)pid, start_ticks);
	pid_t child = fork();
	if (child == 0) {
		for (size_t i = 0; i < ARRAY_SIZE(wanted); i++) {
			const char *value = variable(env, len, wanted[i]);

			if (value)
				setenv(wanted[i], value, 1);
			else if (i < 3)
				unsetenv(wanted[i]);
		}
		if (*name)
			setenv("UFFD_SNAP_NAME", name, 1);
		else
			unsetenv("UFFD_SNAP_NAME");
		snprintf(path, sizeof(path), "/proc/%d/cwd", (int)pid);
		if (chdir(path) < 0) {
			/* Only a store with a relative path is looked for from there. */
		}
		/* Not a child of this one, which stands in for the process. */
		_exit(run_self(argv, -1, -1) < 0 ? EXIT_FAILED : EXIT_DONE);
	}
	run_reap(child);
}

/* When it was taken last: at T0. */
static void remember(pid_t pid, uint64_t start_ticks, const char *image)
{
	struct usnap_image *img = usnap_image_new();
	struct usnap_info info;

	if (img && image && usnap_image_open(img, image) == 0 &&
	    usnap_image_get_info(img, &info, sizeof(info)) == 0)
		registry_end(registry_begin(pid, start_ticks), info.t0_realtime_ns / 1000000,
			     image);
	usnap_image_free(img);
}

void restore_agent(pid_t pid, const char *image)
{
	struct agent_found found;
	struct usnap_err err = {0};
	struct procstat stat;

	if (!readiness_agent(pid, 0, &found) || procstat_read(pid, &stat) < 0)
		return;
	struct registry_entry e = {
		.pid = pid, .start_ticks = stat.start_ticks, .beacon = found.beacon};
	snprintf(e.name, sizeof(e.name), "%.*s", RUNDIR_NAME_MAX, found.block.name);
	if (*e.name && !store_name_valid(e.name))
		e.name[0] = '\0';
	if (registry_add(&e, &err) < 0)
		msg_warning("%s", err.text);
	remember(pid, stat.start_ticks, image);
	serve(pid, stat.start_ticks, e.name);
}

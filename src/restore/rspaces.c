/*
 * Namespaces and cgroup of the process: it comes back in the restorer's, and
 * is told so where they were others.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "common/io.h"
#include "common/util.h"
#include "restore/rjson.h"
#include "restore/rproc_internal.h"

/* What it means to the process. PID and time namespaces are the business of
 * whoever chooses the place of the restore. */
static const struct {
	const char *name, *effect;
} spaces[] = {
	{"mnt", "its paths are looked up in the restorer's file systems"},
	{"net", "its sockets come back in the restorer's network"},
	{"ipc", "its System V and POSIX message queues were elsewhere"},
	{"uts", "its host name may be another"},
	{"user", "its users and groups are the restorer's"},
	{"cgroup", "it sees the restorer's cgroups"},
};

/* Namespaces are known by numbers that hold until the machine boots again. */
static bool is_this_boot(struct restore *r)
{
	cleanup_free char *own = NULL;
	const char *text;
	size_t len;

	if (usnap_image_get_member(r->img, "snapshot.json", &text, &len) < 0 ||
	    io_read_file_at(AT_FDCWD, "/proc/sys/kernel/random/boot_id", 64, &own, NULL) < 0)
		return false;
	json_t *o = json_loadb(text, len, 0, NULL);
	const char *theirs =
		json_string_value(json_object_get(json_object_get(o, "target"), "boot_id"));
	own[strcspn(own, "\n")] = '\0';
	/* Images that do not say are taken for ones of this boot. */
	bool same = !theirs || !strcmp(own, theirs);
	json_decref(o);
	return same;
}

static int judge_spaces(struct restore *r, const json_t *theirs)
{
	for (size_t i = 0; i < ARRAY_SIZE(spaces); i++) {
		const char *link = json_string_value(json_object_get(theirs, spaces[i].name));
		cleanup_free char *own = NULL;
		char path[64];

		snprintf(path, sizeof(path), "/proc/self/ns/%s", spaces[i].name);
		if (!link || io_readlink_at(AT_FDCWD, path, &own) < 0 || !strcmp(link, own))
			continue;
		int e = restore_problem(r, RESTORE_NOTE, "namespace", "%s: it was in %s: %s",
					spaces[i].name, link, spaces[i].effect);
		if (e < 0)
			return e;
	}
	return 0;
}

static int judge_cgroup(struct restore *r, struct usnap_err *err)
{
	cleanup_free char *theirs = NULL, *own = NULL;
	int e = rjson_path(r->process, "cgroup", &theirs, err);

	if (e < 0 || !theirs ||
	    io_read_file_at(AT_FDCWD, "/proc/self/cgroup", KIB(64), &own, NULL) < 0)
		return e;
	own[strcspn(own, "\n")] = theirs[strcspn(theirs, "\n")] = '\0';
	if (!strcmp(own, theirs))
		return 0;
	e = restore_problem(r, RESTORE_NOTE, "cgroup", "it was in %s; it comes back in %s", theirs,
			    own);
	return e < 0 ? usnap_fail_errno(err, e, "cannot restore") : 0;
}

int rspaces_judge(struct restore *r, struct usnap_err *err)
{
	json_t *theirs;
	int e = rjson_object(r->process, "namespaces", &theirs, err);

	if (e < 0)
		return e;
	if (theirs && is_this_boot(r)) {
		e = judge_spaces(r, theirs);
		if (e < 0)
			return usnap_fail_errno(err, e, "cannot restore");
	}
	return judge_cgroup(r, err);
}

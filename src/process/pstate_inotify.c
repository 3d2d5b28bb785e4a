/*
 * Inotify watches. The kernel tells of a watch the inode and a file handle,
 * not the path, and a handle says nothing on another machine: so the path is
 * looked for, after T0, while the target runs again. One that has been renamed
 * since is found under its new name, or not at all.
 */
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "common/util.h"
#include "process/pstate_internal.h"
#include "process/watched.h"

enum {
	SEARCHED_MAX = 1 << 20, /* paths, for all watches of a descriptor */
	BESIDE_MAX = 64,
};

/* "inotify wd:1 ino:2f sdev:fe00000 mask:2 ignored_mask:0 fhandle-bytes:8
 * fhandle-type:1 f_handle:2f00000000000000" Returns whether it is such a line. */
static bool parse_watch(const char *s, struct watched *w, int *ret_wd, unsigned *ret_mask)
{
	const char *h = strstr(s, "fhandle-type:"), *eol = strchr(s, '\n');
	unsigned long long ino;
	unsigned wd, sdev, type;
	char hex[2 * WATCHED_HANDLE_MAX + 1] = "";

	if (sscanf(s, "inotify wd:%x ino:%llx sdev:%x mask:%x", &wd, &ino, &sdev, ret_mask) != 4)
		return false;
	*ret_wd = (int)wd;
	w->inode = ino;
	/* dev_t inside the kernel: 12 bits and 20 bits */
	w->dev_major = sdev >> 20;
	w->dev_minor = sdev & 0xfffff;
	w->handle_len = 0;
	if (!h || (eol && h > eol) ||
	    sscanf(h, "fhandle-type:%x f_handle:%256[0-9a-f]", &type, hex) != 2)
		return true;
	w->handle_type = (int)type;
	for (const char *p = hex; p[0] && p[1]; p += 2) {
		unsigned byte = 0;

		sscanf(p, "%2x", &byte);
		w->handle[w->handle_len++] = (unsigned char)byte;
	}
	return true;
}

/* Files that the process has open or mapped or works in, the directories above them, and what lies
 * beside them. */
static char *find_nearby(const struct pstate *ps, const struct watched *w, unsigned *budget)
{
	char *path = watched_above(w, ps->cwd, budget);

	if (!path)
		path = watched_above(w, ps->exe, budget);
	for (size_t i = 0; i < ps->files.n && !path; i++)
		path = watched_above(w, ps->files.v[i].link, budget);
	for (size_t i = 0; i < ps->maps->n && !path; i++)
		path = watched_above(w, ps->maps->v[i].path, budget);
	if (!path)
		path = watched_in(w, ps->cwd, budget);
	for (size_t i = 0; i < ps->files.n && i < BESIDE_MAX && !path; i++)
		path = watched_beside(w, ps->files.v[i].link, budget);
	return path;
}

static json_t *watch_json(const struct pstate *ps, const struct watched *w, int wd, unsigned mask,
			  unsigned *budget)
{
	char dev[32];
	cleanup_free char *path = w->root < 0 ? NULL : watched_by_handle(w);

	if (!path && w->root >= 0)
		path = find_nearby(ps, w, budget);
	snprintf(dev, sizeof(dev), "%02x:%02x", w->dev_major, w->dev_minor);
	json_t *o = json_pack("{s:i,s:I,s:s,s:o}", "wd", wd, "inode", (json_int_t)w->inode, "dev",
			      dev, "mask", json_address(mask));
	if (w->handle_len) {
		json_object_set_new(o, "handle_type", json_integer(w->handle_type));
		json_object_set_new(o, "handle", json_hex(w->handle, w->handle_len));
	}
	if (path)
		json_set_text(o, "path", path);
	return o;
}

json_t *inotify_json(const struct pstate *ps, const struct fd_state *f, const char *text)
{
	cleanup_fd int root = openat(ps->t->procfd, "root", O_PATH | O_DIRECTORY | O_CLOEXEC);
	struct watched w = {.procfd = ps->t->procfd, .root = root};
	unsigned mask, budget = SEARCHED_MAX;
	json_t *a = json_array();
	int wd;

	for (const char *s = text; s && *s;) {
		if (parse_watch(s, &w, &wd, &mask))
			json_array_append_new(a, watch_json(ps, &w, wd, mask, &budget));
		s = strchr(s, '\n');
		if (s)
			s++;
	}
	json_t *o = json_pack("{s:o}", "watches", a);
	if (f->pipe_queued >= 0)
		json_object_set_new(o, "queued", json_integer(f->pipe_queued));
	return o;
}

#include "cli/snapshot_dest.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uffd-snap.h>

#include "capture/capture.h"
#include "cli/readiness.h"
#include "cli/snapshot_parent.h"
#include "common/io.h"
#include "common/util.h"
#include "image/format.h"
#include "store/links.h"
#include "store/store_commit.h"

/* That of the unit that it was found by, where prune --unit finds it as well; or the one that it was
 * given, or what it calls itself. */
static void choose_name(const struct snapshot_args *a, pid_t pid, const char *comm, char *ret)
{
	struct registry ready = {0};
	char given[RUNDIR_NAME_MAX + 1];
	bool named;

	if (a->query.unit && !a->all) {
		names_of_unit(a->query.unit, ret);
		return;
	}
	registry_load(&ready);
	named = readiness_of(&ready, pid, true, given) && *given;
	registry_free(&ready);
	store_name_from(named ? given : a->query.comm ? a->query.comm : comm, ret);
}

enum {
	LOOK_BACK = 256 /* images that are looked at for one of the same run */
};

static int path_of(const struct snapshot_dest *d, const char *file, char **ret,
		   struct usnap_err *err)
{
	char *path;

	if (asprintf(&path, "%s/%s/%s", store_path(d->store), d->name, file) < 0)
		return usnap_fail_errno(err, -ENOMEM, "cannot write '%s'", file);
	free(*ret);
	*ret = path;
	return 0;
}

/* Is it time for an image that continues no other? One that cannot be read does not say so; it
 * is no parent either. */
static bool is_full_due(const char *path, uint64_t full_every)
{
	struct usnap_image *img = full_every ? usnap_image_new() : NULL;
	bool due = img && usnap_image_open(img, path) == 0 && snapshot_depth(img) + 1 >= full_every;

	usnap_image_free(img);
	return due;
}

/* Whether an image is of this run. One that cannot be read: -1. One that is not what its name says is of
 * none: what refers to it would not find it. */
static int is_of_run(const struct store_image *i, const char *path, const char *run)
{
	struct usnap_image *img = usnap_image_new();
	struct usnap_info info;
	char why[512];
	int r = -1;

	if (img && usnap_image_open(img, path) == 0 &&
	    usnap_image_get_info(img, &info, sizeof(info)) == 0)
		r = !strcmp(info.run, run) &&
		    store_links_is_named(&info, i, path, why, sizeof(why));
	usnap_image_free(img);
	return r;
}

/* The image that the new one is to continue: the newest of the same run of the process, should another
 * process have the name as well; or the newest, which tells why it cannot be continued. */
static int choose_parent(struct snapshot_dest *d, const struct target *t, uint64_t full_every,
			 struct usnap_err *err)
{
	char run[FORMAT_HASH_HEX + 1];
	struct store_images images;
	const struct store_image *last;
	int r = store_scan(d->store, d->name, &images, err), of_run = 0;

	if (r < 0)
		return r;
	last = store_newest(&images, NULL, wall_ns() / 1000000);
	if (last && capture_run_id(t, run) < 0)
		of_run = -1;
	for (size_t back = 0; last && of_run == 0 && r == 0 && back < LOOK_BACK; back++) {
		r = path_of(d, last[-(ptrdiff_t)back].file, &d->parent, err);
		if (r == 0)
			of_run = is_of_run(&last[-(ptrdiff_t)back], d->parent, run);
		if (last - back == images.image)
			break;
	}
	if (last && of_run <= 0 && r == 0)
		r = path_of(d, last->file, &d->parent, err);
	if (d->parent && is_full_due(d->parent, full_every)) {
		free(d->parent);
		d->parent = NULL;
	}
	store_images_free(&images);
	return r;
}

/* What the process calls itself; "" when there is none. */
static void read_comm(pid_t pid, char comm[64])
{
	cleanup_free char *text = NULL;
	char path[32];

	snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
	comm[0] = '\0';
	if (io_read_file_at(AT_FDCWD, path, 256, &text, NULL) == 0)
		snprintf(comm, 64, "%.*s", (int)strcspn(text, "\n"), text);
}

int snapshot_dest_name(const struct snapshot_args *a, pid_t pid, char ret[STORE_NAME_MAX + 1],
		       struct usnap_err *err)
{
	char comm[64];
	int r = a->name ? store_name_check(a->name, err) : 0;

	ret[0] = '\0';
	if (r < 0)
		return r;
	read_comm(pid, comm);
	if (*comm && a->name)
		snprintf(ret, STORE_NAME_MAX + 1, "%s", a->name);
	else if (*comm)
		choose_name(a, pid, comm, ret);
	return 0;
}

/* "app-1234", however long the name is. */
static void add_pid(char name[STORE_NAME_MAX + 1], pid_t pid)
{
	char tail[16];
	size_t len = (size_t)snprintf(tail, sizeof(tail), "-%d", (int)pid);
	size_t keep = MIN(strlen(name), STORE_NAME_MAX - len);

	memcpy(name + keep, tail, len + 1);
}

int snapshot_dest_lock(struct snapshot_dest *d, const struct snapshot_args *a, pid_t pid,
		       bool is_one_of_many, const volatile sig_atomic_t *cancel,
		       struct usnap_err *err)
{
	const struct store_lock_options lo = {.no_wait = a->skip_if_busy, .cancel = cancel};
	cleanup_free char *usual = NULL;
	int r;

	if (a->output)
		return 0;
	if ((r = snapshot_dest_name(a, pid, d->name, err)) < 0)
		return r;
	/* Without a process there is nothing to lock for: opening it tells what is wrong. */
	if (!*d->name)
		return 0;
	if (is_one_of_many)
		add_pid(d->name, pid);
	if (!a->store && (r = store_default_path(&usual, err)) < 0)
		return r;
	if ((r = store_open(&d->store, a->store ? a->store : usual, true, err)) < 0)
		return r;
	r = store_lock(&d->lock, d->store, d->name, STORE_ADD, &lo, err);
	d->busy = r == -EBUSY;
	return r;
}

int snapshot_dest_open(struct snapshot_dest *d, const struct snapshot_args *a,
		       const struct target *t, struct usnap_err *err)
{
	int r;

	if (a->output) {
		if (!(d->path = strdup(a->output)))
			return usnap_fail_errno(err, -ENOMEM, "cannot write '%s'", a->output);
		return output_open(&d->output, a->output, err);
	}
	if (!d->lock)
		return usnap_fail(err, -ESRCH, "cannot snapshot: the process has ended");
	store_clean(store_lock_fd(d->lock));
	if ((r = store_secret(d->store, &d->seed, err)) < 0 ||
	    (r = choose_parent(d, t, a->full_every, err)) < 0 ||
	    (r = store_new_path(d->store, d->name, &d->path, err)) < 0)
		return r;
	return output_open(&d->output, d->path, err);
}

static int commit_to_store(struct snapshot_dest *d, struct usnap_err *err)
{
	char file[STORE_FILE_LEN + 1];
	int r = store_commit(d->output, file, err);

	if (r < 0 || (r = path_of(d, file, &d->path, err)) < 0)
		return r;
	r = store_set_latest(store_lock_fd(d->lock), file);
	return r < 0 ? usnap_fail_errno(err, r,
					"image '%s' is complete, but 'latest' cannot be set to it",
					d->path)
		     : 0;
}

int snapshot_dest_commit(struct snapshot_dest *d, struct usnap_err *err)
{
	return d->store ? commit_to_store(d, err) : output_commit(d->output, err);
}

void snapshot_dest_release(struct snapshot_dest *d)
{
	output_close(d->output);
	d->output = NULL;
	/* The first snapshot of a name failed: there is nothing to keep. */
	if (d->lock)
		store_unlock_empty(d->lock);
	d->lock = NULL;
}

void snapshot_dest_close(struct snapshot_dest *d)
{
	snapshot_dest_release(d);
	store_close(d->store);
	free(d->path);
	free(d->parent);
}

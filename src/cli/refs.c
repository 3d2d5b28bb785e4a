#include "cli/refs.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>

#include "common/util.h"
#include "store/links.h"

/* Room for one more pointer in an array. */
static int grow(void *array, size_t nr)
{
	void ***p = array, **more = realloc(*p, (nr + 1) * sizeof(*more));

	if (!more)
		return -ENOMEM;
	*p = more;
	return 0;
}

static int add_path(struct refs *refs, char *path, struct usnap_err *err)
{
	if (!path || grow(&refs->path, refs->nr) < 0) {
		free(path);
		return usnap_fail_errno(err, -ENOMEM, "cannot name images");
	}
	refs->path[refs->nr++] = path;
	return 0;
}

/* What cannot be opened, whoever reads it tells of. */
static int check_name(const char *path, const struct store_image *i, struct usnap_err *err)
{
	struct usnap_image *img = usnap_image_new();
	struct usnap_info info;
	char why[512];
	int r = 0;

	if (img && usnap_image_open(img, path) == 0 &&
	    usnap_image_get_info(img, &info, sizeof(info)) == 0 &&
	    !store_links_is_named(&info, i, path, why, sizeof(why)))
		r = usnap_fail(err, -EBADMSG, "%s", why);
	usnap_image_free(img);
	return r;
}

static int add_image(struct refs *refs, const struct store *s, const char *name,
		     const struct store_image *i, struct usnap_err *err)
{
	char *path;
	int r;

	if (asprintf(&path, "%s/%s/%s", store_path(s), name, i->file) < 0)
		path = NULL;
	if (path && (r = check_name(path, i, err)) < 0) {
		free(path);
		return r;
	}
	return add_path(refs, path, err);
}

int refs_open_store(struct store **ret, const char *store, struct usnap_err *err)
{
	cleanup_free char *usual = NULL;
	int r = store ? 0 : store_default_path(&usual, err);

	if (r < 0 || (r = store_open(ret, store ? store : usual, false, err)) != -ENOENT)
		return r;
	return usnap_hint(err,
			  "the first snapshot makes it; --store or UFFD_SNAP_STORE name another");
}

bool refs_split(const char *arg, char name[STORE_NAME_MAX + 1], const char **ret_when)
{
	size_t len = strcspn(arg, "@");

	if (len > STORE_NAME_MAX)
		return false;
	memcpy(name, arg, len);
	name[len] = '\0';
	*ret_when = arg[len] ? arg + len + 1 : NULL;
	return store_name_valid(name);
}

/* The store is open, the name in it: locks it, and adds what is meant. */
static int add_named(struct refs *refs, struct store *s, const char *name, const char *when,
		     enum refs_which which, struct usnap_err *err)
{
	const struct store_image *found;
	struct store_images images = {0};
	int r, damaged = 0;

	if (grow(&refs->lock, refs->nr_locks) < 0)
		return usnap_fail_errno(err, -ENOMEM, "cannot lock '%s'", name);
	r = store_lock(&refs->lock[refs->nr_locks], s, name, STORE_READ, NULL, err);
	if (r < 0)
		return r;
	refs->nr_locks++;
	if ((r = store_scan(s, name, &images, err)) < 0)
		return r;
	if (which == REFS_EVERY && !when) {
		for (size_t i = 0; r == 0 && i < images.nr; i++)
			if ((r = add_image(refs, s, name, &images.image[i], err)) == -EBADMSG) {
				damaged = r;
				r = 0; /* the others are none the worse for it */
			}
		if (r == 0)
			r = damaged;
	} else {
		r = store_find(&images, name, when, time(NULL), &found, err);
		if (r == 0)
			r = add_image(refs, s, name, found, err);
	}
	store_images_free(&images);
	return r;
}

static int add_store(struct refs *refs, struct store *s, struct usnap_err *err)
{
	if (grow(&refs->store, refs->nr_stores) < 0) {
		store_close(s);
		return usnap_fail_errno(err, -ENOMEM, "cannot open a store");
	}
	refs->store[refs->nr_stores++] = s;
	return 0;
}

int refs_add(struct refs *refs, const char *arg, const char *store, enum refs_which which,
	     struct usnap_err *err)
{
	char name[STORE_NAME_MAX + 1];
	struct usnap_err why = {0};
	const char *when;
	struct store *s;
	struct stat st;
	int r, fd;

	if (!refs_split(arg, name, &when)) {
		if (store && strcmp(arg, "-") != 0 && !strchr(arg, '/'))
			return store_name_check(name, err);
		return add_path(refs, strdup(arg), err);
	}
	/* A directory is no image: it may be the name's, when we stand in the store. */
	if (!store && stat(arg, &st) == 0 && !S_ISDIR(st.st_mode))
		return add_path(refs, strdup(arg), err);
	if ((r = refs_open_store(&s, store, &why)) == 0) {
		if ((r = add_store(refs, s, &why)) < 0)
			goto out;
		if ((r = fd = store_open_name(s, name, false, &why)) >= 0) {
			close(fd);
			return add_named(refs, s, name, when, which, err);
		}
	}
out:
	/* Neither a file nor a name: as a file it is what most people meant. */
	if (!store && !when && r == -ENOENT)
		return add_path(refs, strdup(arg), err);
	if (err)
		*err = why;
	return r;
}

/* Each name is locked, which takes descriptors, until all are read. */
static void allow_descriptors(size_t nr)
{
	struct rlimit rl;

	if (getrlimit(RLIMIT_NOFILE, &rl) < 0 || rl.rlim_cur >= nr + 256)
		return;
	rl.rlim_cur = MIN(rl.rlim_max, (rlim_t)nr + 256);
	setrlimit(RLIMIT_NOFILE, &rl);
}

int refs_add_store(struct refs *refs, const char *store, struct usnap_err *err)
{
	struct store_names names;
	struct store *s;
	int r = refs_open_store(&s, store, err);

	if (r < 0 || (r = add_store(refs, s, err)) < 0 ||
	    (r = store_list_names(s, &names, err)) < 0)
		return r;
	allow_descriptors(2 * names.nr);
	/* One that cannot be used is told of; the others are none the worse for it. */
	for (size_t i = 0; i < names.nr; i++) {
		struct usnap_err why = {0};
		int one = add_named(refs, s, names.name[i], NULL, REFS_EVERY, &why);

		if (one == 0 || one == -ENOENT || r < 0)
			continue; /* -ENOENT: removed since it was listed */
		r = one;
		if (err)
			*err = why;
	}
	store_names_free(&names);
	return r;
}

void refs_unlock(struct refs *refs)
{
	for (size_t i = 0; i < refs->nr_locks; i++)
		store_unlock(refs->lock[i]);
	refs->nr_locks = 0;
}

void refs_close(struct refs *refs)
{
	refs_unlock(refs);
	for (size_t i = 0; i < refs->nr_stores; i++)
		store_close(refs->store[i]);
	for (size_t i = 0; i < refs->nr; i++)
		free(refs->path[i]);
	free(refs->lock);
	free(refs->store);
	free(refs->path);
	*refs = (struct refs){0};
}

/*
 * files[] of process.json: read, checked, grouped to open file descriptions.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "common/util.h"
#include "restore/rfiles_internal.h"
#include "restore/rjson.h"

/* Of f_flags, what open(2) may be told again: never to create or to cut off. */
#define REOPEN_FLAGS                                                                               \
	(O_ACCMODE | O_APPEND | O_NONBLOCK | O_SYNC | O_DIRECT | O_NOATIME | O_PATH |              \
	 O_DIRECTORY | O_NOFOLLOW)

static int out_of_memory(struct usnap_err *err)
{
	return usnap_fail_errno(err, -ENOMEM, "cannot restore the descriptors");
}

/* ---- one element of files[] ------------------------------------------------ */

int rfile_parse_dev(const json_t *o, const char *key, int base, uint32_t *ret_major,
		    uint32_t *ret_minor, struct usnap_err *err)
{
	const char *text;
	char *end;
	int r = rjson_text_or(o, key, NULL, &text, err);

	*ret_major = *ret_minor = 0;
	if (r < 0 || !text)
		return r;
	unsigned long major = strtoul(text, &end, base), minor = 0;
	bool ok = text[0] != '-' && text[0] != '+' && end != text && *end == ':' && end[1] &&
		  !strchr("+- ", end[1]);
	if (ok)
		minor = strtoul(end + 1, &end, base);
	if (!ok || *end || major > UINT32_MAX || minor > UINT32_MAX)
		return usnap_fail(err, -EBADMSG,
				  "cannot restore: %s of process.json is no device number", key);
	*ret_major = (uint32_t)major;
	*ret_minor = (uint32_t)minor;
	return 0;
}

static enum rfile_kind kind_by_name(const char *name)
{
	for (int k = 0; k < RFILE_NR_KINDS; k++)
		if (!strcmp(rfile_ops[k].name, name))
			return (enum rfile_kind)k;
	return RFILE_OTHER;
}

static void strip_deleted(char *path)
{
	static const char suffix[] = " (deleted)";
	size_t len = strlen(path);

	if (len >= sizeof(suffix) && !strcmp(path + len - (sizeof(suffix) - 1), suffix))
		path[len - (sizeof(suffix) - 1)] = '\0';
}

static int parse_stat(struct rdesc *d, struct usnap_err *err)
{
	int64_t inode;
	uint64_t mode;
	int r;

	if (!json_object_get(d->o, "inode"))
		return 0;
	if ((r = rjson_int(d->o, "inode", INT64_MIN, INT64_MAX, &inode, err)) < 0 ||
	    (r = rjson_word_or(d->o, "mode", 0, &mode, err)) < 0 ||
	    (r = rfile_parse_dev(d->o, "dev", 16, &d->dev_major, &d->dev_minor, err)) < 0 ||
	    (r = rfile_parse_dev(d->o, "rdev", 10, &d->rdev_major, &d->rdev_minor, err)) < 0 ||
	    (r = rjson_int_or(d->o, "size", 0, INT64_MAX, 0, &d->size, err)) < 0 ||
	    (r = rjson_int_or(d->o, "mtime_ns", INT64_MIN, INT64_MAX, 0, &d->mtime_ns, err)) < 0 ||
	    (r = rjson_bool_or(d->o, "deleted", false, &d->deleted, err)) < 0)
		return r;
	d->has_stat = true;
	d->inode = (uint64_t)inode;
	d->mode = (uint32_t)mode;
	return 0;
}

static int parse_description(struct rdesc *d, const json_t *o, struct usnap_err *err)
{
	const char *type;
	uint64_t flags;
	json_t *more;
	int r;

	d->o = o;
	d->own = d->parked = -1;
	if ((r = rjson_text(o, "type", &type, err)) < 0 ||
	    (r = rjson_word(o, "flags", &flags, err)) < 0 ||
	    (r = rjson_int_or(o, "offset", 0, INT64_MAX, 0, &d->offset, err)) < 0 ||
	    (r = rjson_path(o, "path", &d->path, err)) < 0 || (r = parse_stat(d, err)) < 0)
		return r;
	if (!d->path && !(d->path = strdup("")))
		return out_of_memory(err);
	d->kind = kind_by_name(type);
	d->flags = (int)(flags & REOPEN_FLAGS);
	if (d->kind != RFILE_DIRECTORY)
		d->flags &= ~O_DIRECTORY; /* of O_TMPFILE */
	d->async = flags & O_ASYNC;
	if (d->deleted)
		strip_deleted(d->path);
	if (rfile_ops[d->kind].member) {
		if ((r = rjson_object(o, rfile_ops[d->kind].member, &more, err)) < 0)
			return r;
		d->more = more;
	}
	return 0;
}

/* ---- grouping --------------------------------------------------------------- */

struct parsed {
	int fd;
	bool cloexec;
	int64_t description;
	const json_t *o;
};

static int by_fd(const void *a, const void *b)
{
	int x = ((const struct parsed *)a)->fd, y = ((const struct parsed *)b)->fd;

	return (x > y) - (x < y);
}

static int by_description(const void *a, const void *b)
{
	const struct parsed *x = a, *y = b;

	if (x->description != y->description)
		return x->description < y->description ? -1 : 1;
	return by_fd(a, b);
}

static int parse_numbers(const json_t *files, struct parsed **ret, struct usnap_err *err)
{
	size_t n = json_array_size(files);
	cleanup_free struct parsed *v = calloc(n + 1, sizeof(*v));

	if (!v)
		return out_of_memory(err);
	for (size_t i = 0; i < n; i++) {
		const json_t *o = json_array_get(files, i);
		int64_t fd, description;
		int r;

		if (!json_is_object(o))
			return usnap_fail(err, -EBADMSG,
					  "cannot restore: files[%zu] of process.json is no object",
					  i);
		/* An image without descriptions: none is shared. */
		if ((r = rjson_int(o, "fd", 0, INT_MAX - 1, &fd, err)) < 0 ||
		    (r = rjson_int_or(o, "description", 0, INT64_MAX, -1 - (int64_t)i, &description,
				      err)) < 0 ||
		    (r = rjson_bool_or(o, "cloexec", false, &v[i].cloexec, err)) < 0)
			return r;
		v[i].fd = (int)fd;
		v[i].description = description;
		v[i].o = o;
	}
	qsort(v, n, sizeof(*v), by_fd);
	for (size_t i = 1; i < n; i++)
		if (v[i].fd == v[i - 1].fd)
			return usnap_fail(err, -EBADMSG,
					  "cannot restore: process.json has descriptor %d twice",
					  v[i].fd);
	*ret = v;
	v = NULL;
	return 0;
}

static int compare_slots(const void *a, const void *b)
{
	int x = ((const struct rslot *)a)->fd, y = ((const struct rslot *)b)->fd;

	return (x > y) - (x < y);
}

/* Redirecting splits descriptions: at most one more for each option. */
int rfiles_group(struct restore *r, const json_t *files, struct usnap_err *err)
{
	struct rfiles *f = r->files;
	size_t n = json_array_size(files);
	cleanup_free struct parsed *v = NULL;
	int ret = parse_numbers(files, &v, err);

	if (ret < 0)
		return ret;
	qsort(v, n, sizeof(*v), by_description);
	f->slots = calloc(n + 1, sizeof(*f->slots));
	f->descs = calloc(n + 2 * r->o->nr_fds + 4, sizeof(*f->descs));
	if (!f->slots || !f->descs)
		return out_of_memory(err);
	for (size_t i = 0; i < n; i++) {
		if (!i || v[i].description != v[i - 1].description) {
			struct rdesc *d = &f->descs[f->nr_descs++];

			d->id = v[i].description;
			d->fd = v[i].fd;
			if ((ret = parse_description(d, v[i].o, err)) < 0)
				return ret;
		}
		f->slots[f->nr_slots++] = (struct rslot){
			.fd = v[i].fd, .cloexec = v[i].cloexec, .desc = f->nr_descs - 1};
	}
	qsort(f->slots, f->nr_slots, sizeof(*f->slots), compare_slots);
	return 0;
}

const struct rslot *rfiles_slot(const struct rfiles *f, int fd)
{
	struct rslot key = {.fd = fd};

	return f->nr_slots ? bsearch(&key, f->slots, f->nr_slots, sizeof(key), compare_slots)
			   : NULL;
}

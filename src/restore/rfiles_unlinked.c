/*
 * Memfds, and files and directories that have lost their name.
 *
 * Their bytes are in the image ("unlinked" of process.json). A file is made
 * where it was, without a name from the start where the file system can do
 * that (O_TMPFILE): a restore that dies leaves nothing.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/util.h"
#include "image/image.h"
#include "restore/rfiles_internal.h"
#include "restore/rjson.h"

enum {
	CHUNK = 1 << 20
};

#ifndef F_SEAL_WRITE
#define F_SEAL_WRITE 0x0008
#endif

/* State of the first description of the inode. */
struct rnameless {
	uint64_t mode;
	int64_t uid, gid, size, seals;
	uint64_t addr, len; /* content: where it lies in the image */
	uint64_t huge; /* page size of a memfd of huge pages, else 0 */
};

static const struct rnameless *nameless_of(const struct rnode *n)
{
	return n->d[0]->state;
}

static bool is_nameless(const struct rdesc *d)
{
	return d->kind == RFILE_MEMFD ||
	       (d->deleted && (d->kind == RFILE_REGULAR || d->kind == RFILE_DIRECTORY));
}

/* ---- plan ----------------------------------------------------------------------- */

static bool has_full_access(const struct rnode *n)
{
	for (size_t i = 0; i < n->n; i++)
		if ((n->d[i]->flags & (O_ACCMODE | O_PATH)) == O_RDWR)
			return true;
	return false;
}

struct rnode *runlinked_find(const struct rfiles *f, uint32_t dev_major, uint32_t dev_minor,
			     uint64_t inode)
{
	for (size_t i = 0; i < f->nr_nameless; i++) {
		struct rnode *n = f->nameless[i];

		if (n->map_inode == inode && n->map_major == dev_major && n->map_minor == dev_minor)
			return n;
	}
	return NULL;
}

/* A memfd is sealed, and what is mapped is mapped, through a descriptor that may do both; where the
 * process had none any more, there is one for a while. */
static int plan_kept(struct restore *r, struct usnap_err *err)
{
	struct rfiles *f = r->files;
	json_t *maps;
	int ret = rjson_array(r->process, "maps", SIZE_MAX, &maps, err);

	f->keep_from = f->nr_slots ? f->slots[f->nr_slots - 1].fd + 1 : 3;
	for (size_t i = 0; i < f->nr_nodes; i++) {
		struct rnode *n = &f->nodes[i];

		if (n->d[0]->kind == RFILE_MEMFD && !has_full_access(n))
			n->keep_fd = f->keep_from + f->nr_keep++;
	}
	for (size_t i = 0; ret == 0 && i < json_array_size(maps); i++) {
		const json_t *m = json_array_get(maps, i);
		uint32_t maj, min;
		int64_t inode;

		if ((ret = rjson_int_or(m, "inode", INT64_MIN, INT64_MAX, 0, &inode, err)) < 0 ||
		    (ret = rfile_parse_dev(m, "dev", 16, &maj, &min, err)) < 0)
			return ret;
		struct rnode *n = inode ? runlinked_find(f, maj, min, (uint64_t)inode) : NULL;
		if (n && is_nameless(n->d[0]) && n->keep_fd < 0 && !has_full_access(n))
			n->keep_fd = f->keep_from + f->nr_keep++;
	}
	return ret;
}

int runlinked_plan_all(struct restore *r, struct usnap_err *err)
{
	struct rfiles *f = r->files;

	f->nameless = calloc(f->nr_nodes + 1, sizeof(struct rnode *));
	if (!f->nameless)
		return usnap_fail_errno(err, -ENOMEM, "cannot restore the descriptors");
	for (size_t i = 0; i < json_array_size(f->unlinked); i++) {
		const json_t *o = json_array_get(f->unlinked, i);
		uint32_t maj, min;
		int64_t inode;
		int ret;

		if ((ret = rjson_int(o, "inode", INT64_MIN, INT64_MAX, &inode, err)) < 0 ||
		    (ret = rfile_parse_dev(o, "dev", 16, &maj, &min, err)) < 0)
			return ret;
		struct rnode *n = rfiles_node(f, maj, min, (uint64_t)inode);
		if (!n)
			continue;
		if (!n->unlinked)
			f->nameless[f->nr_nameless++] = n;
		n->unlinked = o;
		/* Some file systems tell mappings another number than stat(2). */
		n->map_major = maj;
		n->map_minor = min;
		if ((ret = rjson_int_or(o, "map_inode", INT64_MIN, INT64_MAX, inode, &inode, err)) <
			    0 ||
		    (json_object_get(o, "map_dev") &&
		     (ret = rfile_parse_dev(o, "map_dev", 16, &n->map_major, &n->map_minor, err)) <
			     0))
			return ret;
		n->map_inode = (uint64_t)inode;
	}
	return plan_kept(r, err);
}

static int parse(const struct rdesc *d, struct rnameless *u, struct usnap_err *err)
{
	const json_t *o = d->node->unlinked;
	json_t *content;
	int64_t huge;
	int ret;

	if ((ret = rjson_word_or(o, "mode", d->mode, &u->mode, err)) < 0 ||
	    (ret = rjson_int_or(o, "uid", 0, UINT32_MAX, -1, &u->uid, err)) < 0 ||
	    (ret = rjson_int_or(o, "gid", 0, UINT32_MAX, -1, &u->gid, err)) < 0 ||
	    (ret = rjson_int_or(o, "size", 0, INT64_MAX, d->size, &u->size, err)) < 0 ||
	    (ret = rjson_int_or(o, "page_size", 0, INT64_C(1) << 40, 0, &huge, err)) < 0 ||
	    (ret = rjson_int_or(d->more, "seals", 0, INT32_MAX, 0, &u->seals, err)) < 0 ||
	    (ret = rjson_object(o, "content", &content, err)) < 0 ||
	    (ret = rjson_word_or(content, "address", 0, &u->addr, err)) < 0 ||
	    (ret = rjson_word_or(content, "size", 0, &u->len, err)) < 0)
		return ret;
	if (huge & (huge - 1))
		return usnap_fail(err, -EBADMSG,
				  "cannot restore: page_size of process.json is out of range");
	u->huge = d->kind == RFILE_MEMFD ? (uint64_t)huge : 0;
	return 0;
}

int runlinked_plan(struct restore *r, struct rdesc *d, struct usnap_err *err)
{
	if (d->kind == RFILE_DIRECTORY || !d->node || d->node->d[0] != d)
		return 0;
	int ret;
	struct rnameless *u = d->state = calloc(1, sizeof(*u));
	if (!u)
		return usnap_fail_errno(err, -ENOMEM, "cannot restore the descriptors");
	ret = parse(d, u, err);
	if (ret < 0 || !u->size || d->node->unlinked)
		return ret;
	/* It may have another name, which nobody knows. */
	return rfile_problem(r, err, RESTORE_REFUSE,
			     d->kind == RFILE_MEMFD ? "memfd-content" : "deleted-file",
			     "fd %d: the content of '%s' is not in the image", d->fd, d->path);
}

/* ---- in the builder ---------------------------------------------------------------- */

/* hugetlbfs has no write(2). */
static int write_mapped(int fd, const void *buf, size_t len, uint64_t offset, uint64_t page)
{
	uint64_t start = ALIGN_DOWN(offset, page), end = ALIGN_UP(offset + len, page);
	char *p = mmap(NULL, end - start, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd,
		       (off_t)start);

	if (p == MAP_FAILED)
		return -errno;
	memcpy(p + (offset - start), buf, len);
	munmap(p, end - start);
	return 0;
}

static int write_at(const struct rnameless *u, int fd, const char *buf, size_t len, uint64_t offset)
{
	if (u->huge)
		return write_mapped(fd, buf, len, offset, u->huge);
	while (len) {
		ssize_t n = pwrite(fd, buf, len, (off_t)offset);

		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		buf += n;
		len -= (size_t)n;
		offset += (uint64_t)n;
	}
	return 0;
}

static int write_content(struct restore *r, const struct rdesc *d, int fd, struct usnap_err *err)
{
	const struct rnameless *u = nameless_of(d->node);
	cleanup_free char *buf = malloc(CHUNK);
	uint64_t end = u->addr + MIN(u->len, (uint64_t)u->size), at = u->addr, start, len;
	int ret = 0;

	if (!buf)
		return rfile_fail(err, -ENOMEM, d, "make");
	if (!u->len)
		return 0;
	while (at < end && (ret = img_next_content_run(r->img, at, &start, &len)) > 0) {
		if (start >= end)
			return 0;
		at = start;
		len = MIN(MIN(len, end - at), (uint64_t)CHUNK);
		if ((ret = img_read_content(r->img, at, buf, len)) < 0)
			break;
		if ((ret = write_at(u, fd, buf, len, at - u->addr)) < 0)
			return rfile_fail(err, ret, d, "write the content of");
		at += len;
	}
	return ret < 0 ? usnap_fail(err, ret, "%s", usnap_image_error(r->img)) : 0;
}

static int log2_of(uint64_t v)
{
	return 63 - __builtin_clzll(v);
}

static int make_memfd(const struct rdesc *d)
{
	const struct rnameless *u = nameless_of(d->node);
	const char *name = d->path;
	cleanup_free char *copy = NULL;
	static const char prefix[] = "/memfd:", suffix[] = " (deleted)";
	unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;

	if (!strncmp(name, prefix, sizeof(prefix) - 1))
		name += sizeof(prefix) - 1;
	size_t len = strlen(name);
	if (len >= sizeof(suffix) - 1 && !strcmp(name + len - (sizeof(suffix) - 1), suffix))
		len -= sizeof(suffix) - 1;
	copy = strndup(name, len);
	if (!copy)
		return -ENOMEM;
	if (u->huge)
		flags |= MFD_HUGETLB | (unsigned)log2_of(u->huge) << MFD_HUGE_SHIFT;
	int fd = (int)syscall(SYS_memfd_create, copy, flags);
	return fd < 0 ? -errno : fd;
}

/* Where it was, else in /tmp. */
static int make_in(const char *dir, mode_t type)
{
	cleanup_free char *path = NULL;
	int fd = -1;

	if (type == S_IFREG) {
		fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
		if (fd >= 0)
			return fd;
	}
	if (asprintf(&path, "%s/.uffd-snap-XXXXXX", dir) < 0) {
		path = NULL;
		return -ENOMEM;
	}
	if (type == S_IFDIR) {
		if (!mkdtemp(path))
			return -errno;
		fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	} else {
		fd = mkostemp(path, O_CLOEXEC);
		if (fd < 0)
			return -errno;
	}
	int ret = fd < 0 ? -errno : fd;
	if (type == S_IFDIR)
		rmdir(path);
	else
		unlink(path);
	return ret;
}

static int make_nameless(const struct rdesc *d)
{
	mode_t type = d->kind == RFILE_DIRECTORY ? S_IFDIR : S_IFREG;
	cleanup_free char *dir = strdup(d->path);
	int fd = -ENOENT;

	if (!dir)
		return -ENOMEM;
	char *slash = strrchr(dir, '/');
	if (dir[0] == '/' && slash) {
		slash[slash == dir] = '\0';
		fd = make_in(dir, type);
	}
	return fd < 0 ? make_in("/tmp", type) : fd;
}

static int make_base(struct restore *r, struct rdesc *d, struct usnap_err *err)
{
	struct rnode *n = d->node;
	cleanup_fd int fd = d->kind == RFILE_MEMFD ? make_memfd(d) : make_nameless(d);
	int ret;

	if (fd < 0)
		return rfile_fail(err, fd, d, "make");
	if (d->kind != RFILE_DIRECTORY) {
		const struct rnameless *u = nameless_of(n);

		if (u->size && ftruncate(fd, u->size) < 0)
			return rfile_fail(err, -errno, d, "make");
		if ((ret = write_content(r, d, fd, err)) < 0)
			return ret;
	}
	if (d->kind == RFILE_DIRECTORY)
		fchmod(fd, d->mode & 07777);
	n->base = take_fd(&fd);
	ret = rfiles_park(r->files, &n->base);
	return ret < 0 ? rfile_fail(err, ret, d, "make") : 0;
}

int runlinked_make(struct restore *r, struct rdesc *d, int *ret_fd, struct usnap_err *err)
{
	int ret;

	if (!d->node)
		return rfile_fail(err, -ENOENT, d, "make");
	if (d->node->base < 0 && (ret = make_base(r, d, err)) < 0)
		return ret;
	cleanup_fd int fd = rfile_reopen(d->node->base, d->flags & ~O_NOATIME);
	if (fd < 0)
		return rfile_fail(err, fd, d, "open");
	if (d->offset && !(d->flags & O_PATH) && d->kind != RFILE_DIRECTORY &&
	    lseek(fd, d->offset, SEEK_SET) < 0)
		return rfile_fail(err, -errno, d, "seek in");
	*ret_fd = take_fd(&fd);
	return 0;
}

/* Owner, mode and time when it has been opened as often as it has to be. */
int runlinked_settle(struct restore *r, struct rdesc *d, struct usnap_err *err)
{
	if (!is_nameless(d) || d->kind == RFILE_DIRECTORY || !d->node || d->node->d[0] != d ||
	    d->flags & O_PATH)
		return 0;
	const struct rnameless *u = nameless_of(d->node);
	const struct timespec times[2] = {
		{.tv_nsec = UTIME_OMIT},
		{.tv_sec = d->mtime_ns / 1000000000, .tv_nsec = d->mtime_ns % 1000000000}};
	struct stat st;

	if (fstat(d->fd, &st) < 0)
		return rfile_fail(err, -errno, d, "look at");
	if (((u->uid >= 0 && (int64_t)st.st_uid != u->uid) ||
	     (u->gid >= 0 && (int64_t)st.st_gid != u->gid)) &&
	    fchown(d->fd, (uid_t)u->uid, (gid_t)u->gid) < 0)
		return rfile_fail(err, -errno, d, "change the owner of");
	if ((st.st_mode & 07777) != (u->mode & 07777) && fchmod(d->fd, u->mode & 07777) < 0)
		return rfile_fail(err, -errno, d, "change the mode of");
	if (d->mtime_ns > 0)
		futimens(d->fd, times);
	return 0;
}

/* ---- by remote calls ------------------------------------------------------------------ */

/* A seal against writing is refused while a mapping could write; what was mapped before the seal
 * was mapped so, and can only have been read since: it is mapped again after it. */
static int remap(struct finish *f, const struct rnode *n, int fd, bool after)
{
	const json_t *maps = json_object_get(finish_restore(f)->process, "maps");
	const struct rdesc *d = n->d[0];
	int ret = 0;

	for (size_t i = 0; i < json_array_size(maps) && ret == 0; i++) {
		const json_t *m = json_array_get(maps, i);
		const char *prot = json_string_value(json_object_get(m, "prot"));
		uint32_t maj, min;
		uint64_t start, end;
		int64_t inode, offset;

		if (!json_is_true(json_object_get(m, "shared")) || !prot ||
		    rjson_int(m, "inode", INT64_MIN, INT64_MAX, &inode, NULL) < 0 ||
		    (uint64_t)inode != n->map_inode ||
		    rfile_parse_dev(m, "dev", 16, &maj, &min, NULL) < 0 || maj != n->map_major ||
		    min != n->map_minor || rjson_word(m, "start", &start, NULL) < 0 ||
		    rjson_word(m, "end", &end, NULL) < 0 || end <= start ||
		    rjson_int_or(m, "offset", 0, INT64_MAX, 0, &offset, NULL) < 0)
			continue;
		if (!after)
			ret = finish_add(f, d, "seal", SYS_mmap, start, end - start, PROT_NONE,
					 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, (uint64_t)-1, 0);
		else
			ret = finish_add(f, d, "seal", SYS_mmap, start, end - start,
					 (strchr(prot, 'r') ? PROT_READ : 0) |
						 (strchr(prot, 'x') ? PROT_EXEC : 0),
					 MAP_SHARED | MAP_FIXED, (uint64_t)fd, (uint64_t)offset);
	}
	return ret;
}

int runlinked_finish(struct finish *f, const struct rnode *n)
{
	const struct rdesc *d = n->d[0];
	int fd = n->keep_fd, ret = 0;

	for (size_t i = 0; fd < 0 && i < n->n; i++)
		if ((n->d[i]->flags & (O_ACCMODE | O_PATH)) == O_RDWR)
			fd = n->d[i]->fd;
	if (d->kind == RFILE_MEMFD && d->how == RFILE_MADE && nameless_of(n)->seals && fd >= 0) {
		int64_t seals = nameless_of(n)->seals;

		if (seals & F_SEAL_WRITE)
			ret = remap(f, n, fd, false);
		if (ret == 0)
			ret = finish_add(f, d, "seal", SYS_fcntl, (uint64_t)fd, F_ADD_SEALS,
					 (uint64_t)seals, 0, 0, 0);
		if (ret == 0 && seals & F_SEAL_WRITE)
			ret = remap(f, n, fd, true);
	}
	if (ret == 0 && n->keep_fd >= 0)
		ret = finish_add(f, d, "close", SYS_close, (uint64_t)n->keep_fd, 0, 0, 0, 0, 0);
	return ret;
}

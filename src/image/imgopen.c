#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "common/io.h"
#include "common/util.h"
#include "image/hash.h"
#include "image/image.h"
#include "image/ustar.h"

/* ---- errors ---- */

void img_begin(struct usnap_image *img)
{
	img->err.code = 0;
	img->err.text[0] = img->err.hint[0] = '\0';
	img->err_offset = USNAP_NO_OFFSET;
}

int img_damaged(struct usnap_image *img, uint64_t offset, const char *fmt, ...)
{
	va_list ap;

	if (img->err.code)
		return -EBADMSG;
	va_start(ap, fmt);
	vsnprintf(img->err_what, sizeof(img->err_what), fmt, ap);
	va_end(ap);
	img->err_offset = offset;
	return usnap_fail(&img->err, -EBADMSG, "cannot read '%s': offset %" PRIu64 ": %s",
			  img->name, offset, img->err_what);
}

int img_failed(struct usnap_image *img, int code, const char *what)
{
	return usnap_fail_errno(&img->err, code, "cannot read '%s'%s%s", img->name,
				what ? ": " : "", what ? what : "");
}

int img_newer(struct usnap_image *img, const char *what, int64_t version)
{
	usnap_fail(&img->err, -EPROTONOSUPPORT,
		   "cannot read '%s': %s is of version %" PRId64 ", known are up to %d", img->name,
		   what, version, FORMAT_VERSION);
	return usnap_hint(&img->err, "a newer uffd-snap reads it");
}

void img_copy_out(void *ret, size_t size, const void *from, size_t from_size)
{
	memcpy(ret, from, MIN(size, from_size));
	if (size > from_size)
		memset((char *)ret + from_size, 0, size - from_size);
}

int img_pread(struct usnap_image *img, void *buf, size_t len, uint64_t offset)
{
	int r;

	if (offset > img->size || len > img->size - offset)
		return img_damaged(img, img->size, "the file ends within what should be read");
	r = io_pread_full(img->fd, buf, len, offset);
	if (r == -ENODATA)
		return img_damaged(img, offset, "the file has become shorter");
	return r < 0 ? img_failed(img, r, NULL) : 0;
}

/* ---- members ---- */

struct img_member *img_find_member(struct usnap_image *img, const char *name)
{
	for (size_t i = 0; i < img->nr_members; i++)
		if (!strcmp(img->members[i].name, name))
			return &img->members[i];
	return NULL;
}

int img_check_header(struct usnap_image *img, const struct img_member *m)
{
	unsigned char block[FORMAT_TAR_BLOCK];
	uint64_t at = m->offset - FORMAT_TAR_BLOCK;
	struct ustar_entry e;
	const char *what;
	int r = img_pread(img, block, sizeof(block), at);

	if (r < 0)
		return r;
	if (ustar_parse(block, &e, &what) < 0)
		return img_damaged(img, at, "%s", what);
	/* Where a size needs a pax header, the plain one cannot hold it. */
	if (e.type != '0' || strcmp(e.name, m->name) || (e.size != m->size && m->size < 1ull << 33))
		return img_damaged(img, at, "the tar header is not that of '%s'", m->name);
	return 0;
}

int img_load_member(struct usnap_image *img, struct img_member *m)
{
	unsigned char hash[FORMAT_HASH_BYTES];
	uint64_t most = strncmp(m->name, FORMAT_THREADS_DIR, strlen(FORMAT_THREADS_DIR))
				? FORMAT_MAX_JSON
				: FORMAT_MAX_NOTES;
	char *data;
	int r;

	if (m->data)
		return 0;
	if (m->size > most)
		return img_damaged(img, m->offset, "'%s' is larger than any can be", m->name);
	if ((r = img_check_header(img, m)) < 0)
		return r;
	data = malloc(m->size + 1);
	if (!data)
		return img_failed(img, -ENOMEM, m->name);
	r = img_pread(img, data, m->size, m->offset);
	if (r == 0) {
		hash_canonical(hash, XXH3_128bits(data, m->size));
		if (memcmp(hash, m->hash, sizeof(hash)) != 0)
			r = img_damaged(img, m->offset, "'%s' differs from its hash", m->name);
	}
	if (r < 0) {
		free(data);
		return r;
	}
	data[m->size] = '\0';
	m->data = data;
	return 0;
}

int img_load_json(struct usnap_image *img, const char *name, json_t **ret)
{
	struct img_member *m = img_find_member(img, name);
	json_error_t e;
	json_t *j;
	int r;

	if (!m)
		return img_damaged(img, img->commit_content, "there is no '%s'", name);
	if ((r = img_load_member(img, m)) < 0)
		return r;
	j = json_loadb(m->data, m->size, JSON_REJECT_DUPLICATES, &e);
	if (!json_is_object(j)) {
		json_decref(j);
		return img_damaged(img, m->offset, "'%s' is no JSON object: %s", name, e.text);
	}
	*ret = j;
	return 0;
}

int img_load_process(struct usnap_image *img)
{
	return img->process ? 0 : img_load_json(img, FORMAT_PROCESS, &img->process);
}

/* ---- the handle ---- */

struct usnap_image *usnap_image_new(void)
{
	struct usnap_image *img = calloc(1, sizeof(*img));

	if (img) {
		img->fd = -1;
		pthread_mutex_init(&img->chain_lock, NULL);
		img_begin(img);
	}
	return img;
}

void usnap_image_free(struct usnap_image *img)
{
	if (!img)
		return;
	for (size_t i = 0; i < img->nr_members; i++)
		free(img->members[i].data);
	for (size_t i = 0; i < IMG_CACHE_FRAMES; i++)
		free(img->cache[i].data);
	img_close_chain(img);
	pthread_mutex_destroy(&img->chain_lock);
	if (img->index)
		munmap(img->index, img->index_len);
	if (img->paths)
		img_free_paths(img, img->nr_regions);
	ZSTD_freeDCtx(img->dctx);
	json_decref(img->snapshot);
	json_decref(img->process);
	free(img->compressed);
	free(img->regions);
	free(img->threads);
	free(img->contents);
	free(img->members);
	free(img->name);
	if (img->fd >= 0)
		close(img->fd);
	free(img);
}

/* Takes fd over. */
static int open_commit(struct usnap_image *img, int fd, const char *name)
{
	struct stat st;

	img->fd = fd;
	img->name = strdup(name);
	if (!img->name)
		return usnap_fail_errno(&img->err, -ENOMEM, "cannot open '%s'", name);
	if (fstat(fd, &st) < 0)
		return img_failed(img, -errno, NULL);
	if (S_ISDIR(st.st_mode))
		return img_failed(img, -EISDIR, NULL);
	if (!S_ISREG(st.st_mode)) {
		usnap_fail(&img->err, -ESPIPE, "cannot read '%s': not a regular file", name);
		return usnap_hint(
			&img->err,
			"images are read here and there: save the stream to a file first");
	}
	img->size = (uint64_t)st.st_size;
	return img_load_commit(img);
}

static int open_common(struct usnap_image *img, int fd, const char *name)
{
	int r = open_commit(img, fd, name);

	return r < 0 ? r : img_load_snapshot(img);
}

int img_open_file(struct usnap_image *img, const char *path)
{
	int fd;

	img_begin(img);
	if (img->name)
		return usnap_fail(&img->err, -EINVAL, "cannot open '%s': '%s' is open already",
				  path, img->name);
	/* A FIFO without a writer must not keep us waiting. */
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return usnap_fail_errno(&img->err, -errno, "cannot open '%s'", path);
	return open_commit(img, fd, path);
}

int usnap_image_open(struct usnap_image *img, const char *path)
{
	int r = img_open_file(img, path);

	return r < 0 ? r : img_load_snapshot(img);
}

int usnap_image_open_fd(struct usnap_image *img, int fd, const char *name)
{
	char number[32];
	int dup_fd;

	img_begin(img);
	snprintf(number, sizeof(number), "descriptor %d", fd);
	if (img->name)
		return usnap_fail(&img->err, -EINVAL, "cannot open '%s': '%s' is open already",
				  name ? name : number, img->name);
	dup_fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (dup_fd < 0)
		return usnap_fail_errno(&img->err, -errno, "cannot open '%s'",
					name ? name : number);
	return open_common(img, dup_fd, name ? name : number);
}

const char *usnap_image_error(const struct usnap_image *img)
{
	return img ? img->err.text : "cannot open an image: out of memory";
}

const char *usnap_image_hint(const struct usnap_image *img)
{
	return img ? img->err.hint : "";
}

uint64_t usnap_image_error_offset(const struct usnap_image *img)
{
	return img ? img->err_offset : USNAP_NO_OFFSET;
}

int img_require_open(struct usnap_image *img)
{
	img_begin(img);
	if (img->info.page_size)
		return 0;
	return usnap_fail(&img->err, -EINVAL, "cannot read an image: none is open");
}

int usnap_image_get_info(struct usnap_image *img, struct usnap_info *ret, size_t size)
{
	int r = img_require_open(img);

	if (r < 0)
		return r;
	img_copy_out(ret, size, &img->info, sizeof(img->info));
	return 0;
}

int usnap_image_get_member(struct usnap_image *img, const char *name, const char **ret,
			   size_t *ret_len)
{
	struct img_member *m;
	int r = img_require_open(img);

	if (r < 0)
		return r;
	m = img_find_member(img, name);
	if (!m || !strcmp(name, FORMAT_INDEX))
		return usnap_fail(&img->err, -ENOENT, "cannot read '%s': it has no '%s'", img->name,
				  name);
	if ((r = img_load_member(img, m)) < 0)
		return r;
	*ret = m->data;
	*ret_len = m->size;
	return 0;
}

const char *usnap_image_member_name(struct usnap_image *img, size_t nr)
{
	return nr < img->nr_members ? img->members[nr].name : NULL;
}

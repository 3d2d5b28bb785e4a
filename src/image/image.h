/*
 * An open image, as the files of the reader share it. Its public face is
 * uffd-snap.h; one thread at a time.
 *
 *	imgopen.c     the handle, errors, members
 *	imgcommit.c   commit.json, snapshot.json
 *	imgindex.c    the page index
 *	imgpages.c    pages, memory at an address
 *	imgchain.c    the files of ancestors
 *	imgprocess.c  regions and threads
 *	imgverify.c   whether every byte is what it was
 *	imgscan.c     the tar from its beginning, for verify
 *
 * Everything in the file is hostile until it is checked: functions here
 * check before they allocate, and name the offset in what they report.
 */
#ifndef USNAP_IMAGE_IMAGE_H
#define USNAP_IMAGE_IMAGE_H

#include <jansson.h>
#include <pthread.h>
#include <stdbool.h>
#include <uffd-snap.h>
#include <xxhash.h>
#include <zstd.h>

#include "common/err.h"
#include "image/format.h"

struct img_member {
	char name[FORMAT_MAX_NAME + 1];
	uint64_t offset, size; /* of the content */
	unsigned char hash[FORMAT_HASH_BYTES];
	char *data; /* once read */
};

struct img_thread {
	int32_t tid;
	const char *comm;
	const char *notes; /* NULL: not looked for yet */
	size_t notes_len;
};

/* One frame, as the page index describes it. */
struct img_frame {
	uint32_t image, raw_bytes, compressed_bytes;
	uint64_t offset;
};

/* Decoded frames, the least recently used of which makes room. Frames filled
 * by faults hold pages from all over: one alone would be decoded for every
 * page of a sequential read. */
enum {
	IMG_CACHE_FRAMES = 64,
	IMG_CACHE_BYTES = 16 << 20
};

struct img_cached {
	uint64_t frame, used; /* used: 0 when the entry is empty */
	unsigned char *data;
	uint32_t len;
};

/* Ancestors that stay open while nobody reads from them. */
enum {
	IMG_OPEN_ANCESTORS = 16
};

struct img_ancestor {
	char id[FORMAT_HASH_HEX + 1];
	char *path; /* where it was found */
	char *named; /* the first file whose name holds the id */
	int fd;
	uint64_t end; /* once found: its frames lie before this offset */
	unsigned users; /* threads that read from it */
	uint64_t used;
	bool missing; /* looked for everywhere */
	uint64_t nr_pages; /* that are referred to, once counted */
	char *why; /* what is wrong with a file that might have been it */
};

/* Where ancestors are looked for: a directory or a file. */
struct img_place {
	char *path;
	bool listed; /* the names in the directory were looked at */
	bool scanned; /* every image in the directory was looked at */
};

/* Bytes of a file without a name, at addresses that are none (format.h). */
struct img_content {
	uint64_t addr, size; /* multiples of the page size */
	uint32_t dev_major, dev_minor; /* of regions that map it; inode 0: there are none */
	uint64_t inode;
};

/* In each directory of a store that holds images: storelock.h. */
#define IMG_STORE_LOCK ".lock"

struct usnap_image {
	int fd;
	char *name;
	uint64_t size;
	struct usnap_err err;
	uint64_t err_offset; /* with -EBADMSG */
	char err_what[192]; /* the damage without file and offset */

	/* commit.json */
	char id[FORMAT_HASH_HEX + 1];
	uint64_t nr_pages, nr_frames;
	uint64_t commit_header; /* file offset of its tar header: the archive's last */
	uint64_t commit_content, commit_size;
	unsigned char archive_hash[FORMAT_HASH_BYTES];
	struct img_member *members;
	size_t nr_members;

	json_t *snapshot, *process;
	struct usnap_info info;
	struct usnap_region *regions;
	size_t nr_regions;
	char **paths; /* of regions whose path is no UTF-8; NULL for the others */
	struct img_thread *threads;
	size_t nr_threads;
	struct img_content *contents; /* ascending; NULL until they are needed */
	size_t nr_contents;

	/* The page index, decompressed; mapped, so that it is paid for as it
	 * is filled. NULL until it is needed. */
	unsigned char *index;
	size_t index_len;
	const unsigned char *images, *frames, *pages;
	uint64_t nr_images, seed; /* seed: of page hashes */
	uint64_t last_page; /* where the last search ended */

	pthread_mutex_t chain_lock; /* over the rest of this part */
	struct img_ancestor *ancestors; /* of image 1 on; NULL until one is needed */
	struct img_place *places;
	size_t nr_places;
	bool own_places; /* are among them */
	bool counted;
	unsigned nr_open;
	uint64_t chain_clock;

	ZSTD_DCtx *dctx;
	unsigned char *compressed;
	struct img_cached cache[IMG_CACHE_FRAMES];
	uint64_t clock, cache_bytes;
};

/* Forgets the last failure. Every public function begins with one of these. */
void img_begin(struct usnap_image *img);
/* As img_begin(), and refuses a handle that holds no image. */
int img_require_open(struct usnap_image *img);
/* Damage at offset: "cannot read 'FILE': ... at offset N". Returns -EBADMSG. */
int img_damaged(struct usnap_image *img, uint64_t offset, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* Any other failure: "cannot read 'FILE': <what>: <words for code>". */
int img_failed(struct usnap_image *img, int code, const char *what);
/* A format of the future. */
int img_newer(struct usnap_image *img, const char *what, int64_t version);

/* Reads exactly len bytes. A file that ends before is damaged. */
int img_pread(struct usnap_image *img, void *buf, size_t len, uint64_t offset);

struct img_member *img_find_member(struct usnap_image *img, const char *name);
/* Reads a member and compares it with its hash; m->data. */
int img_load_member(struct usnap_image *img, struct img_member *m);
/* The header before a member's content says the same as commit.json. */
int img_check_header(struct usnap_image *img, const struct img_member *m);

/* A JSON member, parsed: an object. */
int img_load_json(struct usnap_image *img, const char *name, json_t **ret);
/* The first two things of opening: fill the handle. */
int img_load_commit(struct usnap_image *img);
int img_load_snapshot(struct usnap_image *img);

/* process.json, parsed. */
int img_load_process(struct usnap_image *img);
void img_free_paths(struct usnap_image *img, size_t n);

/* Reads and checks the page index if that is not done yet. */
int img_load_index(struct usnap_image *img);
void img_get_frame(const struct usnap_image *img, uint64_t nr, struct img_frame *ret);
uint64_t img_page_addr(const struct usnap_image *img, uint64_t nr);
uint32_t img_page_frame(const struct usnap_image *img, uint64_t nr);
uint32_t img_page_slot(const struct usnap_image *img, uint64_t nr);
const unsigned char *img_page_hash(const struct usnap_image *img, uint64_t nr);
/* The first page at or above addr; nr_pages when there is none. */
uint64_t img_find_page(struct usnap_image *img, uint64_t addr);
/* The same for any thread, each with a hint of its own: where its last search ended. */
uint64_t img_find_page_near(const struct usnap_image *img, uint64_t addr, uint64_t hint);

/* Opens path as far as commit.json; once per handle. */
int img_open_file(struct usnap_image *img, const char *path);

/* ---- imgchain.c: any thread, the index being loaded ---- */

/* Reads the compressed bytes of a frame, in this file or an ancestor's, which is looked for and
 * opened as needed. -ESTALE: there is no such ancestor. */
int img_pread_frame(struct usnap_image *img, const struct img_frame *f, void *buf,
		    struct usnap_err *err);
/* What was read of a frame is damaged: says so and names the file. Returns -EBADMSG. */
int img_frame_damaged(struct usnap_image *img, const struct img_frame *f, struct usnap_err *err,
		      const char *fmt, ...) __attribute__((format(printf, 4, 5)));
/* The file of image 1 and above; NULL when it has not been found. Lives as long as the handle. */
const char *img_ancestor_path(struct usnap_image *img, uint64_t image);
/* Whether every ancestor is there and long enough. One thread. */
int img_open_chain(struct usnap_image *img, struct usnap_err *err);
void img_close_chain(struct usnap_image *img);

/* Pages in the order of their frames, ascending by address in each: those of frame f are numbers
 * pages[first[f]] ... pages[first[f + 1] - 1]. The caller frees both, after a failure too. */
int img_sort_by_frame(const struct usnap_image *img, uint64_t **ret_first, uint64_t **ret_pages);

/* What "unlinked" of process.json says: where the contents of files are. */
int img_load_contents(struct usnap_image *img);
/* The bytes of files at such addresses, all or nothing. -EFAULT: [addr, addr + len) does not lie in
 * one content. */
int img_read_content(struct usnap_image *img, uint64_t addr, void *buf, size_t len);
/* As usnap_image_next_run(), for these addresses: the rest of a content is zero. */
int img_next_content_run(struct usnap_image *img, uint64_t addr, uint64_t *ret_start,
			 uint64_t *ret_len);

/* Decodes compressed, which holds frame f, into raw. NULL, or what is wrong.
 * Needs nothing of the handle: any thread. */
const char *img_decode(ZSTD_DCtx *dctx, const struct img_frame *f, const void *compressed,
		       void *raw);

/* Whether notes lie back to back within len, and nothing else does. */
bool img_notes_sound(const char *notes, size_t len);

/* Copies a public struct into one of the caller's size. */
void img_copy_out(void *ret, size_t size, const void *from, size_t from_size);

/* ---- imgscan.c ---- */

struct img_extent {
	uint64_t offset, size;
};

/* What a walk through the archive finds: page segments in order. */
struct img_scan {
	struct img_extent *segments;
	size_t nr_segments;
};

/* Walks the tar headers up to commit.json's. Reports the first thing wrong
 * as img_damaged() does and returns -EBADMSG; what was found up to there
 * stays in ret. Compares with the members that commit.json names. */
int img_scan(struct usnap_image *img, struct img_scan *ret);
void img_scan_free(struct img_scan *s);

#endif

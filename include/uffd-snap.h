/*
 * libuffd-snap: reading the images that uffd-snap(1) writes.
 *
 *	struct usnap_image *img = usnap_image_new();
 *
 *	if (!img || usnap_image_open(img, "redis.usnap") < 0)
 *		errx(1, "%s", usnap_image_error(img));
 *	if (usnap_image_read(img, addr, buf, sizeof(buf)) < 0)
 *		errx(1, "%s", usnap_image_error(img));
 *	usnap_image_free(img);
 *
 * An image may come from anybody: every number in it is checked before it is
 * used, every byte that is returned has been compared with its hash, and
 * memory use is bounded by the size of the file.
 *
 * A handle belongs to one thread at a time; different handles, of the same
 * file too, are independent. Strings and buffers that functions return belong
 * to the handle and live until usnap_image_free(). Addresses and sizes are in
 * bytes, times in nanoseconds.
 *
 * Functions return 0 or a positive value, or a negative errno with a sentence
 * in usnap_image_error(). Beside what system calls answer:
 *
 *	-EBADMSG          the image is damaged; usnap_image_error_offset() says where
 *	-ESTALE           an image that this one refers to is missing
 *	-EPROTONOSUPPORT  the image is of a newer format than this library knows
 *	-EINVAL           not an image at all, or a wrong argument
 *	-ESPIPE           a pipe or terminal: images are read here and there
 *	-ENOMEM           out of memory
 *
 * uffd-snap-image(5) describes the file, libuffd-snap(3) this interface.
 */
#ifndef UFFD_SNAP_H
#define UFFD_SNAP_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define USNAP_API __attribute__((visibility("default")))

struct usnap_image;

/* A handle with nothing open. NULL when out of memory. */
USNAP_API struct usnap_image *usnap_image_new(void);

/* Opens an image: reads what identifies it and none of its pages, so that it
 * takes milliseconds whatever the size. Once per handle. */
USNAP_API int usnap_image_open(struct usnap_image *img, const char *path);

/* The same for an open file, whose offset is neither used nor moved. fd is
 * duplicated and stays the caller's. name is for messages; NULL is fine. */
USNAP_API int usnap_image_open_fd(struct usnap_image *img, int fd, const char *name);

/* Closes and frees. NULL is fine. */
USNAP_API void usnap_image_free(struct usnap_image *img);

/* What the last failed call on this handle met: one line without its end,
 * "cannot <verb> 'object': <reason>". "" when none failed yet. NULL as the
 * handle is understood as out of memory. */
USNAP_API const char *usnap_image_error(const struct usnap_image *img);

/* What to do about it, or "". */
USNAP_API const char *usnap_image_hint(const struct usnap_image *img);

/* Where in the file it was, or USNAP_NO_OFFSET. */
#define USNAP_NO_OFFSET UINT64_MAX
USNAP_API uint64_t usnap_image_error_offset(const struct usnap_image *img);

/* ---- what it is an image of ---- */

struct usnap_info {
	const char *id; /* 32 lower-case hex digits */
	const char *parent; /* id of the image that this one continues, or NULL */
	uint64_t t0_realtime_ns; /* CLOCK_REALTIME at the instant the image shows */
	uint64_t t0_monotonic_ns, t0_boottime_ns;
	const char *host, *kernel, *arch, *tool, *strategy; /* "" where not recorded */
	const char *comm, *exe;
	int32_t pid; /* of the process, when it was taken */
	uint32_t page_size; /* unit of usnap_image_next_run(), bytes */
	uint64_t nr_pages; /* stored; the others are zero or as in their file */
	uint64_t nr_frames; /* compressed pieces that hold them */
	uint64_t file_bytes; /* size of the file */
	const char *run; /* 32 hex digits: images of one run of a process share it; "": unknown */
};

/* size: sizeof(*ret). A library newer than its caller fills what both know,
 * an older one zeroes the rest. Other functions with size work alike. */
USNAP_API int usnap_image_get_info(struct usnap_image *img, struct usnap_info *ret, size_t size);

/* ---- what it continues ---- */

/*
 * An image can refer to pages that other images hold: its ancestors. They are
 * found by their id when a page of one is wanted: in what was added here, in
 * the image's directory, and where its parent was when it was taken. What
 * needs no such page works without them; what does fails with -ESTALE when one
 * is missing, and every byte of an ancestor that is returned has been compared
 * with the hash that this image has of it.
 */

/* A directory with images, or one image, to look at first. Before the first read. */
USNAP_API int usnap_image_add_ancestors(struct usnap_image *img, const char *path);

struct usnap_ancestor {
	const char *id;
	const char *path; /* NULL: it was not found */
	uint64_t nr_pages; /* that lie there */
};

/* Numbered from 0. Looks for the file. */
USNAP_API int usnap_image_get_nr_ancestors(struct usnap_image *img, size_t *ret);
USNAP_API int usnap_image_get_ancestor(struct usnap_image *img, size_t nr,
				       struct usnap_ancestor *ret, size_t size);

/* 1 when id is this image's or that of an ancestor, 0 when not. */
USNAP_API int usnap_image_is_needed(struct usnap_image *img, const char *id);

/* ---- its memory ---- */

/* What a page is that a region has and the image does not store. */
enum usnap_content {
	USNAP_CONTENT_IMAGE = 0, /* zero */
	USNAP_CONTENT_FILE = 1, /* as in the file that is mapped */
	USNAP_CONTENT_NONE = 2, /* unknown: memory of a device, or of the kernel's making */
};

struct usnap_region {
	uint64_t start, end; /* [start, end), multiples of the page size */
	uint64_t offset; /* into the file, bytes */
	uint64_t inode;
	uint32_t dev_major, dev_minor;
	uint32_t prot; /* PROT_READ | PROT_WRITE | PROT_EXEC of <sys/mman.h> */
	uint32_t shared; /* 1: MAP_SHARED */
	enum usnap_content content;
	uint64_t page_size; /* of the mapping; more than the base page size for huge pages */
	const char *kind; /* "anonymous", "file", "file-shared", "shmem" ...: uffd-snap-image(5) */
	const char *path; /* file or "[heap]"; "" when it has no name */
};

/* Regions are numbered from 0, ascending by address, and do not overlap. */
USNAP_API int usnap_image_get_nr_regions(struct usnap_image *img, size_t *ret);
USNAP_API int usnap_image_get_region(struct usnap_image *img, size_t nr, struct usnap_region *ret,
				     size_t size);

/* The number of the region that holds addr, or the next one above it.
 * Returns 1 when it holds addr, 0 when it lies above, -ENOENT when there is
 * neither. */
USNAP_API int usnap_image_find_region(struct usnap_image *img, uint64_t addr, size_t *ret_nr);

/* Copies len bytes at addr, as they were at T0. All or nothing.
 *
 *	-EFAULT   some of it was not mapped; the error names the first address
 *	-ENODATA  some of it is not in the image: as in a file, or unknown
 *
 * At USNAP_UNLINKED_START and above lies no memory but the contents of files
 * without a name, where "unlinked" of process.json says, uffd-snap-image(5).
 *
 *	-EBADMSG  the bytes are damaged */
#define USNAP_UNLINKED_START UINT64_C(0xff00000000000000)
USNAP_API int usnap_image_read(struct usnap_image *img, uint64_t addr, void *buf, size_t len);

/* The next run of stored pages of memory: the first that lies at or above addr, cut
 * off at addr. Returns 1 and the range, or 0 when there is none. The range
 * can cross regions that touch; it is a multiple of the page size when addr
 * is. */
USNAP_API int usnap_image_next_run(struct usnap_image *img, uint64_t addr, uint64_t *ret_start,
				   uint64_t *ret_len);

/* XXH3-128 of the stored page that holds addr, in canonical (big-endian)
 * form, with the seed of the chain: comparable among its images. Returns 1, or 0 when the page is not stored. Reads no page. */
USNAP_API int usnap_image_page_hash(struct usnap_image *img, uint64_t addr, unsigned char ret[16]);

/* ---- its threads ---- */

struct usnap_thread {
	int32_t tid;
	const char *comm;
};

USNAP_API int usnap_image_get_nr_threads(struct usnap_image *img, size_t *ret);
USNAP_API int usnap_image_get_thread(struct usnap_image *img, size_t nr, struct usnap_thread *ret,
				     size_t size);

/* Registers and the like as ELF core notes back to back, each checked to lie
 * within len. -ENOENT when the image has none for this thread. */
USNAP_API int usnap_image_get_notes(struct usnap_image *img, size_t nr, const void **ret,
				    size_t *ret_len);

/* ---- its members ---- */

/* The bytes of a member: "snapshot.json", "process.json", "stats.json",
 * "threads/123.notes", followed by a NUL that ret_len does not count. Not for
 * pages and the page index. -ENOENT when there is none of that name. */
USNAP_API int usnap_image_get_member(struct usnap_image *img, const char *name, const char **ret,
				     size_t *ret_len);

/* Name of member nr, or NULL beyond the last. */
USNAP_API const char *usnap_image_member_name(struct usnap_image *img, size_t nr);

/* ---- whether it is sound ---- */

struct usnap_verify_options {
	size_t size; /* sizeof(struct usnap_verify_options) */
	unsigned nr_threads; /* 0: one per CPU */
	void *ctx; /* handed to both functions, which the calling thread calls */
	/* Something is wrong at offset in the file. May be NULL. */
	void (*finding)(void *ctx, uint64_t offset, const char *what);
	/* Bytes of the file checked so far, some ten times a second. May be NULL. */
	void (*progress)(void *ctx, uint64_t done, uint64_t total);
	unsigned no_chain; /* 1: leave alone what lies in ancestors */
};

/* Reads every byte of the file: every frame is decoded, every page and member
 * compared with its hash, every reference followed, those into ancestors too.
 * An ancestor that is missing is a finding. Returns 0 when the image
 * is sound, -EBADMSG when there was a finding. After usnap_image_open() has
 * failed with -EBADMSG, the reason is the one finding. */
USNAP_API int usnap_image_verify(struct usnap_image *img,
				 const struct usnap_verify_options *options);

/* ---- asking for a snapshot from inside ---- */

/*
 * What follows is not in libuffd-snap but in libuffd-snap-agent, which is put
 * into a program by LD_PRELOAD or linked to it. A program that is to run
 * without it too defines USNAP_AGENT_WEAK before this header is included, is
 * not linked with it, and looks:
 *
 *	if (usnap_checkpoint && usnap_checkpoint(NULL) == 1)
 *		printf("brought back\n");
 *
 * libuffd-snap-agent(3) describes all of it.
 */
#ifdef USNAP_AGENT_WEAK
#define USNAP_AGENT_API USNAP_API __attribute__((weak))
#else
#define USNAP_AGENT_API USNAP_API
#endif

/* Strings may be NULL, and what is zero is as usual. */
struct usnap_checkpoint_options {
	size_t size; /* sizeof(struct usnap_checkpoint_options) */
	const char *output; /* the file to write; NULL: into a store */
	const char *parent; /* with output: the image that it continues */
	const char *store, *name; /* without: the directory, the name in it */
	unsigned timeout_s; /* seconds after which it is given up; 0: never */
	unsigned no_wait; /* 1: return when T0 is past, not when the image is complete */
	char *path; /* of the image, written here; "" where it is not known */
	size_t path_size;
	char *error; /* what went wrong, one line: written here; else "" */
	size_t error_size;
};

/*
 * Takes a snapshot of the calling process, and returns twice, as setjmp(3)
 * does: 0 in the process that goes on, and 1, some other day, in each that is
 * restored from the image. NULL: a snapshot into the usual store.
 *
 *	-EBUSY      another thread is in here
 *	-ENOENT     there is no command uffd-snap
 *	-ECANCELED  there is no image: the error says why
 *	-EINVAL     a wrong option
 *
 * and what socketpair(2) and clone(2) can return. Not from a signal handler.
 */
USNAP_AGENT_API int usnap_checkpoint(const struct usnap_checkpoint_options *options);

/*
 * Leaves [addr, addr+len) out of images, whoever takes them: whole pages that
 * lie in it. It is zero when it comes back. usnap_include() has them saved
 * again: all pages that are touched by it. To unmap or free memory does not,
 * and what comes to lie there is left out too: include it before.
 *
 *	-ENOSPC  more than 64 ranges; nothing has changed
 *	-EINVAL  no range of memory
 */
USNAP_AGENT_API int usnap_exclude(const void *addr, size_t len);
USNAP_AGENT_API int usnap_include(const void *addr, size_t len);

enum usnap_phase {
	USNAP_BEFORE_FREEZE = 0, /* the threads are about to be stopped */
	USNAP_AFTER_FREEZE = 1, /* T0 is past, or there was none */
	USNAP_RESTORED = 2, /* instead of the second, in a process that was restored */
};

/*
 * Calls a function at each usnap_checkpoint(), on the thread that is in it.
 * Snapshots that others take call nothing. Those of before the freeze are
 * called in the reverse of the order in which they were added.
 *
 *	-ENOSPC  more than 32
 *	-EINVAL  no such phase, or no function
 */
USNAP_AGENT_API int usnap_on(enum usnap_phase phase, void (*callback)(void *arg), void *arg);

/* Takes it back: 0, or -ENOENT. */
USNAP_AGENT_API int usnap_off(enum usnap_phase phase, void (*callback)(void *arg), void *arg);

/* How often this process has been brought back from an image, whoever took it. */
USNAP_AGENT_API unsigned usnap_restored(void);

#ifdef __cplusplus
}
#endif

#endif

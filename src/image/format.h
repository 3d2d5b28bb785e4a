/*
 * The bytes of an image: what writer and reader agree upon. The format is
 * described in uffd-snap-image(5); this file holds its numbers.
 *
 * An image is a tar archive:
 *
 *	snapshot.json  process.json  threads/TID.notes ...
 *	pages/000000.zst  pages/000001.zst ...    zstd frames back to back
 *	index.zst                                 where every page lies
 *	stats.json
 *	commit.json                               last; names all the others
 *
 * index.zst, decompressed: a header, then three tables without gaps.
 *
 *	header   magic[8] u32 version  u32 page_size  u64 nr_images
 *	         u64 nr_frames  u64 nr_pages  u64 seed  zero[16]
 *	images   nr_images x { u8 id[16]  zero[16] }
 *	frames   nr_frames x { u32 image  u32 raw_bytes  u32 compressed_bytes
 *	                       u32 zero  u64 file_offset  u64 zero }
 *	pages    nr_pages x  { u64 addr  u32 frame  u16 slot  u16 zero
 *	                       u8 xxh3_128[16] }
 *
 * Everything is little-endian but the hashes, which are in XXH3's canonical
 * (big-endian) form. Pages ascend by address, each address once. Image 0 is
 * this one, the others are ancestors whose frames are referred to: an index
 * is complete, and what an ancestor refers to itself is never asked.
 */
#ifndef USNAP_IMAGE_FORMAT_H
#define USNAP_IMAGE_FORMAT_H

#include <stdint.h>

#define FORMAT_NAME "uffd-snap image"
#define FORMAT_INDEX_MAGIC "USNAPIDX"

#define FORMAT_SNAPSHOT "snapshot.json"
#define FORMAT_PROCESS "process.json"
#define FORMAT_INDEX "index.zst"
#define FORMAT_STATS "stats.json"
#define FORMAT_COMMIT "commit.json"
#define FORMAT_PAGES_DIR "pages/"
#define FORMAT_THREADS_DIR "threads/"

enum {
	FORMAT_VERSION = 1, /* of snapshot.json and commit.json */
	FORMAT_INDEX_VERSION = 1,

	FORMAT_TAR_BLOCK = 512,
	FORMAT_TAR_END = 1024, /* zero bytes that end an archive */

	FORMAT_ID_BYTES = 16,
	FORMAT_HASH_BYTES = 16,
	FORMAT_HASH_HEX = 32,

	FORMAT_INDEX_HEADER = 64,
	FORMAT_INDEX_RECORD = 32, /* of each table */

	/* A reader refuses what is beyond these; a writer stays below. */
	FORMAT_MIN_PAGE = 4096,
	FORMAT_MAX_PAGE = 65536,
	FORMAT_MAX_FRAME_RAW = 2 << 20,
	FORMAT_MAX_JSON = 64 << 20,
	FORMAT_MAX_COMMIT = 16 << 20,
	FORMAT_MAX_NOTES = 1 << 20,
	FORMAT_MAX_NAME = 99, /* of a member: a plain ustar header holds it */
	/* No index of a real process shrinks by more than some 40: equal pages differ in address. */
	FORMAT_MAX_INDEX_RATIO = 256,
	FORMAT_MAX_IMAGES = 65536, /* in an index */
};

/* Pages at these addresses are no memory: the bytes of files that have no
 * name, as "unlinked" of process.json says. Nothing can be mapped there: below
 * lies what user space can have with five levels of page tables, above the
 * kernel's half, with [vsyscall]. */
#define FORMAT_CONTENT_START UINT64_C(0xff00000000000000)
#define FORMAT_CONTENT_END UINT64_C(0xffff000000000000)

/* commit.json ends with these two, so that their places are known before
 * their values are. The first is over every byte of the file before the
 * content of commit.json, its tar header included; the second over the
 * content of commit.json up to the opening quote of the second's value. */
#define FORMAT_COMMIT_TAIL "\"archive_xxh3\":\"%s\",\"commit_xxh3\":\"%s\"}\n"

/* From the start of either value to the end of the file's content. */
enum {
	FORMAT_COMMIT_SELF = FORMAT_HASH_HEX + 3,
	FORMAT_COMMIT_ARCHIVE = FORMAT_COMMIT_SELF + FORMAT_HASH_HEX + 17,
};

#endif

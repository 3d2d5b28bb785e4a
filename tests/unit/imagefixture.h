/*
 * Images for tests: made by the writer in a memfd, with a process that has a
 * region of each kind and a page content that is known from its address.
 */
#ifndef TESTS_UNIT_IMAGEFIXTURE_H
#define TESTS_UNIT_IMAGEFIXTURE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/err.h"
#include "image/writer.h"

#define FIXTURE_ID "00112233445566778899aabbccddeeff"

enum {
	PAGE = 4096,
	FRAME_PAGES = 8
};

#define HEAP 0x10000000ull
#define SHARED_A 0x20000000ull
#define SHARED_B 0x30000000ull
#define FILE_MAP 0x40000000ull
#define DEVICE_MAP 0x50000000ull

enum {
	HEAP_PAGES = 64,
	SHARED_PAGES = 4,
	FILE_PAGES = 4
};

static const char fixture_snapshot[] =
	"{\"format\":\"uffd-snap image\",\"version\":1,\"id\":\"" FIXTURE_ID
	"\",\"parent\":null,\"t0\":{\"realtime_ns\":1700000000123456789,\"monotonic_ns\":5,"
	"\"boottime_ns\":6},\"host\":\"h\",\"kernel\":\"6.18\",\"arch\":\"x86_64\","
	"\"page_size\":4096,\"target\":{\"pid\":123,\"comm\":\"server\",\"exe\":\"/bin/server\"},"
	"\"tool\":\"uffd-snap 0\",\"strategy\":\"cow\"}";

/* clang-format off */
#define FIXTURE_MAP(start, end, prot, shared, kind, content, path)				\
	"{\"start\":\"" start "\",\"end\":\"" end "\",\"prot\":\"" prot "\",\"shared\":" shared	\
	",\"offset\":8192,\"dev\":\"fe:01\",\"inode\":7,\"kind\":\"" kind "\",\"content\":\""	\
	content "\"," path ",\"page_size\":4096}"

static const char fixture_process[] =
	"{\"pid\":123,\"maps\":["
	FIXTURE_MAP("0x10000000", "0x10040000", "rw-", "false", "anonymous", "image",
		    "\"path\":\"[heap]\"") ","
	FIXTURE_MAP("0x20000000", "0x20004000", "rw-", "true", "shmem", "image",
		    "\"path\":\"/dev/shm/x\"") ","
	FIXTURE_MAP("0x30000000", "0x30004000", "r--", "true", "shmem", "image",
		    "\"path\":\"/dev/shm/x\"") ","
	FIXTURE_MAP("0x40000000", "0x40004000", "r-x", "false", "file", "file",
		    "\"path\":\"/bin/server\"") ","
	FIXTURE_MAP("0x50000000", "0x50001000", "rw-", "true", "device", "none",
		    "\"path\":\"/dev/gp?\",\"path_hex\":\"2f6465762f6770ff\"")
	"],\"threads\":[{\"tid\":123,\"comm\":\"server\"},{\"tid\":124,\"comm\":\"io\"}],"
	"\"files\":[{\"fd\":0,\"type\":\"file\",\"path\":\"/tmp/x\"}],"
	"\"limits_of_restore\":[{\"what\":\"device\",\"detail\":\"/dev/gpu\",\"severity\":\"refuse\"}]}";
/* clang-format on */

/* namesz, descsz, type, "CORE\0" padded, 4 bytes of descriptor */
static const char fixture_notes[] = "\5\0\0\0\4\0\0\0\1\0\0\0CORE\0\0\0\0abcd";

/* The bytes of the page at addr: compressible, different everywhere but in the two mappings of
 * the shared object. */
static inline void fixture_page(uint64_t addr, unsigned char *p)
{
	if (addr - SHARED_B < SHARED_PAGES * PAGE)
		addr -= SHARED_B - SHARED_A;
	uint64_t x = addr * 0x9E3779B97F4A7C15ull + 1;

	for (size_t i = 0; i < PAGE; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		p[i] = i % 16 ? (unsigned char)(addr >> 12) : (unsigned char)x;
	}
}

static inline int fixture_open_writer(struct image_writer **w, int fd, struct usnap_err *err)
{
	struct image_writer_options o = {
		.fd = fd, .page_size = PAGE, .level = 1, .frame_pages = FRAME_PAGES};

	return image_writer_open(w, &o, err);
}

static inline int fixture_members(struct image_writer *w, struct usnap_err *err)
{
	static const char *const notes[] = {"threads/123.notes", "threads/124.notes"};
	int r = image_writer_member(w, "snapshot.json", fixture_snapshot,
				    sizeof(fixture_snapshot) - 1, err);

	if (r == 0)
		r = image_writer_member(w, "process.json", fixture_process,
					sizeof(fixture_process) - 1, err);
	for (int i = 0; i < 2 && r == 0; i++)
		r = image_writer_member(w, notes[i], fixture_notes, sizeof(fixture_notes) - 1, err);
	return r;
}

/* Encodes nr pages from addr on, frame by frame; every zero_every-th page is
 * zero (0: none). */
static inline int fixture_encode(struct image_writer *w, uint64_t addr, unsigned nr,
				 unsigned zero_every)
{
	static __thread unsigned char buf[FRAME_PAGES * PAGE];
	struct image_encoder *e;
	int r = image_encoder_new(&e, w);

	for (unsigned at = 0; at < nr && r == 0; at += FRAME_PAGES) {
		struct image_run run = {.addr = addr + (uint64_t)at * PAGE,
					.nr_pages = nr - at < FRAME_PAGES ? nr - at : FRAME_PAGES};

		for (unsigned i = 0; i < run.nr_pages; i++) {
			fixture_page(run.addr + (uint64_t)i * PAGE, buf + i * PAGE);
			if (zero_every && (at + i) % zero_every == 0)
				memset(buf + i * PAGE, 0, PAGE);
		}
		r = image_encode(e, &run, 1, buf);
	}
	image_encoder_free(e);
	return r;
}

/* Everything but the pages of the heap from heap_pages on. */
static inline int fixture_write(struct image_writer *w, unsigned heap_pages, struct usnap_err *err)
{
	int r = image_writer_begin(w, err);

	if (r == 0)
		r = fixture_members(w, err);
	if (r == 0)
		r = fixture_encode(w, HEAP, heap_pages, 5);
	if (r == 0)
		r = fixture_encode(w, SHARED_A, SHARED_PAGES, 0);
	if (r == 0)
		r = fixture_encode(w, SHARED_B, SHARED_PAGES, 0);
	if (r == 0)
		r = fixture_encode(w, FILE_MAP, 1, 0);
	if (r == 0)
		r = image_writer_commit(w, "{\"pause_ns\":412000}", 19, err);
	return r;
}

/* A whole image in a memfd, or -1 with a message. */
static inline int fixture_image(unsigned heap_pages)
{
	int fd = memfd_create("image", MFD_CLOEXEC);
	struct usnap_err err = {0};
	struct image_writer *w;

	if (fixture_open_writer(&w, fd, &err) < 0 || fixture_write(w, heap_pages, &err) < 0) {
		fprintf(stderr, "%s\n", err.text);
		return -1;
	}
	image_writer_close(w);
	return fd;
}

/* An image of three pages of HEAP, with this process.json. Negative: it cannot be written. */
static inline int fixture_image_of(const char *process)
{
	int fd = memfd_create("image", MFD_CLOEXEC);
	struct usnap_err err = {0};
	struct image_writer *w;
	int r = fixture_open_writer(&w, fd, &err);

	if (r < 0)
		return r;
	r = image_writer_begin(w, &err);
	if (r == 0)
		r = image_writer_member(w, "snapshot.json", fixture_snapshot,
					sizeof(fixture_snapshot) - 1, &err);
	if (r == 0)
		r = image_writer_member(w, "process.json", process, strlen(process), &err);
	if (r == 0)
		r = fixture_encode(w, HEAP, 3, 0);
	if (r == 0)
		r = image_writer_commit(w, "{}", 2, &err);
	image_writer_close(w);
	return r < 0 ? r : fd;
}

#endif

/*
 * Chains for tests: images in the current directory, one per generation of a
 * heap whose pages change at known times.
 */
#ifndef TESTS_UNIT_CHAINFIXTURE_H
#define TESTS_UNIT_CHAINFIXTURE_H

#include <fcntl.h>
#include <uffd-snap.h>

#include "image/image.h"
#include "imagefixture.h"

enum {
	CHAIN_PAGES = 48
};

#define CHAIN_RUN "abcdefabcdefabcdefabcdefabcdef00"

/* What the page of the heap holds in a generation, 1 being the first; false: zeros. */
static inline bool chain_page(unsigned generation, unsigned page, unsigned char *p)
{
	unsigned since = 1;

	/* Page n changes in every generation that n + 1 divides, pages above 8 in none. */
	for (unsigned g = 2; g <= generation; g++)
		if (page < 8 && g % (page + 1) == 0)
			since = g;
	fixture_page(HEAP + (uint64_t)(page + 1000 * since) * PAGE, p);
	if (page % 11 == 10)
		fixture_page(HEAP, p); /* the same everywhere */
	if (page == 20 + generation || page % 13 == 12) {
		memset(p, 0, PAGE);
		return false;
	}
	return true;
}

static inline void chain_id(unsigned generation, char id[33])
{
	snprintf(id, 33, "%032x", 0xc0ffee00u + generation);
}

static inline int chain_encode(struct image_writer *w, unsigned generation)
{
	static unsigned char buf[FRAME_PAGES * PAGE];
	struct image_encoder *e;
	int r = image_encoder_new(&e, w);

	for (unsigned at = 0; at < CHAIN_PAGES && r == 0; at += FRAME_PAGES) {
		struct image_run run = {.addr = HEAP + (uint64_t)at * PAGE,
					.nr_pages = FRAME_PAGES};

		for (unsigned i = 0; i < FRAME_PAGES; i++)
			chain_page(generation, at + i, buf + i * PAGE);
		r = image_encode(e, &run, 1, buf);
	}
	image_encoder_free(e);
	return r;
}

static inline int chain_members(struct image_writer *w, unsigned generation, const char *parent,
				const char *parent_path, struct usnap_err *err)
{
	char text[2048], id[33], quoted[33 + 2] = "null";
	int n, r;

	chain_id(generation, id);
	if (parent)
		snprintf(quoted, sizeof(quoted), "\"%s\"", parent);
	n = snprintf(text, sizeof(text),
		     "{\"format\":\"uffd-snap image\",\"version\":1,\"id\":\"%s\",\"parent\":%s,"
		     "\"parent_path\":\"%s\",\"run\":\"" CHAIN_RUN
		     "\",\"t0\":{\"realtime_ns\":%u},\"page_size\":4096,\"target\":{\"pid\":123}}",
		     id, quoted, parent_path ? parent_path : "", generation);
	r = image_writer_member(w, "snapshot.json", text, (size_t)n, err);
	if (r == 0)
		r = image_writer_member(w, "process.json", fixture_process,
					sizeof(fixture_process) - 1, err);
	if (r == 0)
		r = image_writer_member(w, "threads/123.notes", fixture_notes,
					sizeof(fixture_notes) - 1, err);
	if (r == 0)
		r = image_writer_member(w, "threads/124.notes", fixture_notes,
					sizeof(fixture_notes) - 1, err);
	return r;
}

/* Writes a generation to path, as a child of parent (NULL: full). */
static inline int chain_write(const char *path, unsigned generation, const char *parent,
			      struct image_writer_stats *ret, struct usnap_err *err)
{
	struct image_writer_options o = {.page_size = PAGE, .level = 1, .frame_pages = FRAME_PAGES};
	struct usnap_image *p = parent ? usnap_image_new() : NULL;
	struct usnap_info info = {0};
	struct image_writer *w = NULL;
	int r = 0;

	o.fd = open(path, O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600);
	if (p && (r = usnap_image_open(p, parent)) == 0)
		r = usnap_image_get_info(p, &info, sizeof(info));
	if (r == 0)
		r = image_writer_open(&w, &o, err);
	if (r == 0 && p)
		r = image_writer_set_parent(w, p, err);
	if (r == 0)
		r = image_writer_begin(w, err);
	if (r == 0)
		r = chain_members(w, generation, info.id, NULL, err);
	if (r == 0)
		r = chain_encode(w, generation);
	if (r == 0)
		r = image_writer_commit(w, "{}", 2, err);
	if (r == 0 && ret)
		image_writer_get_stats(w, ret);
	image_writer_close(w);
	usnap_image_free(p);
	close(o.fd);
	return r;
}

#endif

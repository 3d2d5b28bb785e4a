/*
 * The planning of a restore, from images that say what they like. An input is
 * four sections, each u16 length (little-endian) and bytes: process.json, the
 * notes of its thread 123, the page index, a page segment. Planning looks at
 * the machine, at files by their names above all, and changes nothing.
 *
 * Mutations of text seldom are JSON: the mutator here changes a value of the
 * parsed document.
 */
#include <jansson.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/util.h"
#include "fuzzarchive.h"
#include "image/image.h"
#include "restore/restore_internal.h"
#include "restore/rfiles.h"
#include "restore/rmem.h"
#include "restore/rproc.h"
#include "restore/rthreads.h"

static const char snapshot_json[] =
	"{\"format\":\"uffd-snap image\",\"version\":1,\"id\":\"00112233445566778899aabbccddeeff\","
	"\"parent\":null,\"t0\":{\"realtime_ns\":1700000000123456789,\"monotonic_ns\":5,"
	"\"boottime_ns\":6},\"host\":\"h\",\"kernel\":\"6.18\",\"arch\":\"x86_64\","
	"\"page_size\":4096,\"target\":{\"pid\":123,\"comm\":\"server\",\"exe\":\"/bin/server\"},"
	"\"tool\":\"uffd-snap 0\",\"strategy\":\"cow\"}";

static void plan(struct restore *r)
{
	struct usnap_err err = {0};
	int code;

	if ((code = problems_from_image(r, &err)) < 0 || (code = rproc_plan(r, &err)) < 0 ||
	    (code = rfiles_plan(r, &err)) < 0 || (code = rmem_plan(r, &err)) < 0 ||
	    (code = rthreads_plan(r, &err)) < 0) {
		if (!err.code || !err.text[0])
			abort();
		return;
	}
	json_t *o = json_object();
	rproc_describe(r, o);
	rmem_describe(r, o);
	rthreads_describe(r, o);
	rfiles_describe(r, o);
	json_decref(o);
}

static void restore_image(int fd)
{
	struct restore_options o = {.image = "image"};
	struct restore r = {.o = &o, .builder_pidfd = -1, .pid = 123, .pgid = 123, .sid = 123};

	r.img = usnap_image_new();
	if (usnap_image_open_fd(r.img, fd, "image") == 0 &&
	    usnap_image_get_info(r.img, &r.info, sizeof(r.info)) == 0 &&
	    img_load_process(r.img) == 0) {
		r.process = r.img->process;
		plan(&r);
	}
	rthreads_free(r.threads);
	rmem_free(r.mem);
	rfiles_free(r.files);
	rproc_free(r.proc);
	problems_free(&r);
	usnap_image_free(r.img);
}

/* ---- mutations ---------------------------------------------------------------------------- */

static size_t count(const json_t *v)
{
	size_t n = 1, i;
	const char *key;
	json_t *e;

	json_array_foreach (v, i, e)
		n += count(e);
	json_object_foreach ((json_t *)(uintptr_t)v, key, e)
		n += count(e);
	return n;
}

/* Number *at of the document below v, in the order in which it is written. */
static json_t *nth(json_t *v, size_t *at)
{
	const char *key;
	json_t *e, *found = NULL;
	size_t i;

	if (!(*at)--)
		return v;
	json_array_foreach (v, i, e)
		if ((found = nth(e, at)))
			return found;
	json_object_foreach (v, key, e)
		if ((found = nth(e, at)))
			return found;
	return NULL;
}

static json_t *other(json_t *doc, unsigned *seed)
{
	static const json_int_t numbers[] = {0,		 1,	    -1,	       2,	  63,
					     64,	 65,	    255,       4095,	  4096,
					     4097,	 65535,	    1 << 20,   INT32_MAX, INT32_MIN,
					     UINT32_MAX, INT64_MAX, INT64_MIN, 1023,	  1024};
	static const char *const texts[] = {"",
					    "0x0",
					    "0x1000",
					    "0xfff",
					    "0xffffffffffffffff",
					    "0x7fffffffffff",
					    "0xff00000000000000",
					    "0o0",
					    "0o2000000",
					    "0o100644",
					    "0o140755",
					    "00",
					    "/",
					    "/dev/null",
					    "/etc/passwd",
					    "socket",
					    "regular",
					    "pipe",
					    "memfd",
					    "epoll",
					    "inotify",
					    "terminal",
					    "shmem",
					    "hugetlb",
					    "file-shared",
					    "rw-"};
	size_t at = (size_t)rand_r(seed) % count(doc);

	switch (rand_r(seed) % 5) {
	case 0:
		return json_integer(numbers[(size_t)rand_r(seed) % ARRAY_SIZE(numbers)]);
	case 1:
		return json_string(texts[(size_t)rand_r(seed) % ARRAY_SIZE(texts)]);
	case 2:
		return rand_r(seed) % 2 ? json_array() : json_object();
	case 3:
		return rand_r(seed) % 2 ? json_null() : json_boolean(rand_r(seed) % 2);
	default:
		return json_deep_copy(nth(doc, &at));
	}
}

/* One element of v is removed, replaced, or comes twice. */
static void change(json_t *doc, json_t *v, unsigned *seed)
{
	size_t n = json_is_array(v) ? json_array_size(v) : json_object_size(v);
	size_t at = n ? (size_t)rand_r(seed) % n : 0;
	unsigned how = (unsigned)rand_r(seed) % 4;

	if (json_is_array(v)) {
		if (how == 0)
			json_array_remove(v, at);
		else if (how == 1 && n)
			json_array_insert_new(v, at, json_deep_copy(json_array_get(v, at)));
		else if (n)
			json_array_set_new(v, at, other(doc, seed));
		else
			json_array_append_new(v, other(doc, seed));
		return;
	}
	const char *key = NULL, *k;
	json_t *e;
	json_object_foreach (v, k, e)
		if (at-- == 0)
			key = k;
	if (key && how == 0)
		json_object_del(v, key);
	else if (key)
		json_object_set_new(v, key, other(doc, seed));
}

static char *mutate_json(const uint8_t *text, size_t len, unsigned seed)
{
	json_t *doc = json_loadb((const char *)text, len, JSON_ALLOW_NUL, NULL);
	char *ret;

	if (!doc)
		return NULL;
	for (int i = 0; i < 8; i++) {
		size_t at = (size_t)rand_r(&seed) % count(doc);
		json_t *v = nth(doc, &at);

		if (!json_is_array(v) && !json_is_object(v))
			continue;
		change(doc, v, &seed);
		if (rand_r(&seed) % 2)
			break;
	}
	ret = json_dumps(doc, JSON_COMPACT);
	json_decref(doc);
	return ret;
}

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed);

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed)
{
	const uint8_t *p = data, *text;
	size_t left = size, len;

	text = section(&p, &left, &len);
	cleanup_free char *now = seed % 4 ? mutate_json(text, len, seed) : NULL;
	size_t n = now ? strlen(now) : 0;
	if (!now || n > 65535 || 2 + n + left > max)
		return LLVMFuzzerMutate(data, size, max);
	memmove(data + 2 + n, p, left);
	memcpy(data + 2, now, n);
	data[0] = (uint8_t)n;
	data[1] = (uint8_t)(n >> 8);
	return 2 + n + left;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct archive a;
	const uint8_t *s[5] = {(const uint8_t *)snapshot_json};
	size_t len[5] = {sizeof(snapshot_json) - 1};
	int fd;

	if (size > ROOM / 4)
		return 0;
	for (int i = 1; i < 5; i++)
		s[i] = section(&data, &size, &len[i]);
	archive_build(&a, s, len);
	fd = memfd_create("image", MFD_CLOEXEC);
	if (fd < 0 || write(fd, a.b, a.len) != (ssize_t)a.len)
		abort();
	restore_image(fd);
	close(fd);
	return 0;
}

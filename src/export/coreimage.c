#include "export/coreimage.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <string.h>

#include "common/util.h"
#include "export/coreprocess.h"

struct exporter {
	struct usnap_image *img;
	const char *name;
	struct usnap_err *err;
	struct usnap_info info;
	struct core_process_facts facts;
	json_t *process;
	struct core_region *regions;
	size_t nr_regions;
	struct core_thread *threads;
	size_t nr_threads;

	/* What usnap_image_next_run() last said: for an address from run_from
	 * on, the next run is this one. It spares walking a long run again for
	 * every region that it crosses. */
	uint64_t run_from, run_start, run_end;
};

static int fail_image(struct usnap_image *img, int r, struct usnap_err *err)
{
	const char *hint = usnap_image_hint(img);

	usnap_fail(err, r, "%s", usnap_image_error(img));
	if (hint && *hint)
		usnap_hint(err, "%s", hint);
	return r;
}

/* --- memory ------------------------------------------------------------------ */

static int next_run(void *memory, uint64_t from, uint64_t to, uint64_t *ret_start,
		    uint64_t *ret_end, struct usnap_err *err)
{
	struct exporter *e = memory;

	if (from < e->run_from || from >= e->run_end) {
		uint64_t start, len;
		int r = usnap_image_next_run(e->img, from, &start, &len);

		if (r < 0)
			return fail_image(e->img, r, err);
		e->run_from = from;
		e->run_start = r ? start : UINT64_MAX;
		e->run_end = r ? start + len : UINT64_MAX;
	}
	*ret_start = MAX(e->run_start, from);
	*ret_end = MIN(e->run_end, to);
	return *ret_start < *ret_end;
}

static int read_memory(void *memory, uint64_t addr, void *buf, size_t len, struct usnap_err *err)
{
	struct exporter *e = memory;
	int r = usnap_image_read(e->img, addr, buf, len);

	return r < 0 ? fail_image(e->img, r, err) : 0;
}

/* --- description --------------------------------------------------------------- */

/* MADV_DONTDUMP, which the kernel shows as "dd". */
static bool map_is_excluded(const json_t *map)
{
	const json_t *flags = json_object_get(map, "flags");

	for (size_t i = 0; i < json_array_size(flags); i++) {
		const char *flag = json_string_value(json_array_get(flags, i));

		if (flag && strcmp(flag, "dd") == 0)
			return true;
	}
	return false;
}

static int load_regions(struct exporter *e)
{
	const json_t *maps = json_object_get(e->process, "maps");
	int r = usnap_image_get_nr_regions(e->img, &e->nr_regions);

	if (r < 0)
		return fail_image(e->img, r, e->err);
	/* The reader has made its regions of the same list. */
	if (json_array_size(maps) != e->nr_regions)
		return usnap_fail(e->err, -EBADMSG,
				  "cannot export '%s': process.json: %zu maps, but %zu regions",
				  e->name, json_array_size(maps), e->nr_regions);
	e->regions = calloc(e->nr_regions + 1, sizeof(*e->regions));
	if (!e->regions)
		return usnap_fail_errno(e->err, -ENOMEM, "cannot export '%s'", e->name);
	for (size_t i = 0; i < e->nr_regions; i++) {
		struct usnap_region from;

		r = usnap_image_get_region(e->img, i, &from, sizeof(from));
		if (r < 0)
			return fail_image(e->img, r, e->err);
		e->regions[i] = (struct core_region){
			.start = from.start,
			.end = from.end,
			.offset = from.offset,
			.inode = from.inode,
			.dev_major = from.dev_major,
			.dev_minor = from.dev_minor,
			.prot = from.prot,
			.contents = from.content == USNAP_CONTENT_IMAGE	 ? CORE_ABSENT_ZERO
				    : from.content == USNAP_CONTENT_FILE ? CORE_ABSENT_FILE
									 : CORE_ABSENT_UNKNOWN,
			.excluded = map_is_excluded(json_array_get(maps, i)),
			.path = from.path && *from.path ? from.path : NULL,
		};
	}
	return 0;
}

static int load_thread(struct exporter *e, size_t i)
{
	struct usnap_thread t;
	const char *why = NULL;
	const void *notes;
	size_t len, at = 0;
	int r = usnap_image_get_thread(e->img, i, &t, sizeof(t));

	if (r < 0)
		return fail_image(e->img, r, e->err);
	r = usnap_image_get_notes(e->img, i, &notes, &len);
	if (r == -ENOENT)
		return usnap_fail(e->err, -EBADMSG,
				  "cannot export '%s': it holds no registers of thread %" PRId32,
				  e->name, t.tid);
	if (r < 0)
		return fail_image(e->img, r, e->err);
	r = core_thread_check(&e->threads[i], (uint32_t)t.tid, notes, len, &at, &why);
	if (r < 0)
		return usnap_fail(e->err, r,
				  "cannot export '%s': threads/%" PRId32 ".notes: %s at offset %zu",
				  e->name, t.tid, why, at);
	return 0;
}

static int load_threads(struct exporter *e)
{
	int r = usnap_image_get_nr_threads(e->img, &e->nr_threads);

	if (r < 0)
		return fail_image(e->img, r, e->err);
	e->threads = calloc(e->nr_threads + 1, sizeof(*e->threads));
	if (!e->threads)
		return usnap_fail_errno(e->err, -ENOMEM, "cannot export '%s'", e->name);
	for (size_t i = 0; !r && i < e->nr_threads; i++)
		r = load_thread(e, i);
	return r;
}

static int load_process(struct exporter *e)
{
	json_error_t why;
	const char *text;
	size_t len;
	int r = usnap_image_get_info(e->img, &e->info, sizeof(e->info));

	if (r >= 0)
		r = usnap_image_get_member(e->img, "process.json", &text, &len);
	if (r < 0)
		return fail_image(e->img, r, e->err);
	if (strcmp(e->info.arch, "x86_64") != 0)
		return usnap_fail(e->err, -EOPNOTSUPP,
				  "cannot export '%s': a core file of '%s' is not something "
				  "this version can make",
				  e->name, e->info.arch);
	e->process = json_loadb(text, len, JSON_REJECT_DUPLICATES, &why);
	if (!e->process)
		return usnap_fail(e->err, -EBADMSG,
				  "cannot export '%s': process.json: %s at offset %d", e->name,
				  why.text, why.position);
	return core_process_parse(&e->facts, e->process, e->name, e->err);
}

int core_image_pid(struct usnap_image *img, int32_t *ret, struct usnap_err *err)
{
	struct usnap_info info;
	int r = usnap_image_get_info(img, &info, sizeof(info));

	if (r < 0)
		return fail_image(img, r, err);
	*ret = info.pid;
	return 0;
}

int core_image_write(struct usnap_image *img, const char *name, const struct core_options *options,
		     struct usnap_err *err)
{
	struct exporter e = {.img = img, .name = name, .err = err};
	int r = load_process(&e);

	if (!r)
		r = load_regions(&e);
	if (!r)
		r = load_threads(&e);
	if (!r) {
		const struct core_description d = {
			.name = name,
			.page_size = e.info.page_size,
			.t0_ns = e.info.t0_realtime_ns,
			.process = e.facts.process,
			.auxv = e.facts.auxv,
			.threads = e.threads,
			.nr_threads = e.nr_threads,
			.regions = e.regions,
			.nr_regions = e.nr_regions,
			.memory = &e,
			.next_run = next_run,
			.read = read_memory,
		};
		r = core_write(&d, options, err);
	}
	json_decref(e.process);
	free(e.regions);
	free(e.threads);
	return r;
}

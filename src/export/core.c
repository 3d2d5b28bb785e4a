/*
 * DESIGN. Two passes over the regions: plan() walks the runs of stored pages
 * and lays out segments; emit() walks them again and writes. The plan is kept
 * as segments, not as pages, so that it stays small; both passes ask the same
 * questions, and a file that has changed in between is an error.
 */
#include "export/core.h"

#include <elf.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "common/util.h"
#include "export/corelayout.h"
#include "export/coresink.h"
#include "export/coresource.h"

/* A gap of absent pages up to this stays in the segment: in a file as a hole,
 * which costs nothing and spares old debuggers (gdb before 11 reads nothing
 * where p_memsz exceeds p_filesz); in a stream as zeros, which cost. */
#define GAP_FILE ((uint64_t)8 << 20)
#define GAP_STREAM ((uint64_t)64 << 10)
/* A gap of pages as in the file up to this is copied from the file; it holds
 * any .data or relocated .got. Beyond it debuggers go to the file as well. */
#define GAP_SOURCE ((uint64_t)16 << 20)

#define CHUNK_BYTES KIB(256)

struct core_writer {
	const struct core_description *d;
	const struct core_options *o;
	struct usnap_err *err;
	struct core_notes notes;
	struct core_layout layout;
	struct core_sink sink;
	unsigned char *chunk;
	uint64_t done, total; /* bytes of contents, holes left out */
};

static int open_source(const struct core_writer *w, const struct core_region *r,
		       struct core_source *ret)
{
	*ret = (struct core_source){.fd = -1};
	if (!r->path)
		return -ENOENT;
	return core_source_open(ret, r->path, r->inode, r->dev_major, r->dev_minor, w->d->t0_ns);
}

static bool region_is_wanted(const struct core_writer *w, const struct core_region *r)
{
	return !r->excluded || w->o->all;
}

static int fail_memory(const struct core_writer *w, int r, const char *what)
{
	return usnap_fail_errno(w->err, r, "cannot export '%s': %s", w->d->name, what);
}

/* --- notes ------------------------------------------------------------------- */

static bool region_is_file(const struct core_region *r)
{
	return r->path && r->path[0] == '/' && r->inode;
}

static int add_file_note(struct core_writer *w)
{
	const struct core_description *d = w->d;
	cleanup_free struct core_mapping *m = calloc(d->nr_regions + 1, sizeof(*m));
	size_t n = 0;

	if (!m)
		return -ENOMEM;
	for (size_t i = 0; i < d->nr_regions; i++) {
		const struct core_region *r = &d->regions[i];

		if (region_is_file(r))
			m[n++] = (struct core_mapping){r->start, r->end, r->offset, r->path};
	}
	return core_notes_file(&w->notes, m, n, d->page_size);
}

/* In the kernel's order: the first thread's NT_PRSTATUS, the notes of the
 * process, the rest of the first thread's, the other threads'. A debugger
 * takes the first NT_PRSTATUS for the thread to show. */
static int build_notes(struct core_writer *w)
{
	const struct core_description *d = w->d;
	size_t first = core_first_thread(d->threads, d->nr_threads, (uint32_t)d->process.pid);
	const struct core_thread *t = &d->threads[first];
	int r = core_notes_first(&w->notes, t);

	if (!r)
		r = core_notes_prpsinfo(&w->notes, &d->process);
	if (!r && d->auxv) {
		r = core_notes_auxv(&w->notes, d->auxv);
		if (r == -EBADMSG)
			return usnap_fail(w->err, r,
					  "cannot export '%s': process.json: mm.auxv is no "
					  "auxiliary vector in hexadecimal",
					  d->name);
	}
	if (!r)
		r = add_file_note(w);
	if (!r)
		r = core_notes_rest(&w->notes, t);
	for (size_t i = 0; !r && i < d->nr_threads; i++) {
		if (i == first)
			continue;
		r = core_notes_first(&w->notes, &d->threads[i]);
		if (!r)
			r = core_notes_rest(&w->notes, &d->threads[i]);
	}
	return r ? fail_memory(w, r, "the notes do not fit") : 0;
}

/* --- plan ---------------------------------------------------------------------- */

/* As the kernel does: a debugger finds the build-id of a mapped ELF file in
 * its first page, even when the file is gone. */
static bool source_is_elf(const struct core_source *s, const struct core_region *r)
{
	unsigned char magic[SELFMAG];

	return r->offset == 0 && core_source_read(s, magic, sizeof(magic), 0) == 0 &&
	       memcmp(magic, ELFMAG, SELFMAG) == 0;
}

static int fail_region(const struct core_writer *w, const struct core_region *r, int code)
{
	if (code == -EINVAL)
		return usnap_fail(w->err, -EBADMSG,
				  "cannot export '%s': process.json: the region 0x%" PRIx64
				  "-0x%" PRIx64 " overlaps another or is not aligned",
				  w->d->name, r->start, r->end);
	return fail_memory(w, code, "the segments do not fit");
}

static int plan_runs(struct core_writer *w, const struct core_region *r, uint64_t *ret_bytes)
{
	uint64_t at = r->start, start, end;
	int got;

	*ret_bytes = 0;
	while ((got = w->d->next_run(w->d->memory, at, r->end, &start, &end, w->err)) > 0) {
		/* Adjacent runs, or runs cut at at, are one as far as the layout goes. */
		int code = start < at || end > r->end ? -EINVAL
						      : core_layout_run(&w->layout, start, end);
		if (code)
			return fail_region(w, r, code);
		*ret_bytes += end - start;
		at = end;
		if (at == r->end)
			break;
	}
	return got < 0 ? got : 0;
}

static int plan_region(struct core_writer *w, size_t i)
{
	const struct core_region *r = &w->d->regions[i];
	struct core_layout *l = &w->layout;
	struct core_source source = {.fd = -1};
	uint64_t gap = w->o->stream ? GAP_STREAM : GAP_FILE, stored = 0, start, end;
	size_t before = l->n;
	int code = 0, any = 0;

	if (region_is_wanted(w, r)) {
		any = w->d->next_run(w->d->memory, r->start, r->end, &start, &end, w->err);
		if (any < 0)
			return any;
		if (r->contents == CORE_ABSENT_FILE)
			gap = open_source(w, r, &source) == 0 && any ? GAP_SOURCE : 0;
		if (r->contents == CORE_ABSENT_UNKNOWN)
			gap = 0;
	}
	code = core_layout_begin(l, r->start, r->end, r->prot, gap, (uint32_t)i);
	if (code) {
		code = fail_region(w, r, code);
		goto out;
	}
	if (any) {
		code = plan_runs(w, r, &stored);
		if (code)
			goto out;
	} else if (source.fd >= 0 && source_is_elf(&source, r)) {
		code = core_layout_run(l, r->start, r->start + w->d->page_size);
	}
	if (!code)
		code = core_layout_end(l);
	if (code) {
		code = fail_region(w, r, code);
		goto out;
	}
	if (source.fd < 0)
		w->total += stored;
	for (size_t s = before; source.fd >= 0 && s < l->n; s++)
		w->total += l->seg[s].filesz;
out:
	core_source_close(&source);
	return code;
}

static int plan(struct core_writer *w)
{
	int r = build_notes(w);

	for (size_t i = 0; !r && i < w->d->nr_regions; i++)
		r = plan_region(w, i);
	if (r)
		return r;
	r = core_layout_finish(&w->layout, w->notes.len);
	return r ? fail_memory(w, r, "the segments do not fit") : 0;
}

/* --- emit ---------------------------------------------------------------------- */

static int fail_output(const struct core_writer *w, int r)
{
	return usnap_fail_errno(w->err, r, "cannot write '%s'", w->o->output);
}

static void advance(struct core_writer *w, uint64_t bytes)
{
	w->done += bytes;
	if (w->o->progress)
		w->o->progress(w->o->progress_arg, w->done, MAX(w->total, w->done));
}

static int put_stored(struct core_writer *w, uint64_t start, uint64_t end)
{
	while (start < end) {
		size_t n = (size_t)MIN(end - start, (uint64_t)CHUNK_BYTES);
		int r = w->d->read(w->d->memory, start, w->chunk, n, w->err);
		if (r)
			return r;
		r = core_sink_put(&w->sink, w->chunk, n);
		if (r)
			return fail_output(w, r);
		start += n;
		advance(w, n);
	}
	return 0;
}

static bool is_zero(const unsigned char *p, size_t len)
{
	return len == 0 || (p[0] == 0 && memcmp(p, p + 1, len - 1) == 0);
}

static int put_source(struct core_writer *w, const struct core_region *r,
		      const struct core_source *source, uint64_t start, uint64_t end)
{
	uint32_t page = w->d->page_size;

	while (start < end) {
		size_t n = (size_t)MIN(end - start, (uint64_t)CHUNK_BYTES);
		uint64_t offset = r->offset + (start - r->start);
		int code = offset < r->offset ? -EOVERFLOW
					      : core_source_read(source, w->chunk, n, offset);
		if (code)
			return usnap_fail_errno(w->err, code, "cannot read '%s'", r->path);
		for (size_t at = 0; !code && at < n; at += page) {
			code = is_zero(w->chunk + at, page)
				       ? core_sink_skip(&w->sink, page)
				       : core_sink_put(&w->sink, w->chunk + at, page);
		}
		if (code)
			return fail_output(w, code);
		start += n;
		advance(w, n);
	}
	return 0;
}

static int put_gap(struct core_writer *w, const struct core_region *r, struct core_source *source,
		   uint64_t start, uint64_t end)
{
	int code;

	if (start == end)
		return 0;
	if (r->contents == CORE_ABSENT_ZERO) {
		code = core_sink_skip(&w->sink, end - start);
		return code ? fail_output(w, code) : 0;
	}
	if (source->fd < 0)
		code = open_source(w, r, source);
	else
		code = 0;
	if (!code)
		return put_source(w, r, source, start, end);
	return usnap_fail_errno(w->err, code, "cannot read '%s', which was there a moment ago",
				r->path);
}

static int put_segment(struct core_writer *w, const struct core_segment *s)
{
	const struct core_region *r = &w->d->regions[s->region];
	struct core_source source = {.fd = -1};
	uint64_t at = s->vaddr, to = s->vaddr + s->filesz, start, end;
	int code = 0;

	while (!code && at < to) {
		int got = w->d->next_run(w->d->memory, at, to, &start, &end, w->err);
		if (got <= 0) {
			code = got < 0 ? got : put_gap(w, r, &source, at, to);
			break;
		}
		code = put_gap(w, r, &source, at, start);
		if (!code)
			code = put_stored(w, start, end);
		at = end;
	}
	/* Written to meanwhile, it may have given both what was and what is. */
	if (!code && source.fd >= 0 && core_source_check(&source)) {
		code = usnap_fail(w->err, -ESTALE, "cannot read '%s': it changed meanwhile",
				  r->path);
		usnap_hint(w->err, "try again: what has changed since the snapshot is left out");
	}
	core_source_close(&source);
	return code;
}

static int put_headers(struct core_writer *w)
{
	cleanup_free unsigned char *headers = NULL;
	int r = core_layout_headers(&w->layout, w->notes.len, &headers);

	if (r)
		return fail_memory(w, r, "no memory for the program headers");
	r = core_sink_put(&w->sink, headers, w->layout.headers_len);
	if (!r)
		r = core_sink_put(&w->sink, w->notes.data, w->notes.len);
	if (!r)
		r = core_sink_skip(&w->sink, w->layout.data_offset - w->sink.at);
	return r ? fail_output(w, r) : 0;
}

static int emit(struct core_writer *w)
{
	int r = put_headers(w);

	for (size_t i = 0; !r && i < w->layout.n; i++)
		r = put_segment(w, &w->layout.seg[i]);
	if (r)
		return r;
	if (w->layout.shdr_offset) {
		unsigned char shdr[CORE_SHDR_BYTES];

		core_layout_shdr(&w->layout, shdr);
		r = core_sink_put(&w->sink, shdr, sizeof(shdr));
	}
	if (!r)
		r = core_sink_finish(&w->sink);
	return r ? fail_output(w, r) : 0;
}

int core_write(const struct core_description *d, const struct core_options *options,
	       struct usnap_err *err)
{
	struct core_writer w = {.d = d, .o = options, .err = err};
	int r;

	if (!d->page_size || CHUNK_BYTES % d->page_size)
		return usnap_fail(err, -EBADMSG, "cannot export '%s': a page size of %" PRIu32,
				  d->name, d->page_size);
	if (!d->nr_threads)
		return usnap_fail(err, -EBADMSG, "cannot export '%s': it holds no thread", d->name);
	core_layout_init(&w.layout, d->page_size);
	w.chunk = malloc(CHUNK_BYTES);
	r = w.chunk ? core_sink_init(&w.sink, options->fd, options->stream) : -ENOMEM;
	if (r)
		r = fail_memory(&w, r, "no memory");
	if (!r)
		r = plan(&w);
	if (!r)
		r = emit(&w);
	core_sink_free(&w.sink);
	core_layout_free(&w.layout);
	core_notes_free(&w.notes);
	free(w.chunk);
	return r;
}

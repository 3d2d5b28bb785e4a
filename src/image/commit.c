#include "image/commit.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <zstd.h>

#include "common/util.h"
#include "image/hash.h"

/* The size of the index has to be known for its tar header. Where most pages
 * lie in ancestors their hashes are not kept, so that there is room in what is
 * promised (40 bytes per page) for the compressed index. Otherwise it goes
 * through zstd twice, once to learn its size: zstd gives the same bytes for
 * the same calls. */
struct index_pass {
	struct tarball *t;
	const struct pageindex *pi;
	const unsigned char *id;
	const uint64_t *segment_base;
	struct usnap_err *err;
	ZSTD_CCtx *cctx;
	XXH3_state_t *hash;
	uint64_t size;
	bool keep, write;
	struct growing kept;
	size_t room;
	unsigned char *out;
};

static int index_feed(struct index_pass *p, const void *buf, size_t len, ZSTD_EndDirective end)
{
	ZSTD_inBuffer in = {.src = buf, .size = len};
	size_t left;

	do {
		ZSTD_outBuffer out = {.dst = p->out, .size = p->room};
		int r;

		left = ZSTD_compressStream2(p->cctx, &out, &in, end);
		if (ZSTD_isError(left))
			return usnap_fail(p->err, -EIO, "cannot compress the page index: %s",
					  ZSTD_getErrorName(left));
		p->size += out.pos;
		XXH3_128bits_update(p->hash, p->out, out.pos);
		if (p->write && (r = tarball_data(p->t, p->out, out.pos, p->err)) < 0)
			return r;
		if (p->keep && out.pos) {
			if ((r = growing_reserve(&p->kept, out.pos)) < 0)
				return usnap_fail_errno(p->err, r, "cannot write the page index");
			memcpy((char *)p->kept.p + p->kept.used, p->out, out.pos);
			p->kept.used += out.pos;
		}
	} while (in.pos < in.size || (end == ZSTD_e_end && left));
	return 0;
}

static int on_index(void *ctx, const void *buf, size_t len)
{
	struct index_pass *p = ctx;

	return index_feed(p, buf, len, ZSTD_e_continue);
}

static int index_run(struct index_pass *p)
{
	int r;

	p->size = 0;
	XXH3_128bits_reset(p->hash);
	ZSTD_CCtx_reset(p->cctx, ZSTD_reset_session_and_parameters);
	if (ZSTD_isError(ZSTD_CCtx_setParameter(p->cctx, ZSTD_c_compressionLevel, 1)) ||
	    ZSTD_isError(ZSTD_CCtx_setParameter(p->cctx, ZSTD_c_checksumFlag, 1)) ||
	    ZSTD_isError(ZSTD_CCtx_setPledgedSrcSize(p->cctx, pageindex_bytes(p->pi))))
		return -ENOMEM;
	r = pageindex_emit(p->pi, p->id, p->segment_base, on_index, p);
	return r < 0 ? r : index_feed(p, NULL, 0, ZSTD_e_end);
}

static int write_index(struct index_pass *p)
{
	struct tarball *t = p->t;
	XXH128_hash_t first;
	uint64_t size, offset;
	int r;

	p->keep = p->pi->nr_referred > p->pi->nr_pages / 2;
	if ((r = index_run(p)) < 0)
		return r;
	size = p->size;
	first = XXH3_128bits_digest(p->hash);
	if ((r = tarball_header(t, FORMAT_INDEX, size, p->err)) < 0)
		return r;
	offset = t->sink.position;
	p->write = true;
	r = p->keep ? tarball_data(t, p->kept.p, p->kept.used, p->err) : index_run(p);
	if (r < 0 || (r = tarball_end_member(t, p->err)) < 0)
		return r;
	if (p->size != size || !XXH128_isEqual(first, XXH3_128bits_digest(p->hash)))
		return usnap_fail(
			p->err, -EIO,
			"cannot write the page index: it was compressed differently twice");
	return tarball_note(t, FORMAT_INDEX, offset, size, first, p->err);
}

int commit_write_index(struct tarball *t, const struct pageindex *pi,
		       const unsigned char id[FORMAT_ID_BYTES], const uint64_t *segment_base,
		       struct usnap_err *err)
{
	struct index_pass p = {.t = t,
			       .pi = pi,
			       .id = id,
			       .segment_base = segment_base,
			       .err = err,
			       .cctx = ZSTD_createCCtx(),
			       .hash = XXH3_createState(),
			       .room = ZSTD_CStreamOutSize()};
	int r = -ENOMEM;

	p.out = malloc(p.room);
	if (p.cctx && p.hash && p.out)
		r = write_index(&p);
	ZSTD_freeCCtx(p.cctx);
	XXH3_freeState(p.hash);
	growing_free(&p.kept);
	free(p.out);
	/* What was said already is kept. */
	return r < 0 ? usnap_fail_errno(err, r, "cannot write the page index") : 0;
}

/* commit.json with zeros for its last two fields: they are hashes of what
 * comes before them. */
static char *commit_text(const struct tarball *t, const struct pageindex *pi, const char *id)
{
	json_t *j = json_object(), *members = json_object();
	char hex[FORMAT_HASH_HEX + 1];
	char *body, *text = NULL;

	for (size_t i = 0; i < t->nr_members; i++) {
		const struct tarball_member *m = &t->members[i];

		json_object_set_new(members, m->name,
				    json_pack("{s:I,s:I,s:s}", "offset", (json_int_t)m->offset,
					      "bytes", (json_int_t)m->size, "xxh3",
					      hash_format(hex, m->hash)));
	}
	json_object_set_new(j, "version", json_integer(FORMAT_VERSION));
	json_object_set_new(j, "id", json_string(id));
	json_object_set_new(j, "pages", json_integer((json_int_t)pi->nr_pages));
	json_object_set_new(j, "frames", json_integer((json_int_t)pageindex_all_frames(pi)));
	json_object_set_new(j, "bytes", json_integer((json_int_t)t->sink.position));
	json_object_set_new(j, "members", members);
	body = json_dumps(j, JSON_COMPACT);
	json_decref(j);
	if (body) {
		memset(hex, '0', FORMAT_HASH_HEX);
		hex[FORMAT_HASH_HEX] = '\0';
		body[strlen(body) - 1] = '\0'; /* the brace */
		if (asprintf(&text, "%s," FORMAT_COMMIT_TAIL, body, hex, hex) < 0)
			text = NULL;
		free(body);
	}
	return text;
}

int commit_write(struct tarball *t, const struct pageindex *pi, const char *id,
		 struct usnap_err *err)
{
	cleanup_free char *text = commit_text(t, pi, id);
	size_t len = text ? strlen(text) : 0;
	char hex[FORMAT_HASH_HEX + 1];
	int r;

	if (!text || len > FORMAT_MAX_COMMIT)
		return usnap_fail_errno(err, text ? -E2BIG : -ENOMEM,
					"cannot write '" FORMAT_COMMIT "'");
	if ((r = tarball_header(t, FORMAT_COMMIT, len, err)) < 0)
		return r;
	memcpy(text + len - FORMAT_COMMIT_ARCHIVE,
	       hash_format(hex, XXH3_128bits_digest(t->sink.hash)), FORMAT_HASH_HEX);
	memcpy(text + len - FORMAT_COMMIT_SELF,
	       hash_format(hex, XXH3_128bits(text, len - FORMAT_COMMIT_SELF)), FORMAT_HASH_HEX);
	if ((r = tarball_data(t, text, len, err)) < 0 || (r = tarball_end_member(t, err)) < 0)
		return r;
	return tarball_finish(t, err);
}

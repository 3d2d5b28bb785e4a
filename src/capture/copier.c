#include <errno.h>
#include <string.h>

#include "capture/session.h"
#include "common/io.h"
#include "common/util.h"

int copier_flush(struct capture *c, struct copier *cp)
{
	struct block *b = cp->block;

	if (!b)
		return 0;
	if (pool_error(c->pool))
		return pool_error(c->pool);
	int r = memory_read_all(c, cp->pieces, cp->nr_pieces, b->data, b->nr_pages * PAGE_BYTES,
				true);
	if (r < 0)
		return r;
	for (unsigned i = 0; i < b->nr_runs; i++)
		b->runs[i].keep_zero = cp->keep_zero;
	c->stats.frozen_pages += b->nr_pages;
	pool_put(c->pool, b);
	cp->block = NULL;
	cp->nr_pieces = 0;
	return 0;
}

int copier_add(struct capture *c, struct copier *cp, uint64_t addr, uint64_t key, uint64_t nr_pages)
{
	while (nr_pages) {
		if (!cp->block)
			cp->block = pool_get(c->pool);
		struct block *b = cp->block;
		if (!b)
			return pool_error(c->pool) ? pool_error(c->pool) : -ECANCELED;
		unsigned n = (unsigned)MIN(nr_pages, (uint64_t)(BLOCK_PAGES - b->nr_pages));

		block_add(b, key, n);
		cp->pieces[cp->nr_pieces++] =
			(struct iovec){(void *)(uintptr_t)addr, n * PAGE_BYTES};
		if (b->nr_pages == BLOCK_PAGES) {
			int r = copier_flush(c, cp);
			if (r < 0)
				return r;
		}
		addr += n * PAGE_BYTES;
		key += n * PAGE_BYTES;
		nr_pages -= n;
	}
	return 0;
}

void copier_drop(struct capture *c, struct copier *cp)
{
	if (cp->block) {
		cp->block->nr_pages = cp->block->nr_runs = 0;
		pool_put(c->pool, cp->block);
	}
	cp->block = NULL;
	cp->nr_pieces = 0;
}

int copier_add_file(struct capture *c, struct copier *cp, int fd, uint64_t offset, uint64_t key,
		    uint64_t nr_pages)
{
	int r = copier_flush(c, cp);

	while (nr_pages && r == 0) {
		struct block *b = pool_get(c->pool);
		if (!b)
			return pool_error(c->pool) ? pool_error(c->pool) : -ECANCELED;
		unsigned n = (unsigned)MIN(nr_pages, (uint64_t)BLOCK_PAGES);

		r = io_pread_full(fd, block_add(b, key, n), n * PAGE_BYTES, offset);
		/* Beyond the end of the file there is nothing that could be read. */
		if (r == -ENODATA)
			memset(b->data, 0, n * PAGE_BYTES);
		if (r == -ENODATA || r == 0)
			r = 0;
		else
			b->nr_pages = b->nr_runs = 0;
		c->stats.frozen_pages += b->nr_pages;
		c->frozen_extra_bytes += b->nr_pages * PAGE_BYTES;
		pool_put(c->pool, b);
		offset += n * PAGE_BYTES;
		key += n * PAGE_BYTES;
		nr_pages -= n;
	}
	return r;
}

int copier_add_zero(struct capture *c, struct copier *cp, uint64_t key, uint64_t nr_pages)
{
	int r = copier_flush(c, cp);

	while (nr_pages && r == 0) {
		struct block *b = pool_get(c->pool);
		if (!b)
			return pool_error(c->pool) ? pool_error(c->pool) : -ECANCELED;
		unsigned n = (unsigned)MIN(nr_pages, (uint64_t)BLOCK_PAGES);

		memset(block_add(b, key, n), 0, n * PAGE_BYTES);
		b->runs[0].keep_zero = cp->keep_zero;
		c->stats.frozen_pages += n;
		pool_put(c->pool, b);
		key += n * PAGE_BYTES;
		nr_pages -= n;
	}
	return r;
}

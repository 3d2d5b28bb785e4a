/* The regions come; rmem_internal.h has the list of the files. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/compat.h"
#include "common/util.h"
#include "restore/rfiles.h"
#include "restore/rmem_internal.h"

#ifndef MAP_DROPPABLE /* Linux 6.11 */
#define MAP_DROPPABLE 0x08
#endif
#ifndef MFD_HUGE_SHIFT
#define MFD_HUGE_SHIFT 26
#endif

enum {
	OPEN_AT_ONCE = 32 /* objects: descriptors of the process are counted */
};

/* ---- what was there --------------------------------------------------------------------- */

static int unmap_builder(struct rmem_calls *c)
{
	const struct stub *s = c->r->stub;
	uint64_t end = stub_addr(s) + stub_len(s);

	calls_add(c, false, "unmap the memory", NULL, SYS_munmap, 0, stub_addr(s), 0, 0, 0, 0);
	calls_add(c, false, "unmap the memory", NULL, SYS_munmap, end, RMEM_OWN_TOP - end, 0, 0, 0,
		  0);
	return calls_run(c);
}

/* ---- mappings --------------------------------------------------------------------------- */

static int huge_shift(uint64_t page_size)
{
	return __builtin_ctzll(page_size);
}

int rmem_map_flags(const struct rmem_region *g)
{
	int flags = MAP_FIXED_NOREPLACE;

	if (region_has(g, VMF_NR))
		flags |= MAP_NORESERVE;
	return flags;
}

static void map_anonymous(struct rmem_calls *c, const struct rmem_region *g)
{
	uint64_t len = g->end - g->start;
	int prot = (int)g->map_prot, flags = rmem_map_flags(g) | MAP_ANONYMOUS;

	if (g->kind == VMA_HUGETLB)
		flags |= MAP_HUGETLB | huge_shift(g->page_size) << MAP_HUGE_SHIFT;
	if (region_has(g, VMF_GD))
		flags |= MAP_GROWSDOWN; /* MAP_STACK would mean: no huge pages (6.7) */
	calls_room(c, 2);
	/* Where the kernel does not know it, ordinary memory will do: the second call fails when
	 * the first has not. */
	if (region_has(g, VMF_DP)) {
		calls_add(c, true, "map", g, SYS_mmap, g->start, len, (uint64_t)prot,
			  (uint64_t)(flags & ~MAP_NORESERVE) | MAP_DROPPABLE, (uint64_t)-1, 0);
		calls_add(c, true, "map", g, SYS_mmap, g->start, len, (uint64_t)prot,
			  (uint64_t)flags | MAP_PRIVATE, (uint64_t)-1, 0);
		return;
	}
	calls_add(c, false, "map", g, SYS_mmap, g->start, len, (uint64_t)prot,
		  (uint64_t)flags | MAP_PRIVATE, (uint64_t)-1, 0);
}

/* Nothing comes to lie where something was. */
static void map_void(struct rmem_calls *c, const struct rmem_region *g)
{
	calls_room(c, 1);
	calls_add(c, false, "map", g, SYS_mmap, g->start, g->end - g->start, PROT_NONE,
		  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, (uint64_t)-1,
		  0);
}

static void map_object_region(struct rmem_calls *c, const struct rmem_object *ob,
			      const struct rmem_region *g)
{
	int fd = region_writes_file(g) || ob->fd_read < 0 ? ob->fd_write : ob->fd_read;
	int flags = rmem_map_flags(g);

	flags |= !g->shared		 ? MAP_PRIVATE
		 : region_has(g, VMF_SF) ? MAP_SHARED_VALIDATE | MAP_SYNC
					 : MAP_SHARED;
	calls_room(c, 1);
	calls_add(c, false, "map", g, SYS_mmap, g->start, g->end - g->start, g->map_prot,
		  (uint64_t)flags, (uint64_t)fd, g->offset);
}

void rmem_advise_early(struct rmem_calls *c, const struct rmem_region *g)
{
	calls_room(c, 2);
	if (region_has(g, VMF_HG))
		calls_add(c, true, "advise", g, SYS_madvise, g->start, g->end - g->start,
			  MADV_HUGEPAGE, 0, 0, 0);
	if (region_has(g, VMF_NH))
		calls_add(c, true, "advise", g, SYS_madvise, g->start, g->end - g->start,
			  MADV_NOHUGEPAGE, 0, 0, 0);
}

/* ---- objects ---------------------------------------------------------------------------- */

struct opening {
	struct rmem_object *ob;
	int read_call, write_call; /* numbers in the batch, -1: none */
	bool made; /* a memfd: ours to size and fill */
	bool ours; /* to close */
};

static void begin_path(struct rmem_calls *c, struct opening *o)
{
	const struct rmem_object *ob = o->ob;
	uint64_t path = stub_data(&c->batch, ob->open_path, strlen(ob->open_path) + 1);
	const int flags = O_CLOEXEC | O_NONBLOCK | O_NOCTTY;

	o->ours = true;
	if (ob->want_read)
		o->read_call = calls_add(c, false, "open", ob->first, SYS_openat,
					 (uint64_t)AT_FDCWD, path, O_RDONLY | flags, 0, 0, 0);
	if (ob->want_write)
		o->write_call = calls_add(c, false, "open", ob->first, SYS_openat,
					  (uint64_t)AT_FDCWD, path, O_RDWR | flags, 0, 0, 0);
}

static void memfd_name(const struct rmem_region *g, char name[200])
{
	const char *path = g->path, *last = strrchr(path, '/');

	if (!strncmp(path, "/memfd:", 7))
		path += 7;
	else if (last)
		path = last + 1;
	snprintf(name, 200, "%.199s", path);
	char *deleted = strstr(name, " (deleted)");
	if (deleted)
		*deleted = '\0';
}

static void begin_unnamed(struct rmem_calls *c, struct opening *o)
{
	struct rmem_object *ob = o->ob;
	const struct rmem_region *g = ob->first;
	unsigned flags = MFD_CLOEXEC;
	char name[200];

	ob->fd_write =
		rfiles_find(c->r, g->dev_major, g->dev_minor, g->inode, PROT_READ | PROT_WRITE);
	ob->fd_read = rfiles_find(c->r, g->dev_major, g->dev_minor, g->inode, PROT_READ);
	if (ob->fd_write < 0 && ob->fd_read >= 0)
		ob->fd_write = ob->fd_read;
	if (ob->fd_write >= 0)
		return;
	if (ob->huge)
		flags |= MFD_HUGETLB | (unsigned)huge_shift(ob->page_size) << MFD_HUGE_SHIFT;
	memfd_name(g, name);
	o->ours = o->made = true;
	o->write_call = calls_add(c, false, "make memory for", g, SYS_memfd_create,
				  stub_data(&c->batch, name, strlen(name) + 1), flags, 0, 0, 0, 0);
}

/* Names can have been given to other files since the plan was made. */
static int check_opened(struct restore *r, const struct rmem_object *ob, struct usnap_err *err)
{
	const int fds[] = {ob->fd_read, ob->fd_write};
	char name[160];

	for (size_t i = 0; i < ARRAY_SIZE(fds) && ob->how == OBJECT_PATH; i++) {
		if (fds[i] < 0)
			continue;
		cleanup_fd int fd = (int)syscall(SYS_pidfd_getfd, r->builder_pidfd, fds[i], 0);
		if (fd < 0)
			return usnap_fail_errno(err, -errno, "cannot look at %s",
						rmem_name(ob->first, name));
		if (!rmem_is_checked(ob, fd))
			return usnap_fail(err, -ESTALE, "cannot map %s: it was changed meanwhile",
					  rmem_name(ob->first, name));
	}
	return 0;
}

/* Our own descriptor of an object, to write what no mapping of the process can. */
static int open_content(struct restore *r, struct rmem_object *ob, struct usnap_err *err)
{
	char path[64], name[160];

	if (ob->how == OBJECT_PATH) {
		ob->content_fd = open(ob->first->path, O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
		if (ob->content_fd >= 0 && !rmem_is_checked(ob, ob->content_fd))
			return usnap_fail(err, -ESTALE, "cannot map %s: it was changed meanwhile",
					  rmem_name(ob->first, name));
	} else {
		cleanup_fd int fd =
			(int)syscall(SYS_pidfd_getfd, r->builder_pidfd, ob->fd_write, 0);
		if (fd >= 0) {
			snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
			ob->content_fd = open(path, O_RDWR | O_CLOEXEC);
		}
	}
	return ob->content_fd < 0
		       ? usnap_fail_errno(err, -errno, "cannot open %s", rmem_name(ob->first, name))
		       : 0;
}

/* Bytes of a file that are not stored were zero, whatever they are now. */
static int clear_shown(struct rmem *m, const struct rmem_object *ob, struct usnap_err *err)
{
	for (size_t i = ob->at; i < ob->at + ob->nr_regions; i++) {
		const struct rmem_region *g = m->order[i];
		char name[160];

		if (!g->shared)
			continue;
		if (fallocate(ob->content_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			      (off_t)g->offset, (off_t)(g->end - g->start)) < 0)
			return usnap_fail_errno(err, -errno, "cannot clear %s", rmem_name(g, name));
	}
	return 0;
}

static int prepare_object(struct restore *r, struct rmem *m, const struct opening *o,
			  struct usnap_err *err)
{
	struct rmem_object *ob = o->ob;
	char name[160];
	int ret = 0;

	bool clear = ob->how == OBJECT_PATH && ob->memory;
	if ((ret = check_opened(r, ob, err)) < 0)
		return ret;
	if (!o->made && !ob->by_file && !clear)
		return 0;
	if ((ret = open_content(r, ob, err)) < 0)
		return ret;
	if (o->made && ftruncate(ob->content_fd, (off_t)ob->bytes) < 0)
		return usnap_fail_errno(err, -errno, "cannot make memory for %s",
					rmem_name(ob->first, name));
	/* The bytes that a descriptor of the process keeps are written by now, and not by us. */
	ob->fill_content = o->made && ob->has_content;
	if (clear)
		ret = clear_shown(m, ob, err);
	if (!ob->by_file && !ob->fill_content) {
		close(ob->content_fd);
		ob->content_fd = -1;
	}
	return ret;
}

static int open_objects(struct rmem_calls *c, struct rmem *m, struct opening *o, size_t n)
{
	int r;

	if ((r = calls_run(c)) < 0)
		return r;
	calls_reset(c);
	for (size_t i = 0; i < n; i++) {
		o[i].read_call = o[i].write_call = -1;
		if (o[i].ob->how == OBJECT_PATH)
			begin_path(c, &o[i]);
		else
			begin_unnamed(c, &o[i]);
	}
	if ((r = calls_run(c)) < 0)
		return r;
	for (size_t i = 0; i < n; i++) {
		if (o[i].read_call >= 0)
			o[i].ob->fd_read = (int)c->batch.calls[o[i].read_call].ret;
		if (o[i].write_call >= 0)
			o[i].ob->fd_write = (int)c->batch.calls[o[i].write_call].ret;
	}
	calls_reset(c);
	for (size_t i = 0; i < n; i++)
		if ((r = prepare_object(c->r, m, &o[i], c->err)) < 0)
			return r;
	return 0;
}

static int map_objects(struct rmem_calls *c, struct rmem *m, struct opening *o, size_t n)
{
	int r = open_objects(c, m, o, n);

	if (r < 0)
		return r;
	for (size_t i = 0; i < n; i++) {
		const struct rmem_object *ob = o[i].ob;

		for (size_t k = ob->at; k < ob->at + ob->nr_regions; k++) {
			map_object_region(c, ob, m->order[k]);
			rmem_advise_early(c, m->order[k]);
		}
		const int fds[] = {o[i].ob->fd_read, o[i].ob->fd_write};

		for (size_t k = 0; k < ARRAY_SIZE(fds) && o[i].ours; k++) {
			calls_room(c, 1);
			if (fds[k] >= 0)
				calls_add(c, false, "close", o[i].ob->first, SYS_close,
					  (uint64_t)fds[k], 0, 0, 0, 0, 0);
		}
	}
	return c->failed;
}

static int map_all_objects(struct rmem_calls *c, struct rmem *m)
{
	struct opening o[OPEN_AT_ONCE];
	size_t n = 0;
	int r = 0;

	for (size_t i = 0; i < m->nr_objects && r == 0; i++) {
		if (m->objects[i].how == OBJECT_SHARED_ANON)
			rmem_map_shared(c, m, &m->objects[i]);
		else if (m->objects[i].how == OBJECT_SYSV)
			rmem_map_sysv(c, m, &m->objects[i]);
		else
			o[n++] = (struct opening){.ob = &m->objects[i]};
		if (n && (n == OPEN_AT_ONCE || i + 1 == m->nr_objects)) {
			r = map_objects(c, m, o, n);
			n = 0;
		}
	}
	return r;
}

int rmem_map(struct restore *r, struct usnap_err *err)
{
	cleanup_free struct rmem_calls *c = malloc(sizeof(*c));
	struct rmem *m = r->mem;
	int ret;

	if (!c)
		return usnap_fail_errno(err, -ENOMEM, "cannot map the memory");
	calls_begin(c, r, err);
	if ((ret = unmap_builder(c)) < 0)
		return ret;
	calls_reset(c);
	for (size_t i = 0; i < m->nr_regions; i++) {
		const struct rmem_region *g = &m->regions[i];

		if (g->role == REGION_VOID)
			map_void(c, g);
		if (g->role != REGION_ANON)
			continue;
		map_anonymous(c, g);
		rmem_advise_early(c, g);
	}
	if ((ret = map_all_objects(c, m)) < 0 || (ret = calls_run(c)) < 0)
		return ret;
	return rmem_map_vdso(r, m, err);
}

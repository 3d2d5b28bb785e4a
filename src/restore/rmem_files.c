/*
 * The files that were mapped: which regions show the same one, how each comes
 * back, and whether what lies under its name is still what was mapped.
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "common/io.h"
#include "common/util.h"
#include "restore/rfiles.h"
#include "restore/rjson.h"
#include "restore/rmem_internal.h"

enum {
	MAX_LISTED = 1 << 20, /* entries of a list */
	MAX_NOTES = 4096, /* bytes of an ELF file that its build id is looked for in */
};

/* ---- the same file? --------------------------------------------------------------------- */

/* The build id of an ELF file in hex, or "". */
static void read_build_id(int fd, char *hex, size_t room)
{
	Elf64_Ehdr e;

	hex[0] = '\0';
	if (io_pread_full(fd, &e, sizeof(e), 0) < 0 || memcmp(e.e_ident, ELFMAG, SELFMAG) != 0 ||
	    e.e_ident[EI_CLASS] != ELFCLASS64 || e.e_phentsize != sizeof(Elf64_Phdr))
		return;
	for (unsigned i = 0; i < e.e_phnum; i++) {
		unsigned char notes[MAX_NOTES];
		Elf64_Phdr p;

		if (io_pread_full(fd, &p, sizeof(p), e.e_phoff + i * sizeof(p)) < 0)
			return;
		if (p.p_type != PT_NOTE || p.p_filesz > sizeof(notes) ||
		    io_pread_full(fd, notes, p.p_filesz, p.p_offset) < 0)
			continue;
		for (size_t at = 0; p.p_filesz - at >= sizeof(Elf64_Nhdr);) {
			Elf64_Nhdr n;

			memcpy(&n, notes + at, sizeof(n));
			at += sizeof(n);
			uint64_t name = ALIGN_UP((uint64_t)n.n_namesz, 4);
			uint64_t desc = ALIGN_UP((uint64_t)n.n_descsz, 4);
			if (name + desc > p.p_filesz - at)
				break;
			if (n.n_type == NT_GNU_BUILD_ID && n.n_namesz == 4 &&
			    !memcmp(notes + at, "GNU", 4) && 2 * (size_t)n.n_descsz < room) {
				for (size_t k = 0; k < n.n_descsz; k++)
					snprintf(hex + 2 * k, 3, "%02x", notes[at + name + k]);
				return;
			}
			at += name + desc;
		}
	}
}

/* What mapped_files[] says of a path, NULL: nothing. */
static const json_t *recorded(const json_t *list, const char *path)
{
	json_t *o;
	size_t i;

	json_array_foreach (list, i, o) {
		const char *text = json_string_value(json_object_get(o, "path"));

		if (text && !json_object_get(o, "path_hex") && !strcmp(text, path))
			return o;
	}
	return NULL;
}

/* Why the file at path is another than was mapped, in what; "" when it is the same. */
static int compare_file(const struct rmem_region *g, const json_t *was, int fd,
			const struct stat *st, char what[128], struct usnap_err *err)
{
	int64_t size, mtime, now = st->st_mtim.tv_sec * INT64_C(1000000000) + st->st_mtim.tv_nsec;
	const char *id;
	int r;

	what[0] = '\0';
	if (!was) {
		if (st->st_ino != g->inode || major(st->st_dev) != g->dev_major ||
		    minor(st->st_dev) != g->dev_minor)
			snprintf(what, 128, "another file has its name");
		return 0;
	}
	if ((r = rjson_int(was, "size", 0, INT64_MAX, &size, err)) < 0 ||
	    (r = rjson_int(was, "mtime_ns", INT64_MIN, INT64_MAX, &mtime, err)) < 0 ||
	    (r = rjson_text_or(was, "build_id", "", &id, err)) < 0)
		return r;
	char own[2 * VDSO_MAX_BUILD_ID + 1];
	if (st->st_size != size)
		snprintf(what, 128, "it had %" PRId64 " bytes and has %" PRId64, size,
			 (int64_t)st->st_size);
	else if (id[0] && (read_build_id(fd, own, sizeof(own)), strcmp(id, own) != 0))
		snprintf(what, 128, "its build id is another");
	else if (!id[0] && mtime != now)
		snprintf(what, 128, "it was written since");
	return 0;
}

static int add_problem(struct restore *r, enum restore_severity severity, const char *kind,
		       const char *path, const char *what, struct usnap_err *err)
{
	int ret = restore_problem(r, severity, kind, "'%.2000s': %s", path, what);

	return ret < 0 ? usnap_fail_errno(err, ret, "cannot restore the memory") : 0;
}

static int reopen_file(int path_fd)
{
	char path[40];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", path_fd);
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	return fd < 0 ? -errno : fd;
}

bool rmem_is_checked(const struct rmem_object *ob, int fd)
{
	const struct stat *was = &ob->checked;
	struct stat st;

	if (fstat(fd, &st) < 0 || st.st_dev != was->st_dev || st.st_ino != was->st_ino)
		return false;
	/* Shared memory is written all the time. */
	return ob->memory ||
	       (st.st_size == was->st_size && st.st_mtim.tv_sec == was->st_mtim.tv_sec &&
		st.st_mtim.tv_nsec == was->st_mtim.tv_nsec);
}

static int check_path(struct restore *r, struct rmem_object *ob, const json_t *files,
		      struct usnap_err *err)
{
	const struct rmem_region *g = ob->first;
	char what[128];
	struct stat st;
	/* Looked at first: to open a device can do something. */
	cleanup_fd int there = open(g->path, O_PATH | O_CLOEXEC);
	int r2 = there < 0 ? -errno : 0;

	if (there < 0 && r2 == -ENOENT)
		return add_problem(r, RESTORE_FATAL, "missing-file", g->path,
				   "it is mapped and no longer there", err);
	if (there >= 0 && (fstat(there, &st) < 0 || !S_ISREG(st.st_mode)))
		return add_problem(r, RESTORE_FATAL, "changed-file", g->path,
				   "it is mapped and is no regular file now", err);
	cleanup_fd int fd = there < 0 ? -1 : reopen_file(there);
	if (fd < 0)
		return add_problem(r, RESTORE_FATAL, "missing-file", g->path,
				   strerror(there < 0 ? -r2 : -fd), err);
	ob->checked = st;
	r2 = compare_file(g, recorded(files, g->path), fd, &st, what, err);
	if (r2 < 0 || !what[0])
		return r2;
	return add_problem(r, r->o->allow_changed_files ? RESTORE_NOTE : RESTORE_REFUSE,
			   "changed-file", g->path, what, err);
}

/* ---- objects ---------------------------------------------------------------------------- */

static bool ends_deleted(const char *path)
{
	static const char suffix[] = " (deleted)";
	size_t len = strlen(path);

	return len >= sizeof(suffix) - 1 && !strcmp(path + len - (sizeof(suffix) - 1), suffix);
}

static bool same_dev(const json_t *o, const char *key, const struct rmem_region *g)
{
	const char *s = json_string_value(json_object_get(o, key));
	char dev[32];

	snprintf(dev, sizeof(dev), "%02x:%02x", g->dev_major, g->dev_minor);
	return s && !strcmp(s, dev);
}

static bool same_inode(const json_t *o, const char *key, const struct rmem_region *g)
{
	const json_t *v = json_object_get(o, key);

	return json_is_integer(v) && (uint64_t)json_integer_value(v) == g->inode;
}

/* What unlinked[] says of the file that g shows, NULL: nothing. */
static const json_t *find_unlinked(const json_t *list, const struct rmem_region *g)
{
	json_t *o;
	size_t i;

	json_array_foreach (list, i, o) {
		bool two = json_object_get(o, "map_inode") != NULL;

		if (same_inode(o, two ? "map_inode" : "inode", g) &&
		    same_dev(o, two ? "map_dev" : "dev", g))
			return o;
	}
	return NULL;
}

static int plan_content(struct rmem_object *ob, const json_t *u, struct usnap_err *err)
{
	json_t *content;
	int64_t size;
	int r;

	if ((r = rjson_int_or(u, "size", 0, INT64_MAX, (int64_t)ob->bytes, &size, err)) < 0 ||
	    (r = rjson_object(u, "content", &content, err)) < 0)
		return r;
	ob->bytes = (uint64_t)size;
	if (!content)
		return 0;
	if ((r = rjson_word(content, "address", &ob->content_addr, err)) < 0 ||
	    (r = rjson_word(content, "size", &ob->content_bytes, err)) < 0)
		return r;
	if (ob->content_addr < RMEM_CONTENT || ob->content_addr % 4096 ||
	    ob->content_bytes > UINT64_MAX - ob->content_addr)
		return usnap_fail(
			err, -EBADMSG,
			"cannot restore: an address of unlinked of process.json is wrong");
	ob->has_content = true;
	return 0;
}

static bool is_of_kind(const struct rmem_object *ob, const json_t *u, const char *kind,
		       const char *prefix)
{
	const char *said = json_string_value(json_object_get(u, "kind"));

	return said ? !strcmp(said, kind) : !strncmp(ob->first->path, prefix, strlen(prefix));
}

/* shmat(2) maps a segment as a whole, and fills what cannot be written by way of what can. */
static bool can_attach(const struct rmem *m, const struct rmem_object *ob)
{
	for (size_t i = ob->at; i < ob->at + ob->nr_regions; i++)
		if (m->order[i]->offset ||
		    m->order[i]->end - m->order[i]->start != ob->first->end - ob->first->start)
			return false;
	return ob->want_write;
}

static void choose_how(struct rmem *m, struct rmem_object *ob, const json_t *u, bool all_shared)
{
	bool sysv = is_of_kind(ob, u, "sysv", "/SYSV");

	ob->how = OBJECT_UNNAMED;
	if (!all_shared || ob->huge ||
	    (!sysv && !is_of_kind(ob, u, "shared-anonymous", "/dev/zero")))
		return;
	ob->how = sysv && can_attach(m, ob) ? OBJECT_SYSV : OBJECT_SHARED_ANON;
	/* No descriptor leads there. */
	for (size_t i = ob->at; i < ob->at + ob->nr_regions; i++) {
		struct rmem_region *g = m->order[i];

		if (!g->by_file)
			continue;
		g->by_file = false;
		g->skip = ob->how == OBJECT_SYSV;
		if (!g->skip)
			g->map_prot = PROT_READ | PROT_WRITE;
	}
	ob->by_file = false;
}

static int plan_path(struct restore *r, struct rmem *m, struct rmem_object *ob, const json_t *files,
		     struct usnap_err *err)
{
	const char *path = ob->first->path;

	ob->how = OBJECT_PATH;
	if (path[0] != '/')
		return add_problem(r, RESTORE_FATAL, "mapping", path, "it cannot be mapped again",
				   err);
	ob->open_path = strdup(path);
	if (!ob->open_path)
		return usnap_fail_errno(err, -ENOMEM, "cannot restore the memory");
	if (ob->memory) {
		int ret = add_problem(r, RESTORE_NOTE, "shared-memory-file", path,
				      "what is mapped of it becomes what it was", err);
		if (ret < 0)
			return ret;
	}
	return check_path(r, ob, files, err);
}

static int plan_object(struct restore *r, struct rmem *m, struct rmem_object *ob,
		       const json_t *files, const json_t *unlinked, bool all_shared,
		       struct usnap_err *err)
{
	const json_t *u = find_unlinked(unlinked, ob->first);
	struct stat st;

	ob->fd_read = ob->fd_write = ob->content_fd = -1;
	if (!u && !(ends_deleted(ob->first->path) && stat(ob->first->path, &st) < 0) &&
	    strncmp(ob->first->path, "/anon_hugepage", 14) != 0)
		return plan_path(r, m, ob, files, err);
	choose_how(m, ob, u, all_shared);
	return u ? plan_content(ob, u, err) : 0;
}

/* ---- grouping --------------------------------------------------------------------------- */

static int compare_identity(const struct rmem_region *a, const struct rmem_region *b)
{
	if (a->dev_major != b->dev_major)
		return a->dev_major < b->dev_major ? -1 : 1;
	if (a->dev_minor != b->dev_minor)
		return a->dev_minor < b->dev_minor ? -1 : 1;
	return a->inode < b->inode ? -1 : a->inode > b->inode;
}

static int by_identity(const void *pa, const void *pb)
{
	const struct rmem_region *a = *(struct rmem_region *const *)pa;
	const struct rmem_region *b = *(struct rmem_region *const *)pb;
	int c = compare_identity(a, b);

	return c ? c : a->start < b->start ? -1 : 1;
}

/* Regions order[at..at + n) show one file. */
static int group(struct restore *r, struct rmem *m, size_t at, size_t n, const json_t *files,
		 const json_t *unlinked, struct usnap_err *err)
{
	struct rmem_object *ob = &m->objects[m->nr_objects];
	bool all_shared = true;

	ob->first = m->order[at];
	ob->at = at;
	ob->nr_regions = n;
	for (size_t i = 0; i < n; i++) {
		struct rmem_region *g = m->order[at + i];
		bool write = region_writes_file(g);

		g->object = m->nr_objects;
		all_shared = all_shared && g->shared;
		ob->bytes = MAX(ob->bytes, g->offset + (g->end - g->start));
		ob->page_size = MAX(ob->page_size, g->page_size);
		ob->huge = ob->huge || g->kind == VMA_HUGETLB;
		ob->memory =
			ob->memory || g->kind == VMA_SHMEM || (g->kind == VMA_HUGETLB && g->shared);
		ob->want_write = ob->want_write || write;
		ob->want_read = ob->want_read || !write;
		/* Mapped by a descriptor that could not write: it can be made writable neither now
		 * nor later. */
		if (g->shared && !write && g->nr_pages) {
			g->map_prot = g->prot;
			g->by_file = ob->by_file = true;
		}
	}
	m->nr_objects++;
	return plan_object(r, m, ob, files, unlinked, all_shared, err);
}

int rmem_plan_objects(struct restore *r, struct rmem *m, struct usnap_err *err)
{
	json_t *files, *unlinked;
	int ret;

	if ((ret = rjson_array(r->process, "mapped_files", MAX_LISTED, &files, err)) < 0 ||
	    (ret = rjson_array(r->process, "unlinked", MAX_LISTED, &unlinked, err)) < 0)
		return ret;
	struct rmem_region **v = m->order = calloc(m->nr_regions, sizeof(*v));
	m->objects = calloc(m->nr_regions, sizeof(*m->objects));
	if (!v || !m->objects)
		return usnap_fail_errno(err, -ENOMEM, "cannot restore the memory");
	size_t n = 0;
	for (size_t i = 0; i < m->nr_regions; i++)
		if (m->regions[i].role == REGION_OBJECT)
			v[n++] = &m->regions[i];
	qsort(v, n, sizeof(struct rmem_region *), by_identity);
	for (size_t i = 0, end; i < n && ret == 0; i = end) {
		for (end = i + 1; end < n && compare_identity(v[i], v[end]) == 0;)
			end++;
		ret = group(r, m, i, end - i, files, unlinked, err);
	}
	return ret;
}

/* Files without a name: "unlinked" of process.json, and what of them is missing. */
#include <string.h>
#include <sys/sysmacros.h>

#include "common/util.h"
#include "process/pstate_internal.h"

static bool is_unlinked(const struct fd_state *f)
{
	return (f->kind == FD_REGULAR || f->kind == FD_MEMFD) && f->has_stat && !f->st.st_nlink;
}

int pstate_each_unlinked(const struct pstate *ps, pstate_unlinked_fn *fn, void *arg)
{
	int r = 0;

	for (size_t i = 0; i < ps->files.n && r == 0; i++) {
		const struct fd_state *f = &ps->files.v[i];

		if (is_unlinked(f))
			r = fn(arg, f->fd, &f->st);
	}
	return r;
}

static json_t *file_json(const struct unlinked_file *f)
{
	static const char *const kinds[] = {[UNLINKED_FILE] = "file",
					    [UNLINKED_MEMFD] = "memfd",
					    [UNLINKED_ANON] = "shared-anonymous",
					    [UNLINKED_SYSV] = "sysv"};
	const struct stat *st = &f->st;
	json_t *o = json_object();
	char dev[32];

	snprintf(dev, sizeof(dev), "%02x:%02x", major(st->st_dev), minor(st->st_dev));
	json_object_set_new(o, "dev", json_string(dev));
	json_object_set_new(o, "inode", json_integer((json_int_t)st->st_ino));
	/* btrfs and overlayfs give mappings another device number than stat(2) tells. */
	if (f->map_inode) {
		snprintf(dev, sizeof(dev), "%02x:%02x", (unsigned)(f->map_dev >> 32),
			 (unsigned)f->map_dev);
		json_object_set_new(o, "map_dev", json_string(dev));
		json_object_set_new(o, "map_inode", json_integer((json_int_t)f->map_inode));
	}
	json_set_text(o, "path", f->path);
	json_object_set_new(o, "kind", json_string(kinds[f->kind]));
	json_object_set_new(o, "mode", json_sprintf("0o%o", st->st_mode));
	json_object_set_new(o, "uid", json_integer(st->st_uid));
	json_object_set_new(o, "gid", json_integer(st->st_gid));
	json_object_set_new(o, "size", json_integer(st->st_size));
	json_object_set_new(o, "mtime_ns",
			    json_integer(st->st_mtim.tv_sec * 1000000000ll + st->st_mtim.tv_nsec));
	if (f->seals >= 0)
		json_object_set_new(o, "seals", json_integer(f->seals));
	if (f->page_size)
		json_object_set_new(o, "page_size", json_integer((json_int_t)f->page_size));
	json_object_set_new(o, "content",
			    f->has_content
				    ? json_pack("{s:o,s:I}", "address", json_address(f->address),
						"size", (json_int_t)f->size)
				    : json_null());
	return o;
}

json_t *unlinked_json(const struct pstate *ps)
{
	json_t *a = json_array();

	for (size_t i = 0; ps->unlinked && i < ps->unlinked->n; i++)
		if (ps->unlinked->v[i].used)
			json_array_append_new(a, file_json(&ps->unlinked->v[i]));
	return a;
}

static bool described(const struct pstate *ps, const struct vma *v)
{
	return ps->unlinked && unlinked_find_mapped(ps->unlinked, v);
}

/* A mapping whose file could not even be looked at. */
static void limit_unseen(const struct pstate *ps, json_t *l)
{
	for (size_t i = 0; i < ps->maps->n; i++) {
		const struct vma *v = &ps->maps->v[i];

		if (v->kind == VMA_SHMEM || v->kind == VMA_HUGETLB || !unlinked_maybe(v) ||
		    described(ps, v) || (i && ps->maps->v[i - 1].inode == v->inode))
			continue;
		limit_add(l, "deleted-mapping", "refuse",
			  "0x%llx: %s: what the process has not written of it is not in the image",
			  (unsigned long long)v->start, v->path);
	}
}

void limit_unlinked(const struct pstate *ps, json_t *l)
{
	for (size_t i = 0; ps->unlinked && i < ps->unlinked->n; i++) {
		const struct unlinked_file *f = &ps->unlinked->v[i];

		if (!f->used || f->has_content || !f->st.st_size)
			continue;
		limit_add(l, f->kind == UNLINKED_FILE ? "deleted-file" : "memfd-content", "refuse",
			  "%s, %lld bytes: its content is not in the image: %s", f->path,
			  (long long)f->st.st_size, f->missing ? f->missing : "it was not read");
	}
	limit_unseen(ps, l);
	for (size_t i = 0; i < ps->files.n; i++) {
		const struct fd_state *f = &ps->files.v[i];

		if (is_unlinked(f) && f->st.st_size &&
		    !(ps->unlinked && unlinked_find(ps->unlinked, &f->st)))
			limit_add(l, f->kind == FD_REGULAR ? "deleted-file" : "memfd-content",
				  "refuse",
				  "fd %d: %s, %lld bytes: its content is not in the image", f->fd,
				  f->link, (long long)f->st.st_size);
	}
}

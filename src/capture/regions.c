/*
 * Which mappings are captured, and how.
 *
 * A shared object is captured once, under keys of its own, however many
 * mappings show it: a write through one mapping must save the page for all.
 * What can be written without any mapping of the target's that we know (a
 * descriptor is open on it, it has a name, another process maps it) is beyond
 * write protection, and is copied while every thread stands still.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "capture/session.h"
#include "common/io.h"
#include "common/util.h"

static struct object *object_of(const struct capture *c, const struct vma *v)
{
	for (size_t i = 0; i < c->nr_objects; i++) {
		struct object *o = &c->objects[i];

		if (o->inode == v->inode && o->dev_major == v->dev_major &&
		    o->dev_minor == v->dev_minor)
			return o;
	}
	return NULL;
}

enum how region_how(const struct capture *c, const struct vma *v)
{
	const struct object *o;

	switch (v->kind) {
	case VMA_ANON:
		/* KSM may replace a page and lose its protection. */
		if (c->ksm && v->has_flags && v->flags & (1ull << VMF_MG))
			return HOW_FROZEN;
		return HOW_PROTECT;
	case VMA_HUGETLB:
	case VMA_SHMEM:
		if (v->kind == VMA_HUGETLB && !v->shared)
			return HOW_PROTECT;
		o = object_of(c, v);
		return o && o->frozen ? HOW_FROZEN : HOW_PROTECT;
	case VMA_FILE:
	case VMA_SHMEM_PRIVATE:
		return HOW_FROZEN;
	case VMA_SPECIAL:
		return strcmp(v->path, "[vdso]") == 0 ? HOW_FROZEN : HOW_NONE;
	case VMA_FILE_SHARED:
	case VMA_DEVICE:
		break;
	}
	return HOW_NONE;
}

uint64_t region_mode(const struct vma *v)
{
	/* hugetlb: the protection covers what is not there yet (a marker each). */
	return v->kind == VMA_HUGETLB ? UFFDIO_REGISTER_MODE_WP
				      : UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MISSING;
}

uint64_t region_unit(const struct vma *v)
{
	/* Without smaps (it has just appeared) the smallest huge page is a safe guess only
	 * for alignment; the flags are read before a huge page mapping is armed. */
	return v->kind == VMA_HUGETLB ? MAX(v->page_size, (uint64_t)MIB(2)) : PAGE_BYTES;
}

int region_object(struct capture *c, const struct vma *v)
{
	if (!v->shared)
		return -1;
	struct object *o = object_of(c, v);
	if (!o) {
		struct object *bigger = realloc(c->objects, (c->nr_objects + 1) * sizeof(*o));
		if (!bigger)
			return -ENOMEM;
		c->objects = bigger;
		o = &c->objects[c->nr_objects];
		/* Room for objects of a tebibyte each; offsets beyond are refused below. */
		*o = (struct object){
			.dev_major = v->dev_major,
			.dev_minor = v->dev_minor,
			.inode = v->inode,
			.key = PAGESET_OBJECTS + ((uint64_t)c->nr_objects << 42),
		};
		c->nr_objects++;
	}
	if (c->nr_objects >= 1u << 14 || v->offset + (v->end - v->start) > (uint64_t)1 << 42)
		return -EOVERFLOW;
	return (int)(o - c->objects);
}

static bool is_named(const struct vma *v)
{
	static const char deleted[] = " (deleted)";
	size_t n = strlen(v->path), d = sizeof(deleted) - 1;

	return n < d || strcmp(v->path + n - d, deleted) != 0;
}

/* A descriptor of the target refers to one of the objects. */
static int mark_open_objects(struct capture *c)
{
	cleanup_fd int fd = openat(c->target->procfd, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cleanup_dir DIR *d = fd < 0 ? NULL : fdopendir(fd);
	const struct dirent *e;

	if (!d)
		return -errno;
	int dirfd_ = take_fd(&fd);
	while ((e = readdir(d))) {
		struct stat st;

		if (fstatat(dirfd_, e->d_name, &st, 0) < 0 || !S_ISREG(st.st_mode))
			continue;
		for (size_t i = 0; i < c->nr_objects; i++) {
			struct object *o = &c->objects[i];

			if (o->inode == st.st_ino && o->dev_major == major(st.st_dev) &&
			    o->dev_minor == minor(st.st_dev))
				o->frozen = true;
		}
	}
	return 0;
}

int regions_find_frozen_objects(struct capture *c, struct usnap_err *err)
{
	for (size_t i = 0; i < c->maps.n; i++) {
		const struct vma *v = &c->maps.v[i];

		if (!v->shared || (v->kind != VMA_SHMEM && v->kind != VMA_HUGETLB))
			continue;
		int o = region_object(c, v);
		if (o < 0)
			return usnap_fail_errno(err, o, "cannot take in the shared memory '%s'",
						v->path);
		if (is_named(v))
			c->objects[o].frozen = true;
	}
	int r = c->nr_objects ? mark_open_objects(c) : 0;
	return r < 0 ? usnap_fail_errno(err, r, "cannot list the files of process %d",
					c->target->pid)
		     : 0;
}

int regions_appeared(struct capture *c)
{
	for (size_t i = 0; i < c->maps.n; i++) {
		const struct vma *v = &c->maps.v[i];

		if (!v->shared || (v->kind != VMA_SHMEM && v->kind != VMA_HUGETLB) ||
		    object_of(c, v))
			continue;
		int o = region_object(c, v);
		if (o < 0)
			return o;
		c->objects[o].frozen = true;
	}
	return 0;
}

int regions_alias(struct capture *c)
{
	size_t n = 0;

	for (size_t i = 0; i < c->segments.n; i++)
		n += c->segments.s[i].object >= 0;
	free(c->aliases);
	c->nr_aliases = 0;
	c->aliases = calloc(n + 1, sizeof(*c->aliases));
	if (!c->aliases)
		return -ENOMEM;
	for (size_t i = 0; i < c->segments.n; i++) {
		const struct segment *s = &c->segments.s[i];

		if (s->object >= 0)
			c->aliases[c->nr_aliases++] =
				(struct image_alias){s->key, s->start, s->end - s->start};
	}
	return 0;
}

/*
 * The files that are mapped and have a name: "mapped_files". A restore maps
 * them from there again, and must know whether they are what they were.
 * Looked at right after T0, when the target runs again.
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "common/io.h"
#include "common/util.h"
#include "process/pstate_internal.h"

/* An ELF file has some ten program headers, and notes of some hundred bytes. */
enum {
	HEADERS_MAX = 128,
	NOTES_MAX = 65536,
	BUILD_ID_MAX = 64,
};

/* ---- build-id ------------------------------------------------------------ */

static json_t *find_build_id(const unsigned char *notes, size_t len)
{
	while (len >= sizeof(Elf64_Nhdr)) {
		Elf64_Nhdr h;

		memcpy(&h, notes, sizeof(h));
		uint64_t name = ALIGN_UP((uint64_t)h.n_namesz, 4);
		uint64_t desc = ALIGN_UP((uint64_t)h.n_descsz, 4);
		if (name + desc > len - sizeof(h))
			break;
		const unsigned char *at = notes + sizeof(h);
		if (h.n_type == NT_GNU_BUILD_ID && h.n_namesz == 4 && !memcmp(at, "GNU", 4) &&
		    h.n_descsz && h.n_descsz <= BUILD_ID_MAX)
			return json_hex(at + name, h.n_descsz);
		notes += sizeof(h) + name + desc;
		len -= sizeof(h) + (size_t)(name + desc);
	}
	return NULL;
}

/* Of a 64-bit file of this machine's byte order. NULL: it has none. */
static json_t *read_build_id(int fd)
{
	Elf64_Ehdr e;
	Elf64_Phdr ph[HEADERS_MAX];

	if (io_pread_full(fd, &e, sizeof(e), 0) < 0 || memcmp(e.e_ident, ELFMAG, SELFMAG) != 0 ||
	    e.e_ident[EI_CLASS] != ELFCLASS64 || e.e_ident[EI_DATA] != ELFDATA2LSB ||
	    e.e_phentsize != sizeof(ph[0]) || !e.e_phnum || e.e_phnum > HEADERS_MAX ||
	    e.e_phoff > INT64_MAX ||
	    io_pread_full(fd, ph, e.e_phnum * sizeof(ph[0]), e.e_phoff) < 0)
		return NULL;
	for (size_t i = 0; i < e.e_phnum; i++) {
		cleanup_free unsigned char *notes = NULL;
		json_t *id;

		if (ph[i].p_type != PT_NOTE || ph[i].p_filesz > NOTES_MAX ||
		    ph[i].p_offset > INT64_MAX)
			continue;
		notes = malloc(ph[i].p_filesz + 1);
		if (!notes || io_pread_full(fd, notes, ph[i].p_filesz, ph[i].p_offset) < 0)
			continue;
		id = find_build_id(notes, ph[i].p_filesz);
		if (id)
			return id;
	}
	return NULL;
}

/* ---- files --------------------------------------------------------------- */

static int open_regular(int dirfd_, const char *name, struct stat *st)
{
	/* Nothing but a regular file is opened for reading: that could do something. */
	if (fstatat(dirfd_, name, st, 0) < 0)
		return -errno;
	if (!S_ISREG(st->st_mode))
		return -EINVAL;
	int fd = openat(dirfd_, name, O_RDONLY | O_NONBLOCK | O_NOATIME | O_CLOEXEC);
	if (fd < 0 && errno == EPERM)
		fd = openat(dirfd_, name, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* -1 with ret_known when it is known and must not be read. */
static int open_mapped(const struct pstate *ps, const struct vma *v, struct stat *st,
		       bool *ret_known)
{
	char name[64 + PATH_MAX];
	cleanup_free char *link = NULL;

	snprintf(name, sizeof(name), "map_files/%llx-%llx", (unsigned long long)v->start,
		 (unsigned long long)v->end);
	/* It may have been unmapped since, and something else be there. */
	bool there = io_readlink_at(ps->t->procfd, name, &link) == 0 && !strcmp(link, v->path) &&
		     fstatat(ps->t->procfd, name, st, 0) == 0;
	if (!there) {
		if (v->path[0] != '/' || strlen(v->path) >= PATH_MAX)
			return -ENOENT;
		snprintf(name, sizeof(name), "root%s", v->path);
		there = fstatat(ps->t->procfd, name, st, 0) == 0 && st->st_ino == v->inode;
	}
	*ret_known = there;
	return there ? open_regular(ps->t->procfd, name, st) : -ENOENT;
}

bool mapped_is_seen(const struct maps *m, size_t i)
{
	for (size_t k = i; k-- > 0;)
		if (m->v[k].inode == m->v[i].inode && m->v[k].dev_major == m->v[i].dev_major &&
		    m->v[k].dev_minor == m->v[i].dev_minor && m->v[k].kind != VMA_DEVICE)
			return true;
	return false;
}

bool mapped_has_file(const struct vma *v)
{
	switch (v->kind) {
	case VMA_FILE:
	case VMA_FILE_SHARED:
	case VMA_SHMEM:
	case VMA_SHMEM_PRIVATE:
	case VMA_HUGETLB:
		return v->path[0] == '/' && !unlinked_maybe(v);
	default:
		return false;
	}
}

static json_t *file_json(const struct pstate *ps, const struct vma *v)
{
	char dev[32];
	struct stat st;
	bool known = false;
	cleanup_fd int fd = open_mapped(ps, v, &st, &known);
	json_t *o = json_object(), *id = fd >= 0 ? read_build_id(fd) : NULL;

	json_set_text(o, "path", v->path);
	snprintf(dev, sizeof(dev), "%02x:%02x", v->dev_major, v->dev_minor);
	json_object_set_new(o, "dev", json_string(dev));
	json_object_set_new(o, "inode", json_integer((json_int_t)v->inode));
	json_object_set_new(o, "size", known ? json_integer(st.st_size) : json_null());
	json_object_set_new(
		o, "mtime_ns",
		known ? json_integer(st.st_mtim.tv_sec * 1000000000ll + st.st_mtim.tv_nsec)
		      : json_null());
	json_object_set_new(o, "build_id", id ? id : json_null());
	return o;
}

json_t *mapped_json(const struct pstate *ps)
{
	json_t *a = json_array();

	for (size_t i = 0; i < ps->maps->n; i++)
		if (mapped_has_file(&ps->maps->v[i]) && !mapped_is_seen(ps->maps, i))
			json_array_append_new(a, file_json(ps, &ps->maps->v[i]));
	return a;
}

#include "process/mapkind.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "common/util.h"

static bool has_flag(const struct vma *v, enum vma_flag f)
{
	return v->flags >> f & 1;
}

static bool has_prefix(const char *s, const char *prefix)
{
	return !strncmp(s, prefix, strlen(prefix));
}

/* Opens the mapped file itself; O_PATH, which neither blocks nor wakes a
 * device. map_files takes CAP_CHECKPOINT_RESTORE; without it the path is
 * tried, and believed when the inode is the one that is mapped. */
static int open_mapped(int procfd, const struct vma *v)
{
	char name[64 + PATH_MAX];
	struct stat st;

	snprintf(name, sizeof(name), "map_files/%llx-%llx", (unsigned long long)v->start,
		 (unsigned long long)v->end);
	int fd = openat(procfd, name, O_PATH | O_CLOEXEC);
	if (fd >= 0)
		return fd;
	if (v->path[0] != '/' || strlen(v->path) >= PATH_MAX)
		return -ENOENT;
	snprintf(name, sizeof(name), "root%s", v->path);
	fd = openat(procfd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) == 0 && st.st_ino == v->inode && major(st.st_dev) == v->dev_major &&
	    minor(st.st_dev) == v->dev_minor)
		return fd;
	close(fd);
	return -ENOENT;
}

/* The kernel's own tmpfs, on which memfd, SysV segments and shared anonymous
 * memory lie, is one for the whole system: ask one of ours for its number. */
static bool is_kernel_shm(const struct vma *v)
{
	struct stat st;
	cleanup_fd int fd = memfd_create("uffd-snap", MFD_CLOEXEC);

	return fd >= 0 && fstat(fd, &st) == 0 && major(st.st_dev) == v->dev_major &&
	       minor(st.st_dev) == v->dev_minor;
}

/* *ret_sure: of every mapping on the device. */
static enum fs_kind probe_fs(int procfd, const struct vma *v, bool *ret_sure)
{
	struct statfs fs;
	cleanup_fd int fd = open_mapped(procfd, v);

	*ret_sure = fd >= 0 && fstatfs(fd, &fs) == 0;
	if (*ret_sure) {
		if (fs.f_type == TMPFS_MAGIC)
			return FS_SHMEM;
		return fs.f_type == HUGETLBFS_MAGIC ? FS_HUGETLB : FS_OTHER;
	}
	if (is_kernel_shm(v))
		return FS_SHMEM;
	return has_prefix(v->path, "/anon_hugepage") ? FS_HUGETLB : FS_OTHER;
}

static enum fs_kind fs_of(struct fs_cache *cache, int procfd, const struct vma *v)
{
	if (v->dev_major) /* a block device: neither of the two */
		return FS_OTHER;
	for (unsigned i = 0; i < cache->n; i++)
		if (cache->known[i].minor == v->dev_minor)
			return cache->known[i].kind;
	bool sure;
	enum fs_kind kind = probe_fs(procfd, v, &sure);
	if (sure && cache->n < ARRAY_SIZE(cache->known)) {
		cache->known[cache->n].minor = v->dev_minor;
		cache->known[cache->n++].kind = kind;
	}
	return kind;
}

/* Mappings of kernel objects that are no memory of the process: rings of
 * io_uring, aio, perf and packet sockets, KVM, DMA buffers, and memfd_secret,
 * which nobody else can read. All lie on devices without a major number, so
 * no file of that name is mistaken for one. */
static bool is_kernel_object(const struct vma *v)
{
	static const char *const prefixes[] = {"anon_inode:", "socket:", "/[aio]",
					       "/dmabuf:", "/secretmem"};

	if (v->dev_major)
		return false;
	for (size_t i = 0; i < ARRAY_SIZE(prefixes); i++)
		if (has_prefix(v->path, prefixes[i]))
			return true;
	return false;
}

static enum vma_kind kind_of_char_device(int procfd, const struct vma *v)
{
	struct stat st;
	cleanup_fd int fd = open_mapped(procfd, v);

	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISCHR(st.st_mode))
		return VMA_FILE;
	/* A private mapping of /dev/zero is anonymous memory with a name. */
	if (st.st_rdev == makedev(1, 5) && !v->shared)
		return VMA_ANON;
	return VMA_DEVICE;
}

enum vma_kind mapkind_classify(struct fs_cache *cache, int procfd, const struct vma *v)
{
	bool backed = v->inode || v->dev_major || v->dev_minor;

	/* "[anon:NAME]" is a name given by prctl(PR_SET_VMA), on shmem
	 * "[anon_shmem:NAME]"; the rest in brackets is the kernel's. */
	if (!backed && v->path[0] == '[' && !has_prefix(v->path, "[anon:") &&
	    !has_prefix(v->path, "[heap]") && !has_prefix(v->path, "[stack"))
		return VMA_SPECIAL;
	if (has_flag(v, VMF_HT))
		return VMA_HUGETLB;
	if (has_flag(v, VMF_IO) || has_flag(v, VMF_PF))
		return VMA_DEVICE;
	if (!backed)
		return VMA_ANON;
	if (is_kernel_object(v))
		return VMA_DEVICE;
	if (has_prefix(v->path, "/dev/") && !has_prefix(v->path, "/dev/shm/") &&
	    !has_prefix(v->path, "/dev/zero (deleted)")) {
		enum vma_kind kind = kind_of_char_device(procfd, v);
		if (kind != VMA_FILE)
			return kind;
	}
	switch (fs_of(cache, procfd, v)) {
	case FS_HUGETLB:
		return VMA_HUGETLB;
	case FS_SHMEM:
		return v->shared ? VMA_SHMEM : VMA_SHMEM_PRIVATE;
	case FS_OTHER:
		break;
	}
	return v->shared ? VMA_FILE_SHARED : VMA_FILE;
}

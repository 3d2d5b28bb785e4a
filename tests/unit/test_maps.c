#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "process/maps.h"

/* A directory that stands for /proc/PID, with a file in it. */
static int fake_proc(const char *name, const char *text, size_t len)
{
	char dir[64] = "/tmp/maps.XXXXXX";

	cr_assert_not_null(mkdtemp(dir));
	int dirfd = open(dir, O_RDONLY | O_DIRECTORY);
	int fd = openat(dirfd, name, O_WRONLY | O_CREAT, 0600);
	cr_assert(fd >= 0);
	cr_assert_eq(io_write_full(fd, text, len), 0);
	close(fd);
	return dirfd;
}

static void remove_fake(int dirfd, const char *name)
{
	char link[64], dir[PATH_MAX];

	unlinkat(dirfd, name, 0);
	snprintf(link, sizeof(link), "/proc/self/fd/%d", dirfd);
	ssize_t n = readlink(link, dir, sizeof(dir) - 1);
	dir[n] = '\0';
	rmdir(dir);
	close(dirfd);
}

static int read_fake(const char *text, struct maps *m)
{
	int dirfd = fake_proc("maps", text, strlen(text));
	int r = maps_read(dirfd, m);

	remove_fake(dirfd, "maps");
	return r;
}

static int read_fake_flags(const char *text, struct maps *m)
{
	int dirfd = fake_proc("smaps", text, strlen(text));
	int r = maps_read_flags(dirfd, m);

	remove_fake(dirfd, "smaps");
	return r;
}

static const struct vma *at(const struct maps *m, const void *p)
{
	const struct vma *v = maps_find(m, (uintptr_t)p);

	cr_assert_not_null(v);
	return v;
}

Test(maps, a_line_is_taken_apart)
{
	struct maps m;

	cr_assert_eq(read_fake("7f0000001000-7f0000003000 r-xp 00002000 fe:1f 247134"
			       "                     /usr/bin/a b\n",
			       &m),
		     0);
	cr_assert_eq(m.n, 1);
	cr_expect_eq(m.v[0].start, 0x7f0000001000);
	cr_expect_eq(m.v[0].end, 0x7f0000003000);
	cr_expect_eq(m.v[0].prot, (uint32_t)(PROT_READ | PROT_EXEC));
	cr_expect(!m.v[0].shared);
	cr_expect_eq(m.v[0].offset, 0x2000);
	cr_expect_eq(m.v[0].dev_major, 0xfe);
	cr_expect_eq(m.v[0].dev_minor, 0x1f);
	cr_expect_eq(m.v[0].inode, 247134);
	cr_expect_str_eq(m.v[0].path, "/usr/bin/a b");
	cr_expect_eq(m.v[0].kind, VMA_FILE);
	cr_expect(!m.v[0].has_flags);
	maps_free(&m);
	cr_expect_null(m.v);
}

Test(maps, a_newline_in_a_path_is_unescaped_and_other_backslashes_stay)
{
	struct maps m;

	cr_assert_eq(read_fake("1000-2000 r--p 00000000 fe:00 5   /tmp/a\\012b\\x\\01\n", &m), 0);
	cr_expect_str_eq(m.v[0].path, "/tmp/a\nb\\x\\01");
	maps_free(&m);
}

Test(maps, nothing_at_all_is_no_error)
{
	struct maps m;

	cr_assert_eq(read_fake("", &m), 0);
	cr_expect_eq(m.n, 0);
	cr_expect_null(maps_find(&m, 0x1000));
	maps_free(&m);
}

Test(maps, malformed_lines_are_refused)
{
	static const char *const lines[] = {
		"\n",
		"1000",
		"1000-2000 r--p 00000000 fe:00 5 /a", /* cut off */
		"1000-2000\n",
		"1000 2000 r--p 00000000 fe:00 5\n",
		"2000-1000 r--p 00000000 fe:00 5\n",
		"1000-1000 r--p 00000000 fe:00 5\n",
		"1001-2000 r--p 00000000 fe:00 5\n",
		"1000-2000 rr-p 00000000 fe:00 5\n",
		"1000-2000 r--x 00000000 fe:00 5\n",
		"1000-2000 r-\n",
		"1000-2000 r--p g fe:00 5\n",
		"1000-2000 r--p 00000000 fe00 5\n",
		"1000-2000 r--p 00000000 fe:00 x\n",
		"1000-2000 r--p 00000000 fe:00 5x\n",
		"1000-11111111111111111000 r--p 00000000 fe:00 5\n",
		"1000-2000 r--p 00000000 fe:00 99999999999999999999999\n",
		"1000-2000 r--p 00000000 111111111:00 5\n",
		"VmFlags: rd\n",
	};

	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		struct maps m = {0};

		cr_expect_eq(read_fake(lines[i], &m), -EPROTO, "line %zu", i);
		cr_expect_null(m.v);
	}
}

Test(maps, what_changed_between_two_reads_does_not_overlap)
{
	struct maps m;

	cr_assert_eq(read_fake("1000-4000 rw-p 00000000 00:00 0\n"
			       "2000-3000 rw-p 00000000 00:00 0\n"
			       "3000-6000 r--p 00003000 fe:00 7 /a\n",
			       &m),
		     0);
	cr_assert_eq(m.n, 2);
	cr_expect_eq(m.v[0].end, 0x4000);
	cr_expect_eq(m.v[1].start, 0x4000);
	cr_expect_eq(m.v[1].offset, 0x4000);
	maps_free(&m);
}

Test(maps, flags_and_page_size_come_from_smaps)
{
	struct maps m;

	cr_assert_eq(
		read_fake_flags("200000-400000 rw-s 00000000 00:0f 3 /anon_hugepage (deleted)\n"
				"Size:               2048 kB\n"
				"KernelPageSize:     2048 kB\n"
				"VmFlags: rd wr sh mr mw me ms de ht zz sd \n"
				"400000-401000 rw-p 00000000 00:00 0 \n"
				"KernelPageSize:        4 kB\n"
				"VmFlags: rd wr mr mw me ac uw\n",
				&m),
		0);
	cr_assert_eq(m.n, 2);
	cr_expect(m.v[0].has_flags);
	cr_expect_eq(m.v[0].page_size, 2048 * 1024);
	cr_expect_eq(m.v[0].kind, VMA_HUGETLB);
	cr_expect(m.v[0].flags >> VMF_HT & 1);
	cr_expect(m.v[0].flags >> VMF_SD & 1);
	cr_expect(!(m.v[0].flags >> VMF_UW & 1));
	cr_expect(m.v[1].flags >> VMF_UW & 1);
	cr_expect_eq(m.v[1].kind, VMA_ANON);
	maps_free(&m);
}

Test(maps, a_page_size_that_is_none_is_refused)
{
	struct maps m = {0};

	cr_expect_eq(read_fake_flags("1000-2000 rw-p 0 0:0 0\nKernelPageSize: 3 kB\n", &m),
		     -EPROTO);
	cr_expect_eq(read_fake_flags("1000-2000 rw-p 0 0:0 0\nKernelPageSize: 0 kB\n", &m),
		     -EPROTO);
	cr_expect_eq(read_fake_flags("1000-2000 rw-p 0 0:0 0\nKernelPageSize:\n", &m), -EPROTO);
}

Test(maps, device_memory_is_told_by_its_flags)
{
	struct maps m;

	cr_assert_eq(read_fake_flags("1000-2000 rw-s 00000000 00:06 3 /dev/mem\n"
				     "VmFlags: rd wr sh io pf\n"
				     "2000-3000 r--p 00000000 00:00 0 [vvar]\n"
				     "VmFlags: rd pf io de dd\n",
				     &m),
		     0);
	cr_expect_eq(m.v[0].kind, VMA_DEVICE);
	cr_expect_eq(m.v[1].kind, VMA_SPECIAL);
	maps_free(&m);
}

Test(maps, flags_are_inherited_where_the_mapping_is_the_same)
{
	struct maps earlier, fresh;

	cr_assert_eq(read_fake_flags("1000-2000 r--p 00000000 fe:00 7 /a\nVmFlags: rd mr me\n"
				     "5000-8000 rw-p 00000000 00:00 0 [heap]\nVmFlags: rd wr hg\n"
				     "9000-a000 rw-p 00001000 fe:00 8 /b\nVmFlags: rd wr\n",
				     &earlier),
		     0);
	/* Protected in part; grown; another file at the same place; new. */
	cr_assert_eq(read_fake("1000-2000 r--p 00000000 fe:00 7 /a\n"
			       "5000-6000 r--p 00000000 00:00 0 [heap]\n"
			       "6000-9000 rw-p 00000000 00:00 0 [heap]\n"
			       "9000-a000 rw-p 00001000 fe:00 9 /c\n"
			       "b000-c000 rw-p 00000000 00:00 0\n",
			       &fresh),
		     0);
	cr_expect_eq(maps_inherit_flags(&fresh, &earlier), 2);
	cr_expect(fresh.v[0].has_flags && fresh.v[0].flags >> VMF_ME & 1);
	cr_expect(fresh.v[1].flags >> VMF_HG & 1);
	cr_expect(!(fresh.v[1].flags >> VMF_WR & 1));
	cr_expect(fresh.v[2].flags >> VMF_HG & 1);
	cr_expect(fresh.v[2].flags >> VMF_WR & 1);
	cr_expect(!fresh.v[3].has_flags);
	cr_expect(!fresh.v[4].has_flags);
	maps_free(&fresh);
	maps_free(&earlier);
}

Test(maps, an_address_is_found_in_the_mapping_that_holds_it)
{
	struct maps m;

	cr_assert_eq(read_fake("1000-2000 rw-p 0 0:0 0\n3000-5000 rw-p 0 0:0 0\n", &m), 0);
	cr_expect_null(maps_find(&m, 0xfff));
	cr_expect_eq(maps_find(&m, 0x1000), &m.v[0]);
	cr_expect_eq(maps_find(&m, 0x1fff), &m.v[0]);
	cr_expect_null(maps_find(&m, 0x2000));
	cr_expect_eq(maps_find(&m, 0x4fff), &m.v[1]);
	cr_expect_null(maps_find(&m, 0x5000));
	maps_free(&m);
}

/* Every way in which this process can come by memory. */
Test(maps, kinds_of_real_mappings)
{
	const size_t len = 4096;
	struct maps m, flags;
	char path[] = "/tmp/maps\nfile.XXXXXX";

	void *anon = mmap(NULL, len, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	void *shared = mmap(NULL, len, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int memfd = memfd_create("some name", 0), zero = open("/dev/zero", O_RDWR);
	cr_assert_eq(ftruncate(memfd, (off_t)len), 0);
	void *mem_shared = mmap(NULL, len, PROT_READ, MAP_SHARED, memfd, 0);
	void *mem_private = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE, memfd, 0);
	void *zero_private = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE, zero, 0);
	void *zero_shared = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, zero, 0);
	int id = shmget(IPC_PRIVATE, len, IPC_CREAT | 0600);
	void *sysv = shmat(id, NULL, 0);
	shmctl(id, IPC_RMID, NULL);
	int fd = mkstemp(path);
	cr_assert_eq(ftruncate(fd, (off_t)len), 0);
	void *file = mmap(NULL, len, PROT_READ, MAP_PRIVATE, fd, 0);
	void *file_shared = mmap(NULL, len, PROT_READ, MAP_SHARED, fd, 0);

	int proc = open("/proc/self", O_RDONLY | O_DIRECTORY);
	cr_assert_eq(maps_read_flags(proc, &flags), 0);
	for (int pass = 0; pass < 2; pass++) {
		cr_assert_eq(maps_read(proc, &m), 0);
		if (pass)
			maps_inherit_flags(&m, &flags);
		cr_expect_eq(at(&m, anon)->kind, VMA_ANON);
		cr_expect_eq(at(&m, shared)->kind, VMA_SHMEM);
		cr_expect_eq(at(&m, mem_shared)->kind, VMA_SHMEM);
		cr_expect_eq(at(&m, mem_private)->kind, VMA_SHMEM_PRIVATE);
		cr_expect_eq(at(&m, zero_private)->kind, VMA_ANON);
		cr_expect_eq(at(&m, zero_shared)->kind, VMA_SHMEM);
		cr_expect_eq(at(&m, sysv)->kind, VMA_SHMEM);
		cr_expect_eq(at(&m, file)->kind, VMA_FILE);
		cr_expect_eq(at(&m, file_shared)->kind, VMA_FILE_SHARED);
		cr_expect_str_eq(at(&m, file)->path, path);
		cr_expect_eq(at(&m, path)->kind, VMA_ANON); /* the stack */
		maps_free(&m);
	}
	maps_free(&flags);
	unlink(path);
}

Test(maps, every_kind_and_flag_has_a_name)
{
	for (int k = VMA_ANON; k <= VMA_DEVICE; k++)
		cr_expect_str_neq(vma_kind_name((enum vma_kind)k), "unknown");
	for (int f = 0; f < VMF_NR_FLAGS; f++)
		cr_expect_eq(strlen(vma_flag_name((enum vma_flag)f)), 2);
	cr_expect_str_eq(vma_flag_name(VMF_RD), "rd");
	cr_expect_str_eq(vma_flag_name(VMF_UW), "uw");
	cr_expect_str_eq(vma_flag_name(VMF_LF), "lf");
}

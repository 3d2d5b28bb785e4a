/*
 * Shared memory and mapped files after a restore; see restorework.h.
 */
#include "restorework.h"

#include <setjmp.h>
#include <sys/ipc.h>
#include <sys/shm.h>
#include <sys/stat.h>

enum {
	PAGE = 4096,
	HUGE = 2 << 20
};

static char *map_file(int fd, size_t len, int prot, int flags, off_t at)
{
	char *p = mmap(NULL, len, prot, flags, fd, at);

	must(p != MAP_FAILED);
	return p;
}

/* A file of so many pages with work_byte(i, seed). */
static int make_file(const char *name, size_t pages, unsigned seed)
{
	int fd = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0755);
	char *buf = malloc(pages * PAGE);

	must(fd >= 0 && buf);
	work_fill(buf, pages * PAGE, seed);
	must(write(fd, buf, pages * PAGE) == (ssize_t)(pages * PAGE));
	free(buf);
	return fd;
}

/* Whether what is written through one is seen through the other. */
static bool same_memory(volatile char *a, volatile char *b)
{
	*a = 17;
	if (*b != 17)
		return false;
	*b = 42;
	return *a == 42;
}

static sigjmp_buf bus_jump;

static void on_bus(int signo)
{
	siglongjmp(bus_jump, signo);
}

/* ---- shared memory -------------------------------------------------------- */

static void memfd_shared(void)
{
	int fd = memfd_create("shared", MFD_CLOEXEC);
	char *a, *b, *ro;

	must(fd >= 0 && ftruncate(fd, 64 * PAGE) == 0);
	a = map_file(fd, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
	b = map_file(fd, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, 56 * PAGE);
	ro = map_file(fd, 64 * PAGE, PROT_READ, MAP_SHARED, 0);
	work_fill(a, 4 * PAGE, 1);
	work_fill(b, PAGE, 2);
	work_wait();
	must(work_filled(a, 4 * PAGE, 1) && work_filled(b, PAGE, 2));
	must(work_zero(a + 4 * PAGE, 52 * PAGE));
	must(same_memory(a + 57 * PAGE, b + PAGE) && same_memory(a + 56 * PAGE, b));
	a[5] = 99;
	must(ro[5] == 99);
	char c = 0;

	must(pread(fd, &c, 1, 5) == 1 && c == 99);
	must(pwrite(fd, "x", 1, 6) == 1 && a[6] == 'x');
	must(ftruncate(fd, 128 * PAGE) == 0);
}

static void memfd_closed(void)
{
	int fd = memfd_create("closed", MFD_CLOEXEC);
	char *a, *b, *p;

	must(fd >= 0 && ftruncate(fd, 16 * PAGE) == 0);
	a = map_file(fd, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
	b = map_file(fd, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
	work_fill(a, 16 * PAGE, 3);
	p = map_file(fd, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, 0);
	work_fill(p + PAGE, PAGE, 4);
	close(fd);
	work_wait();
	must(work_filled(b, 16 * PAGE, 3) && same_memory(a + 3 * PAGE, b + 3 * PAGE));
	must(work_filled(p, PAGE, 3) && work_filled(p + PAGE, PAGE, 4));
}

static int write_there(void *p)
{
	*(volatile char *)p = 77;
	return 0;
}

static void shared_anon(void)
{
	char *a = mmap(NULL, 32 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	must(a != MAP_FAILED);
	/* Another view of the same. */
	char *b = mremap(a, 0, 32 * PAGE, MREMAP_MAYMOVE);

	must(b != MAP_FAILED && b != a);
	work_fill(a, 8 * PAGE, 5);
	work_wait();
	must(work_filled(b, 8 * PAGE, 5) && work_zero(b + 8 * PAGE, 24 * PAGE));
	must(same_memory(a + 20 * PAGE, b + 20 * PAGE));
	must_equal(work_in_child(write_there, a + 30 * PAGE), 0);
	must(a[30 * PAGE] == 77 && b[30 * PAGE] == 77);
}

static void sysv(bool removed)
{
	int id = shmget(IPC_PRIVATE, 16 * PAGE, IPC_CREAT | 0600);
	struct shmid_ds ds;

	must(id >= 0);
	char *a = shmat(id, NULL, 0), *b = shmat(id, NULL, 0);
	bool both = a != (char *)-1 && b != (char *)-1;

	if (removed || !both)
		shmctl(id, IPC_RMID, NULL);
	must(both);
	work_fill(a, 4 * PAGE, 6);
	work_wait();
	must(work_filled(b, 4 * PAGE, 6) && work_zero(b + 4 * PAGE, 12 * PAGE));
	must(same_memory(a + 9 * PAGE, b + 9 * PAGE));
	if (!removed) {
		bool known = shmctl(id, IPC_STAT, &ds) == 0;

		shmctl(id, IPC_RMID, NULL);
		must(known);
		must_equal(ds.shm_nattch, 2);
		must_equal(ds.shm_segsz, 16 * PAGE);
	}
	must(shmdt(a) == 0 && shmdt(b) == 0);
}

static void sysv_kept(void)
{
	sysv(false);
}

static void sysv_removed(void)
{
	sysv(true);
}

static void hugetlb(void)
{
	int flags = MAP_ANONYMOUS | MAP_HUGETLB;
	char *p = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | flags, -1, 0);

	if (p == MAP_FAILED)
		work_skip("no huge pages are reserved");
	char *s = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED | flags, -1, 0);

	if (s == MAP_FAILED)
		work_skip("too few huge pages are reserved");
	work_fill(p, PAGE, 7);
	work_fill(p + HUGE - PAGE, PAGE, 8);
	work_fill(s + 5 * PAGE, PAGE, 9);
	work_wait();
	must(work_filled(p, PAGE, 7) && work_filled(p + HUGE - PAGE, PAGE, 8));
	must(work_filled(s + 5 * PAGE, PAGE, 9) && work_zero(s, 5 * PAGE));
	must(work_zero(p + HUGE, PAGE));
	must(strtol(work_smaps(p, "KernelPageSize"), NULL, 10) == 2048);
	must(strtol(work_smaps(s, "KernelPageSize"), NULL, 10) == 2048);
	must_equal(work_in_child(write_there, s), 0);
	must(s[0] == 77);
}

static void dev_zero(void)
{
	int fd = open("/dev/zero", O_RDWR | O_CLOEXEC);

	must(fd >= 0);
	char *p = map_file(fd, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, 0);
	char *s = map_file(fd, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, 0);

	work_fill(p, 2 * PAGE, 10);
	work_fill(s, 2 * PAGE, 11);
	work_wait();
	must(work_filled(p, 2 * PAGE, 10) && work_zero(p + 2 * PAGE, 6 * PAGE));
	must(work_filled(s, 2 * PAGE, 11) && work_zero(s + 2 * PAGE, 6 * PAGE));
	must_equal(work_in_child(write_there, s), 0);
	must(s[0] == 77);
}

/* ---- files -------------------------------------------------------------------- */

static void private_file(void)
{
	int fd = make_file("private", 16, 20);
	char *p = map_file(fd, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, 0);
	char c;

	close(fd);
	work_fill(p + 3 * PAGE, 2 * PAGE, 21);
	p[9 * PAGE + 5] ^= 1;
	work_wait();
	must(work_filled(p, 3 * PAGE, 20) && work_filled(p + 3 * PAGE, 2 * PAGE, 21));
	for (size_t i = 5 * PAGE; i < 16 * PAGE; i++)
		must(i == 9 * PAGE + 5 || (unsigned char)p[i] == work_byte(i, 20));
	must((unsigned char)p[9 * PAGE + 5] == (work_byte(9 * PAGE + 5, 20) ^ 1));
	work_fill(p + 12 * PAGE, PAGE, 22);
	fd = open("private", O_RDONLY | O_CLOEXEC);
	for (size_t i = 0; i < 16 * PAGE; i += 511)
		must(pread(fd, &c, 1, (off_t)i) == 1 && (unsigned char)c == work_byte(i, 20));
}

static void shared_file(void)
{
	int fd = make_file("shared", 16, 23);
	char *a = map_file(fd, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
	char *b = map_file(fd, 4 * PAGE, PROT_READ, MAP_SHARED, 8 * PAGE);
	char c;

	close(fd);
	work_fill(a + 2 * PAGE, PAGE, 24);
	work_wait();
	must(work_filled(a, 2 * PAGE, 23) && work_filled(a + 2 * PAGE, PAGE, 24));
	a[8 * PAGE + 7] = 66;
	must(b[7] == 66);
	must(msync(a, 16 * PAGE, MS_SYNC) == 0);
	fd = open("shared", O_RDONLY | O_CLOEXEC);
	must(fd >= 0 && pread(fd, &c, 1, 8 * PAGE + 7) == 1 && c == 66);
	must(pread(fd, &c, 1, 2 * PAGE + 1) == 1 && (unsigned char)c == work_byte(1, 24));
}

static void deleted_file(void)
{
	int fd = make_file("deleted", 16, 25);
	char *a = map_file(fd, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
	char *b = map_file(fd, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, 4 * PAGE);
	char *p = map_file(fd, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, 0);

	close(fd);
	must(unlink("deleted") == 0);
	work_fill(p + PAGE, PAGE, 26);
	work_fill(a + 3 * PAGE, PAGE, 27);
	work_wait();
	must(work_filled(a, 3 * PAGE, 25) && work_filled(a + 3 * PAGE, PAGE, 27));
	must(work_filled(p, PAGE, 25) && work_filled(p + PAGE, PAGE, 26));
	must(work_filled(p + 3 * PAGE, PAGE, 27));
	must(same_memory(a + 6 * PAGE, b + 2 * PAGE));
	must(access("deleted", F_OK) < 0);
}

static void renamed_file(void)
{
	int fd = make_file("old-name", 4, 28);
	char *p = map_file(fd, 4 * PAGE, PROT_READ, MAP_PRIVATE, 0);

	close(fd);
	must(rename("old-name", "new-name") == 0);
	work_wait();
	must(work_filled(p, 4 * PAGE, 28));
	must(strstr(work_smaps(p, ""), "/new-name") != NULL);
}

static void beyond_the_end(void)
{
	int fd = make_file("short", 2, 29);
	struct sigaction act = {.sa_handler = on_bus};
	char *p = map_file(fd, 8 * PAGE, PROT_READ, MAP_SHARED, 0);
	char *q = map_file(fd, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, 0);
	volatile int faults = 0;

	must(ftruncate(fd, PAGE + 100) == 0);
	work_wait();
	must(work_filled(p, PAGE + 100, 29) && work_zero(p + PAGE + 100, PAGE - 100));
	sigaction(SIGBUS, &act, NULL);
	if (!sigsetjmp(bus_jump, 1))
		(void)*(volatile char *)(p + 2 * PAGE);
	else
		faults++;
	if (!sigsetjmp(bus_jump, 1))
		*(volatile char *)(q + 3 * PAGE) = 1;
	else
		faults++;
	must_equal(faults, 2);
	must(ftruncate(fd, 8 * PAGE) == 0 && work_zero(p + 2 * PAGE, 6 * PAGE));
}

static void read_only_shared(void)
{
	int fd = make_file("readers", 4, 30);

	close(fd);
	fd = open("readers", O_RDONLY | O_CLOEXEC);
	char *p = map_file(fd, 4 * PAGE, PROT_READ, MAP_SHARED, 0);

	close(fd);
	work_wait();
	must(work_filled(p, 4 * PAGE, 30));
	/* It was opened for reading: it cannot become writable. */
	must(mprotect(p, PAGE, PROT_READ | PROT_WRITE) < 0 && errno == EACCES);
}

static void posix_shm(void)
{
	char name[64];

	snprintf(name, sizeof(name), "/restorework.%d", (int)getpid());
	int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);

	must(fd >= 0 && ftruncate(fd, 8 * PAGE) == 0);
	char *p = map_file(fd, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, 0);

	close(fd);
	work_fill(p, 8 * PAGE, 31);
	work_wait();
	bool kept = work_filled(p, 8 * PAGE, 31);

	fd = shm_open(name, O_RDWR, 0);
	shm_unlink(name);
	must(kept && fd >= 0);
	char *q = map_file(fd, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, 0);

	must(same_memory(p + 3 * PAGE, q + 3 * PAGE));
}

static const struct work works[] = {
	{"memfd-shared", memfd_shared, "memfds mapped more than once, with their descriptor"},
	{"memfd-closed", memfd_closed, "memfds mapped more than once whose descriptor is closed"},
	{"shared-anon", shared_anon, "shared anonymous memory, seen at two places and by children"},
	{"sysv", sysv_kept, "SysV shared memory under its identifier"},
	{"sysv-removed", sysv_removed, "SysV shared memory that was removed while attached"},
	{"posix-shm", posix_shm, "POSIX shared memory (shm_open) under its name"},
	{"hugetlb", hugetlb, "huge pages (MAP_HUGETLB), private and shared"},
	{"dev-zero", dev_zero, "mappings of /dev/zero, private and shared"},
	{"private-file", private_file,
	 "private file mappings: written pages, the others from the file"},
	{"shared-file", shared_file, "shared file mappings: what is written reaches the file"},
	{"read-only-file", read_only_shared, "shared mappings of files opened for reading only"},
	{"deleted-file", deleted_file,
	 "mapped files that were deleted, with their content, shared as before"},
	{"renamed-file", renamed_file, "mapped files that were renamed"},
	{"beyond-the-end", beyond_the_end, "mappings beyond the end of their file: SIGBUS there"},
};

int main(int argc, char **argv)
{
	return work_main(argc, argv, works, WORK_COUNT(works));
}

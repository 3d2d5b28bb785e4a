/*
 * ghostfiles: keeps files without a name in step with its memory, until it is
 * ended. Prints the addresses of the record below and of the mapped half of the
 * memfd, and "ready".
 *
 * The steps of a round are always taken in the same order, so that at any
 * instant  begin >= written >= memfd >= its mapped half >= mapped >= end >= begin - 1.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
	FD_WRITTEN = 20, /* by pwrite(2) */
	FD_MEMFD = 21, /* by pwrite(2); its second half is mapped and written there */
	FD_MAPPED = 22, /* through a shared mapping */
	FD_STILL = 23, /* 3 MiB that do not change */
	FD_SPARSE = 24, /* 1 GiB, with a page at the end */
	FD_LARGE = 25, /* 2 MiB more than the limit of the test, 8M */
	HALF = 65536,
};

static struct {
	volatile uint64_t begin, end;
} record;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int unlinked_file(int number, const char *name)
{
	int fd = open(name, O_RDWR | O_CREAT | O_EXCL, 0600);

	if (fd < 0 || unlink(name) < 0 || dup2(fd, number) < 0)
		fail(name);
	close(fd);
	return number;
}

static void fill(int fd, size_t bytes)
{
	uint32_t buf[1024], x = 1;

	for (size_t at = 0; at < bytes; at += sizeof(buf)) {
		for (size_t i = 0; i < 1024; i++)
			buf[i] = x = x * 1664525 + 1013904223;
		if (pwrite(fd, buf, sizeof(buf), (off_t)at) != (ssize_t)sizeof(buf))
			fail("pwrite");
	}
}

int main(void)
{
	unlinked_file(FD_WRITTEN, "written");
	unlinked_file(FD_MAPPED, "mapped");
	fill(unlinked_file(FD_STILL, "still"), 3 << 20);
	fill(unlinked_file(FD_LARGE, "large"), 10 << 20);
	unlinked_file(FD_SPARSE, "sparse");
	int memfd = memfd_create("lockstep", MFD_ALLOW_SEALING);

	if (memfd < 0 || dup2(memfd, FD_MEMFD) < 0 || ftruncate(FD_MEMFD, 2 * HALF) < 0 ||
	    ftruncate(FD_MAPPED, 4096) < 0 || ftruncate(FD_SPARSE, 1 << 30) < 0 ||
	    pwrite(FD_SPARSE, "the end", 7, (1 << 30) - 7) != 7)
		fail("files");
	close(memfd);
	volatile uint64_t *half =
		mmap(NULL, HALF, PROT_READ | PROT_WRITE, MAP_SHARED, FD_MEMFD, HALF);
	volatile uint64_t *mapped =
		mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, FD_MAPPED, 0);
	if (half == MAP_FAILED || mapped == MAP_FAILED)
		fail("mmap");
	printf("%p %p\nready\n", (void *)&record, (void *)half);
	fflush(stdout);
	for (uint64_t n = 1;; n++) {
		record.begin = n;
		if (pwrite(FD_WRITTEN, &n, sizeof(n), 0) != (ssize_t)sizeof(n) ||
		    pwrite(FD_MEMFD, &n, sizeof(n), 8) != (ssize_t)sizeof(n))
			fail("pwrite");
		*half = n;
		*mapped = n;
		record.end = n;
	}
}

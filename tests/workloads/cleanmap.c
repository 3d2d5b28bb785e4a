/*
 * cleanmap FILE BYTES [guard]: a private mapping of a file for reading.
 *
 * SIGUSR1: is writable for a moment, in which its second page is written to. SIGUSR2: gives that
 * page up again. With "guard" there is a guard marker in its fifth page.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

#define PAGE 4096

static void fail(const char *what)
{
	fprintf(stderr, "cleanmap: cannot %s: %s\n", what, strerror(errno));
	exit(1);
}

int main(int argc, char **argv)
{
	if (argc < 3)
		return 2;
	size_t len = strtoul(argv[2], NULL, 10);
	int fd = open(argv[1], O_RDWR | O_CREAT, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)len) < 0)
		fail("make the file");
	volatile unsigned char *p = mmap(NULL, len, PROT_READ, MAP_PRIVATE, fd, 0);
	if (p == MAP_FAILED)
		fail("map the file");
	for (size_t i = 0; i < len; i += PAGE)
		(void)p[i];
	if (argc > 3 && madvise((void *)(p + 4 * PAGE), PAGE, MADV_GUARD_INSTALL) < 0) {
		printf("ready 0\n");
		return 0;
	}

	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_BLOCK, &set, NULL);
	printf("ready %p\n", (void *)(p + PAGE));
	fflush(stdout);
	for (;;) {
		int sig;

		if (sigwait(&set, &sig))
			continue;
		if (sig == SIGUSR1) {
			if (mprotect((void *)p, len, PROT_READ | PROT_WRITE) < 0)
				fail("write");
			p[PAGE] = 9;
			if (mprotect((void *)p, len, PROT_READ) < 0)
				fail("protect the mapping");
			printf("written\n");
		} else {
			if (madvise((void *)(p + PAGE), PAGE, MADV_DONTNEED) < 0)
				fail("give the page up");
			printf("given up\n");
		}
		fflush(stdout);
	}
}

/*
 * The process of the golden images: what it holds is known from here, and from golden.sh.
 *
 *	0x10000000  eight pages; each begins with a line that names it, 3 is zero
 *
 * A second thread, a pipe with a line in it, a file in /dev. It prints a line for each of its two
 * states and goes on when it reads one.
 */
#include <err.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
	NR_PAGES = 8,
	PAGE = 4096
};

static void fill(unsigned char *p, unsigned page, const char *state)
{
	unsigned x = page * 2654435761u + 1;

	for (size_t i = 0; i < PAGE; i++) {
		x = x * 1103515245 + 12345;
		p[i] = i % 8 ? (unsigned char)page : (unsigned char)(x >> 16);
	}
	memset(p, 0, 64);
	snprintf((char *)p, 64, "page %u, %s\n", page, state);
}

static void *idle(void *arg)
{
	pause();
	return arg;
}

int main(void)
{
	unsigned char *p = mmap((void *)0x10000000, NR_PAGES * PAGE, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	pthread_t tid;
	int fds[2];
	char c;

	if (p == MAP_FAILED || pipe(fds) < 0 || write(fds[1], "in the pipe\n", 12) != 12 ||
	    pthread_create(&tid, NULL, idle, NULL))
		err(1, "cannot begin");
	for (unsigned i = 0; i < NR_PAGES; i++)
		if (i != 3)
			fill(p + (size_t)i * PAGE, i, "first state");
	(void)!write(1, "first\n", 6);
	if (read(0, &c, 1) != 1)
		return 1;
	fill(p + PAGE, 1, "second state");
	memset(p + 6 * PAGE, 0, PAGE);
	(void)!write(1, "second\n", 7);
	(void)!read(0, &c, 1);
	return 0;
}

/*
 * A process whose memory changes when it is told to, by so much.
 *
 *	pagechange BYTES
 *
 * SIGUSR1: rewrites that many of 100000 of its pages, spread evenly, as the
 * file "share" in its directory says, with new bytes that compress to some
 * 60%. Then, and at SIGUSR2: replaces the file "digest" there by a checksum
 * of its memory. Prints "ready" once its memory is filled.
 */
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
	PAGE = 4096,
	WHOLE = 100000
};

static uint64_t state = 1;

static uint64_t random64(void)
{
	uint64_t x = state += 0x9e3779b97f4a7c15ull;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

/* Records: a number, a counter, a pointer. */
static void fill(char *page)
{
	for (size_t at = 0; at < PAGE; at += 32) {
		const uint64_t r[4] = {random64(), state & 255, at,
				       0x7f0000000000 + (random64() & 0xfffff0)};

		memcpy(page + at, r, sizeof(r));
	}
}

static void change(char *memory, size_t pages)
{
	static size_t shift;
	unsigned long share = 0;
	FILE *f = fopen("share", "r");

	if (!f || fscanf(f, "%lu", &share) != 1 || share > WHOLE) {
		fprintf(stderr, "pagechange: cannot read 'share'\n");
		exit(1);
	}
	fclose(f);
	/* Other ones every time. */
	shift = (shift + 37) % pages;
	for (size_t i = 0; i < pages; i++)
		if ((i + 1) * share / WHOLE != i * share / WHOLE)
			fill(memory + (i + shift) % pages * PAGE);
}

static void write_digest(const char *memory, size_t len)
{
	uint64_t h = 0xcbf29ce484222325ull;
	FILE *f;

	for (size_t i = 0; i < len; i += 8) {
		uint64_t x;

		memcpy(&x, memory + i, sizeof(x));
		h = (h ^ x) * 0x100000001b3ull;
		h ^= h >> 29;
	}
	f = fopen("digest.new", "w");
	if (!f || fprintf(f, "%016llx\n", (unsigned long long)h) < 0 || fclose(f) ||
	    rename("digest.new", "digest") < 0) {
		fprintf(stderr, "pagechange: cannot write 'digest': %s\n", strerror(errno));
		exit(1);
	}
}

int main(int argc, char **argv)
{
	size_t len = argc == 2 ? strtoull(argv[1], NULL, 0) / PAGE * PAGE : 0;
	sigset_t set;
	char *memory;

	if (!len) {
		fprintf(stderr, "usage: pagechange BYTES\n");
		return 2;
	}
	memory = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED) {
		fprintf(stderr, "pagechange: cannot map memory: %s\n", strerror(errno));
		return 1;
	}
	for (size_t at = 0; at < len; at += PAGE)
		fill(memory + at);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_BLOCK, &set, NULL);
	printf("ready\n");
	fflush(stdout);
	for (;;) {
		int sig;

		if (sigwait(&set, &sig) != 0)
			continue;
		if (sig == SIGUSR1)
			change(memory, len / PAGE);
		write_digest(memory, len);
	}
}

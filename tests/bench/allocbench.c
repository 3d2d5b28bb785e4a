/*
 * allocbench KIND COUNT: so many rounds of what a program does that allocates
 * much, and what one took, in nanoseconds. KIND: malloc (sizes of all kinds,
 * those included that malloc maps), munmap, madvise.
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/util.h"

enum {
	LIVE = 1024,
	PAGE = 4096,
	PAGES = 4,
};

static uint64_t state = 1;

static uint64_t draw(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static int by_malloc(uint64_t n)
{
	static char *live[LIVE];

	for (uint64_t i = 0; i < n; i++) {
		char **p = &live[draw() % LIVE];
		size_t size = (size_t)16 << draw() % 15;

		free(*p);
		*p = malloc(size);
		if (!*p)
			return -ENOMEM;
		**p = 'x';
	}
	return 0;
}

static int by_munmap(uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		char *p = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (p == MAP_FAILED)
			return -errno;
		*p = 'x';
		if (munmap(p, PAGES * PAGE))
			return -errno;
	}
	return 0;
}

static int by_madvise(uint64_t n)
{
	char *p = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		       0);

	if (p == MAP_FAILED)
		return -errno;
	for (uint64_t i = 0; i < n; i++) {
		*p = 'x';
		if (madvise(p, PAGES * PAGE, MADV_DONTNEED))
			return -errno;
	}
	return 0;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int (*fn)(uint64_t n);
	} kinds[] = {{"malloc", by_malloc}, {"munmap", by_munmap}, {"madvise", by_madvise}};
	uint64_t n = argc == 3 ? strtoull(argv[2], NULL, 10) : 0;

	for (size_t i = 0; n && i < ARRAY_SIZE(kinds); i++) {
		if (strcmp(argv[1], kinds[i].name) != 0)
			continue;
		uint64_t start = now_ns();
		int r = kinds[i].fn(n);

		if (r < 0) {
			fprintf(stderr, "allocbench: %s\n", strerror(-r));
			return 1;
		}
		printf("%.2f\n", (double)(now_ns() - start) / (double)n);
		return 0;
	}
	fprintf(stderr, "usage: allocbench malloc|munmap|madvise COUNT\n");
	return 2;
}

/*
 * What fresh memory costs: writes a byte to each page of BYTES and prints the
 * nanoseconds that took.
 *
 *	freshmem BYTES
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "common/util.h"

int main(int argc, char **argv)
{
	size_t len = argc == 2 ? strtoull(argv[1], NULL, 0) : 0;

	if (!len) {
		fprintf(stderr, "usage: freshmem BYTES\n");
		return 2;
	}
	volatile char *p =
		mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED) {
		perror("freshmem");
		return 1;
	}
	uint64_t from = now_ns();
	for (size_t at = 0; at < len; at += 4096)
		p[at] = 1;
	printf("%llu\n", (unsigned long long)(now_ns() - from));
	return 0;
}

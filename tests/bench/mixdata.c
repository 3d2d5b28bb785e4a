/*
 * An idle process with memory as programs have it: text, records with
 * pointers and counters, noise, zeros, in runs of 64 KiB.
 *
 *	mixdata BYTES [FILE]     sleeps; writes the same bytes to FILE first
 *
 * Prints "ready" when the memory is filled (and FILE is written).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
	RUN = 65536
};

static uint64_t state = 1;

static uint64_t random64(void)
{
	uint64_t x = state += 0x9e3779b97f4a7c15ull;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

static void fill_text(char *p)
{
	static const char *const words[] = {
		"the ",	 "memory ",	"of ",	   "a ",	"process ", "is ",
		"user:", "session:",	"\"id\":", "\"name\":", "status ",  "{",
		"}, ",	 "2026-11-22T", "value ",  "error "};

	for (size_t at = 0; at < RUN;) {
		uint64_t r = random64();
		char number[16];
		const char *w = words[r % 16];
		size_t n;

		if (r >> 8 & 1) {
			snprintf(number, sizeof(number), "%u ", (unsigned)(r >> 16) % 100000);
			w = number;
		}
		n = strlen(w) < RUN - at ? strlen(w) : RUN - at;
		memcpy(p + at, w, n);
		at += n;
	}
}

struct record {
	uint64_t next, key;
	uint32_t hash, refs, flags, len;
	char name[32];
};

static void fill_records(char *p, uint64_t base)
{
	struct record *r = (struct record *)p;

	for (size_t i = 0; i < RUN / sizeof(*r); i++) {
		uint64_t x = random64();

		memset(&r[i], 0, sizeof(r[i]));
		r[i].next = base + x % (1u << 30) / 64 * 64;
		r[i].key = x >> 20;
		r[i].hash = (uint32_t)x;
		r[i].refs = 1;
		r[i].flags = (uint32_t)(x >> 60);
		r[i].len = (uint32_t)snprintf(r[i].name, sizeof(r[i].name), "key:%u",
					      (unsigned)(x >> 32) % 1000000);
	}
}

static void fill(char *p, size_t len)
{
	for (size_t at = 0; at + RUN <= len; at += RUN) {
		unsigned kind = (unsigned)(random64() % 100);

		if (kind < 40)
			fill_text(p + at);
		else if (kind < 65)
			fill_records(p + at, 0x7f0000000000);
		else if (kind < 85)
			for (size_t i = 0; i < RUN / 8; i++)
				((uint64_t *)(p + at))[i] = random64();
		else
			memset(p + at, 0, RUN);
	}
}

int main(int argc, char **argv)
{
	size_t len = argc > 1 ? strtoull(argv[1], NULL, 0) / RUN * RUN : 0;
	char *p;

	if (!len || argc > 3) {
		fprintf(stderr, "usage: mixdata BYTES [FILE]\n");
		return 2;
	}
	p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED) {
		fprintf(stderr, "mixdata: cannot map memory: %s\n", strerror(errno));
		return 1;
	}
	fill(p, len);
	if (argc == 3) {
		int fd = open(argv[2], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

		for (size_t at = 0; at < len;) {
			ssize_t n = write(fd, p + at, len - at);

			if (n < 0) {
				fprintf(stderr, "mixdata: cannot write '%s': %s\n", argv[2],
					strerror(errno));
				return 1;
			}
			at += (size_t)n;
		}
		close(fd);
	}
	printf("ready\n");
	fflush(stdout);
	for (;;)
		pause();
}

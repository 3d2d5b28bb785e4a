/*
 * Damages an image in many ways, one byte or one truncation at a time, and
 * expects that verify finds it or that it makes no difference to what a
 * reader returns; and that no reader returns anything else than before.
 *
 *	flipcheck IMAGE NR_FLIPS NR_TRUNCATIONS [SEED]
 *
 * Exit 0: held every time; 1: not (each case is printed); 2: could not look.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "uffd-snap.h"

static uint64_t seed;

static uint64_t random64(void)
{
	uint64_t x = seed += 0x9e3779b97f4a7c15ull;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

/* Everything that a reader returns, as one number. Negative errno when it
 * returns an error instead. */
static int digest(struct usnap_image *img, uint64_t *ret)
{
	static unsigned char buf[1 << 18];
	XXH3_state_t *s = XXH3_createState();
	const char *name;
	uint64_t at = 0, start, len;
	size_t nr;
	int r = 0;

	XXH3_64bits_reset(s);
	for (size_t i = 0; !r && (name = usnap_image_member_name(img, i)); i++) {
		const char *bytes;
		size_t size;

		XXH3_64bits_update(s, name, strlen(name));
		if (!strncmp(name, "pages/", 6) || !strcmp(name, "index.zst"))
			continue;
		r = usnap_image_get_member(img, name, &bytes, &size);
		if (!r)
			XXH3_64bits_update(s, bytes, size);
	}
	if (!r)
		r = usnap_image_get_nr_regions(img, &nr);
	for (size_t i = 0; r >= 0 && i < nr; i++) {
		struct usnap_region reg;

		r = usnap_image_get_region(img, i, &reg, sizeof(reg));
		if (r < 0)
			break;
		XXH3_64bits_update(s, &reg.start, 16);
		XXH3_64bits_update(s, &reg.prot, sizeof(reg.prot));
		XXH3_64bits_update(s, reg.path, strlen(reg.path));
	}
	while (r >= 0 && (r = usnap_image_next_run(img, at, &start, &len)) > 0) {
		for (at = start; r >= 0 && at < start + len; at += sizeof(buf)) {
			size_t n = start + len - at < sizeof(buf) ? start + len - at : sizeof(buf);

			r = usnap_image_read(img, at, buf, n);
			XXH3_64bits_update(s, &at, 8);
			XXH3_64bits_update(s, buf, n);
		}
		at = start + len;
	}
	*ret = XXH3_64bits_digest(s);
	XXH3_freeState(s);
	return r < 0 ? r : 0;
}

struct outcome {
	bool found; /* by open or verify */
	bool read; /* the reader returned everything */
	uint64_t digest;
	char error[256];
};

static void look(int fd, struct outcome *o)
{
	struct usnap_verify_options options = {.size = sizeof(options), .nr_threads = 1};
	struct usnap_image *img = usnap_image_new();

	memset(o, 0, sizeof(*o));
	if (!img)
		exit(2);
	if (usnap_image_open_fd(img, fd, NULL) < 0) {
		o->found = true;
	} else {
		o->read = digest(img, &o->digest) == 0;
		o->found = usnap_image_verify(img, &options) < 0;
	}
	snprintf(o->error, sizeof(o->error), "%s", usnap_image_error(img));
	usnap_image_free(img);
}

static unsigned long nr_found, nr_same, nr_wrong, nr_silent;

static void judge(const char *what, uint64_t at, const struct outcome *o, uint64_t right)
{
	if (o->read && o->digest != right) {
		printf("%s at %" PRIu64 ": the reader returned something else\n", what, at);
		nr_wrong++;
	} else if (o->found && !o->error[0]) {
		printf("%s at %" PRIu64 ": found, but nothing said\n", what, at);
		nr_silent++;
	} else if (o->found) {
		nr_found++;
	} else if (o->read) {
		nr_same++;
	} else {
		printf("%s at %" PRIu64 ": verify is content, but the reader is not: %s\n", what,
		       at, o->error);
		nr_wrong++;
	}
}

int main(int argc, char **argv)
{
	unsigned long flips = argc > 3 ? strtoul(argv[2], NULL, 0) : 0;
	unsigned long cuts = argc > 3 ? strtoul(argv[3], NULL, 0) : 0;
	struct outcome good, o;
	unsigned char *file;
	struct stat st;
	int in, fd;

	if (argc < 4) {
		fprintf(stderr, "usage: flipcheck IMAGE NR_FLIPS NR_TRUNCATIONS [SEED]\n");
		return 2;
	}
	seed = argc > 4 ? strtoull(argv[4], NULL, 0) : 1;
	in = open(argv[1], O_RDONLY | O_CLOEXEC);
	fd = memfd_create("image", MFD_CLOEXEC);
	if (in < 0 || fd < 0 || fstat(in, &st) || ftruncate(fd, st.st_size)) {
		fprintf(stderr, "flipcheck: cannot read '%s': %s\n", argv[1], strerror(errno));
		return 2;
	}
	file = malloc((size_t)st.st_size);
	if (!file || pread(in, file, (size_t)st.st_size, 0) != st.st_size ||
	    pwrite(fd, file, (size_t)st.st_size, 0) != st.st_size)
		return 2;
	look(fd, &good);
	if (good.found || !good.read) {
		fprintf(stderr, "flipcheck: '%s' is not sound: %s\n", argv[1], good.error);
		return 2;
	}
	for (unsigned long i = 0; i < flips; i++) {
		/* Half of them near the ends, where the members are small. */
		uint64_t span = (uint64_t)st.st_size, edge = span < 131072 ? span : 131072;
		uint64_t at = i % 2   ? random64() % span
			      : i % 4 ? random64() % edge
				      : span - 1 - random64() % edge;
		unsigned char c = file[at] ^ (unsigned char)(1 + random64() % 255);

		if (pwrite(fd, &c, 1, (off_t)at) != 1)
			return 2;
		look(fd, &o);
		judge("flip", at, &o, good.digest);
		if (pwrite(fd, &file[at], 1, (off_t)at) != 1)
			return 2;
	}
	printf("flips: %lu found, %lu without effect\n", nr_found, nr_same);
	nr_found = nr_same = 0;
	for (unsigned long i = 0; i < cuts; i++) {
		uint64_t keep = i < 1024 ? (uint64_t)st.st_size - 1 - i * 37 % (uint64_t)st.st_size
					 : random64() % (uint64_t)st.st_size;

		if (ftruncate(fd, (off_t)keep))
			return 2;
		look(fd, &o);
		judge("truncation", keep, &o, good.digest);
		if (pwrite(fd, file + keep, (size_t)(st.st_size - (off_t)keep), (off_t)keep) !=
		    st.st_size - (off_t)keep)
			return 2;
	}
	printf("truncations: %lu found, %lu without effect\n", nr_found, nr_same);
	printf("wrong: %lu\n", nr_wrong + nr_silent);
	return nr_wrong + nr_silent ? 1 : 0;
}

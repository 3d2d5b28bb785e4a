/*
 * What uffd-snap.h promises to programs with threads: handles are independent of each other, also
 * those of the same file and of the same chain, and a handle can go from one thread to another.
 *
 * Threads read at random through handles of their own and through some that they hand around, and
 * compare what they get with what the images were made from.
 */
#include <errno.h>

#include "../unit/chainfixture.h"
#include "stress.h"

enum {
	NR_IMAGES = 20, /* with more ancestors than stay open in a handle */
	NR_THREADS = 4,
	NR_HANDED = 2,
	NR_STEPS = 60
};

/* Whoever holds the lock has the handle. */
static struct handed {
	pthread_mutex_t lock;
	struct usnap_image *img;
	unsigned generation;
} handed[NR_HANDED];

static int image_fd[NR_IMAGES + 1];

static void name_of(unsigned generation, char name[32])
{
	snprintf(name, 32, "g%u.usnap", generation);
}

static struct usnap_image *open_one(unsigned generation, bool by_fd)
{
	struct usnap_image *img = usnap_image_new();
	char name[32];
	int r;

	name_of(generation, name);
	r = by_fd ? usnap_image_open_fd(img, image_fd[generation], name)
		  : usnap_image_open(img, name);
	/* A descriptor has no directory. */
	if (r == 0 && by_fd)
		r = usnap_image_add_ancestors(img, ".");
	if (r < 0)
		die("%s", usnap_image_error(img));
	return img;
}

static void read_pages(struct usnap_image *img, unsigned generation, uint64_t *chance)
{
	unsigned char want[5 * PAGE], got[4 * PAGE];
	unsigned first = (unsigned)random_below(chance, CHAIN_PAGES - 4);
	size_t from = random_below(chance, PAGE), len = 1 + random_below(chance, sizeof(got));

	for (unsigned i = 0; i < 5; i++)
		chain_page(generation, first + i, want + i * PAGE);
	if (usnap_image_read(img, HEAP + first * PAGE + from, got, len) < 0)
		die("%s", usnap_image_error(img));
	if (memcmp(got, want + from, len))
		die("wrong bytes of generation %u at page %u", generation, first);
}

static void read_runs(struct usnap_image *img, unsigned generation)
{
	unsigned char page[PAGE], hash[16];
	uint64_t at = 0, start, len;
	unsigned nr = 0, want = 0;
	int r;

	for (unsigned i = 0; i < CHAIN_PAGES; i++)
		want += chain_page(generation, i, page);
	for (; (r = usnap_image_next_run(img, at, &start, &len)) > 0; at = start + len) {
		nr += (unsigned)(len / PAGE);
		if (usnap_image_page_hash(img, start, hash) != 1)
			die("no hash of a stored page");
	}
	if (r < 0 || nr != want)
		die("%u stored pages instead of %u: %s", nr, want, usnap_image_error(img));
}

static void read_rest(struct usnap_image *img, unsigned generation)
{
	struct usnap_region region;
	struct usnap_info info;
	const void *notes;
	const char *text;
	size_t nr, len;
	char id[33];

	chain_id(generation, id);
	if (usnap_image_get_info(img, &info, sizeof(info)) < 0 || strcmp(info.id, id) ||
	    usnap_image_find_region(img, HEAP + PAGE, &nr) != 1 ||
	    usnap_image_get_region(img, nr, &region, sizeof(region)) < 0 || region.start != HEAP ||
	    strcmp(region.path, "[heap]") || usnap_image_get_notes(img, 1, &notes, &len) < 0 ||
	    memcmp(notes, fixture_notes, sizeof(fixture_notes) - 1) ||
	    usnap_image_get_member(img, "process.json", &text, &len) < 0 ||
	    strcmp(text, fixture_process))
		die("not what the image was made from: %s", usnap_image_error(img));
	if (usnap_image_get_nr_ancestors(img, &nr) < 0 || nr >= NR_IMAGES)
		die("%zu ancestors: %s", nr, usnap_image_error(img));
}

/* Each handle has a failure of its own. */
static void fail_to_read(struct usnap_image *img, uint64_t *chance)
{
	uint64_t addr = 0x1000 * (1 + random_below(chance, 1000));
	char byte, where[32];

	snprintf(where, sizeof(where), "0x%llx", (unsigned long long)addr);
	if (usnap_image_read(img, addr, &byte, 1) != -EFAULT ||
	    !strstr(usnap_image_error(img), where))
		die("no word of %s: %s", where, usnap_image_error(img));
}

static void verify(struct usnap_image *img)
{
	struct usnap_verify_options o = {.size = sizeof(o), .nr_threads = 3};

	if (usnap_image_verify(img, &o) < 0)
		die("%s", usnap_image_error(img));
}

static void step(struct usnap_image *img, unsigned generation, uint64_t *chance)
{
	unsigned what = (unsigned)random_below(chance, 64);

	if (what == 0)
		verify(img);
	else if (what < 4)
		read_runs(img, generation);
	else if (what < 8)
		read_rest(img, generation);
	else if (what < 12)
		fail_to_read(img, chance);
	else
		read_pages(img, generation, chance);
}

static void *reader_thread(void *arg)
{
	uint64_t *chance = arg;
	unsigned generation = 1 + (unsigned)random_below(chance, NR_IMAGES);
	struct usnap_image *img = open_one(generation, random_below(chance, 2));

	for (unsigned i = 0; i < NR_STEPS; i++) {
		struct handed *h = &handed[random_below(chance, NR_HANDED)];

		if (random_below(chance, 2)) {
			step(img, generation, chance);
			continue;
		}
		pthread_mutex_lock(&h->lock);
		if (!h->img || random_below(chance, 16) == 0) {
			usnap_image_free(h->img);
			h->generation = 1 + (unsigned)random_below(chance, NR_IMAGES);
			h->img = open_one(h->generation, random_below(chance, 2));
		}
		step(h->img, h->generation, chance);
		pthread_mutex_unlock(&h->lock);
	}
	usnap_image_free(img);
	return NULL;
}

static void make_chain(void)
{
	char name[32], parent[32];

	for (unsigned g = 1; g <= NR_IMAGES; g++) {
		struct usnap_err err = {0};

		name_of(g, name);
		name_of(g - 1, parent);
		if (chain_write(name, g, g > 1 ? parent : NULL, NULL, &err) < 0)
			die("%s", err.text);
		image_fd[g] = open(name, O_RDONLY | O_CLOEXEC);
	}
}

int main(int argc, char **argv)
{
	const char *tmp = getenv("TMPDIR");
	char dir[4096], name[32];
	uint64_t chance = stress_begin(argc, argv);

	snprintf(dir, sizeof(dir), "%s/stress_reader.XXXXXX", tmp ? tmp : "/tmp");
	if (!mkdtemp(dir) || chdir(dir) < 0)
		die("cannot make a directory");
	make_chain();
	for (unsigned i = 0; i < NR_HANDED; i++)
		pthread_mutex_init(&handed[i].lock, NULL);
	while (stress_round("reading")) {
		uint64_t chances[NR_THREADS];
		pthread_t tid[NR_THREADS];

		for (unsigned i = 0; i < NR_THREADS; i++) {
			chances[i] = random64(&chance);
			tid[i] = stress_thread(reader_thread, &chances[i]);
		}
		for (unsigned i = 0; i < NR_THREADS; i++)
			pthread_join(tid[i], NULL);
	}
	for (unsigned i = 0; i < NR_HANDED; i++)
		usnap_image_free(handed[i].img);
	for (unsigned g = 1; g <= NR_IMAGES; g++) {
		name_of(g, name);
		unlink(name);
	}
	rmdir(dir);
	return 0;
}

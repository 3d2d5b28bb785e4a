/*
 * Checks the memory of a cutwork process for one consistent instant (cut.h):
 *
 *	cutcheck IMAGE HEADER
 *	cutcheck --pid PID HEADER     the process itself; right only when it is stopped
 *	cutcheck --stale PID HEADER   stopped, but some pages as they were before:
 *	                              an image that must be found wrong
 *
 * HEADER is the address that cutwork prints. Exit 0: consistent; 1: not;
 * 2: could not look.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "../workloads/cutverify.h"
#include "image/image.h"
#include "uffd-snap.h"

/* The memory that an image shows, laid out beside ours: slots are looked at in
 * the order of their numbers, and pages lie in frames in that of their faults. */
struct mirror {
	struct usnap_image *img;
	size_t nr;
	struct usnap_region *regions;
	unsigned char **bytes; /* of each region; NULL: not in the image */
};

static int read_image(void *arg, uint64_t addr, void *buf, size_t len)
{
	struct mirror *m = arg;
	size_t nr;

	if (usnap_image_find_region(m->img, addr, &nr) != 1 || !m->bytes[nr] ||
	    len > m->regions[nr].end - addr) {
		int r = usnap_image_read(m->img, addr, buf, len);

		if (r < 0)
			printf("reader: %s\n", usnap_image_error(m->img));
		return r < 0 ? r : 0;
	}
	memcpy(buf, m->bytes[nr] + (addr - m->regions[nr].start), len);
	return 0;
}

static void mirror_regions(struct mirror *m)
{
	if (usnap_image_get_nr_regions(m->img, &m->nr) < 0)
		errx(2, "%s", usnap_image_error(m->img));
	m->regions = calloc(m->nr, sizeof(*m->regions));
	m->bytes = calloc(m->nr, sizeof(*m->bytes));
	for (size_t i = 0; i < m->nr; i++) {
		struct usnap_region *g = &m->regions[i];

		if (usnap_image_get_region(m->img, i, g, sizeof(*g)) < 0)
			errx(2, "%s", usnap_image_error(m->img));
		if (g->content != USNAP_CONTENT_IMAGE)
			continue;
		m->bytes[i] = mmap(NULL, g->end - g->start, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (m->bytes[i] == MAP_FAILED)
			err(2, "cannot map %s", g->path);
	}
}

static void place_page(struct mirror *m, uint64_t page, const unsigned char *raw)
{
	uint64_t addr = img_page_addr(m->img, page);
	size_t nr;

	if (usnap_image_find_region(m->img, addr, &nr) == 1 && m->bytes[nr])
		memcpy(m->bytes[nr] + (addr - m->regions[nr].start), raw, CUT_PAGE);
}

/* Frame by frame: each is decoded once. */
static void mirror_pages(struct mirror *m)
{
	struct usnap_image *img = m->img;
	ZSTD_DCtx *dctx = ZSTD_createDCtx();
	unsigned char *raw = malloc(FORMAT_MAX_FRAME_RAW);
	unsigned char *compressed = malloc(ZSTD_COMPRESSBOUND(FORMAT_MAX_FRAME_RAW));

	if (img_load_index(img) < 0)
		errx(2, "%s", usnap_image_error(img));
	/* Chains of the pages of each frame. */
	uint32_t *first = malloc(img->nr_frames * sizeof(*first) + 1);
	uint32_t *next = malloc(img->nr_pages * sizeof(*next) + 1);
	if (!dctx || !raw || !compressed || !first || !next)
		errx(2, "out of memory");
	memset(first, 0xff, img->nr_frames * sizeof(*first));
	for (uint64_t i = 0; i < img->nr_pages; i++) {
		next[i] = first[img_page_frame(img, i)];
		first[img_page_frame(img, i)] = (uint32_t)i;
	}
	for (uint64_t f = 0; f < img->nr_frames; f++) {
		struct img_frame frame;

		img_get_frame(img, f, &frame);
		if (img_pread_frame(img, &frame, compressed, NULL) < 0 ||
		    img_decode(dctx, &frame, compressed, raw))
			errx(2, "frame %" PRIu64 " is damaged", f);
		for (uint32_t i = first[f]; i != UINT32_MAX; i = next[i])
			place_page(m, i, raw + (size_t)img_page_slot(img, i) * CUT_PAGE);
	}
	ZSTD_freeDCtx(dctx);
	free(raw);
	free(compressed);
	free(first);
	free(next);
}

/* A process, and what some of its pages held earlier. */
struct process {
	int fd;
	uint64_t stale_addr;
	unsigned char *stale;
	size_t stale_len;
};

static int read_process(void *arg, uint64_t addr, void *buf, size_t len)
{
	struct process *p = arg;
	ssize_t r = pread(p->fd, buf, len, (off_t)addr);

	if (r < 0)
		return -errno;
	if ((size_t)r != len)
		return -EFAULT;
	/* Where the stale page and what was asked for overlap. */
	for (uint64_t a = p->stale_addr; a < p->stale_addr + p->stale_len; a++)
		if (a >= addr && a < addr + len)
			((unsigned char *)buf)[a - addr] = p->stale[a - p->stale_addr];
	return 0;
}

static void pause_ms(long ms)
{
	struct timespec ts = {ms / 1000, ms % 1000 * 1000000};

	nanosleep(&ts, NULL);
}

/* The last number of the first lane. */
static uint64_t first_count(const struct process *p, const struct cut_header *h)
{
	struct cut_counter c;

	return pread(p->fd, &c, sizeof(c), (off_t)h->pub_counters) == sizeof(c) ? c.n : 0;
}

/* Keeps the first pages of the first lane, until the process has written to each. */
static int take_stale(struct process *p, pid_t pid, uint64_t header)
{
	struct cut_header h;
	uint64_t before;

	if (pread(p->fd, &h, sizeof(h), (off_t)header) != sizeof(h) || h.magic != CUT_MAGIC)
		return -1;
	p->stale_len = 64 * CUT_PAGE;
	p->stale = malloc(p->stale_len);
	p->stale_addr = h.lanes[0].base;
	if (!p->stale ||
	    pread(p->fd, p->stale, p->stale_len, (off_t)p->stale_addr) != (ssize_t)p->stale_len)
		return -1;
	before = first_count(p, &h);
	for (int i = 0; i < 600 && first_count(p, &h) < before + h.lanes[0].nr_slots; i++)
		pause_ms(50);
	if (kill(pid, SIGSTOP))
		return -1;
	pause_ms(50);
	return 0;
}

static uint64_t check_process(const char *arg, uint64_t header, bool stale)
{
	struct process p = {.fd = -1};
	struct cut_mem mem = {read_process, &p};
	pid_t pid = (pid_t)atoi(arg);
	char path[64];
	uint64_t errors;

	snprintf(path, sizeof(path), "/proc/%d/mem", (int)pid);
	p.fd = open(path, O_RDONLY | O_CLOEXEC);
	if (p.fd < 0 || (stale && take_stale(&p, pid, header))) {
		fprintf(stderr, "cutcheck: cannot read '%s': %s\n", path, strerror(errno));
		exit(2);
	}
	errors = cut_verify(&mem, header, stdout, true);
	if (stale)
		kill(pid, SIGCONT);
	free(p.stale);
	close(p.fd);
	return errors;
}

static uint64_t check_image(const char *path, uint64_t header)
{
	struct mirror m = {.img = usnap_image_new()};
	struct cut_mem mem = {read_image, &m};
	struct usnap_info info;

	if (!m.img || usnap_image_open(m.img, path) < 0 ||
	    usnap_image_get_info(m.img, &info, sizeof(info)) < 0)
		errx(2, "%s", usnap_image_error(m.img));
	mirror_regions(&m);
	mirror_pages(&m);
	printf("t0 %" PRIu64 "\n", info.t0_monotonic_ns);
	uint64_t errors = cut_verify(&mem, header, stdout, true);
	for (size_t i = 0; i < m.nr; i++)
		if (m.bytes[i])
			munmap(m.bytes[i], m.regions[i].end - m.regions[i].start);
	free(m.regions);
	free(m.bytes);
	usnap_image_free(m.img);
	return errors;
}

int main(int argc, char **argv)
{
	uint64_t errors;

	if (argc == 4 && (!strcmp(argv[1], "--pid") || !strcmp(argv[1], "--stale"))) {
		errors = check_process(argv[2], strtoull(argv[3], NULL, 0), argv[1][2] == 's');
	} else if (argc == 3) {
		errors = check_image(argv[1], strtoull(argv[2], NULL, 0));
	} else {
		fprintf(stderr, "usage: cutcheck IMAGE HEADER\n"
				"       cutcheck --pid|--stale PID HEADER\n");
		return 2;
	}
	return errors ? 1 : 0;
}

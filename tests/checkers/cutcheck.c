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
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../workloads/cutverify.h"
#include "uffd-snap.h"

static int read_image(void *arg, uint64_t addr, void *buf, size_t len)
{
	int r = usnap_image_read(arg, addr, buf, len);

	if (r < 0)
		printf("reader: %s\n", usnap_image_error(arg));
	return r < 0 ? r : 0;
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

/* Keeps the pages of the first lane of which the process writes one. */
static int take_stale(struct process *p, pid_t pid, uint64_t header)
{
	struct cut_header h;

	if (pread(p->fd, &h, sizeof(h), (off_t)header) != sizeof(h) || h.magic != CUT_MAGIC)
		return -1;
	p->stale_len = 64 * CUT_PAGE;
	p->stale = malloc(p->stale_len);
	p->stale_addr = h.lanes[0].base;
	if (!p->stale ||
	    pread(p->fd, p->stale, p->stale_len, (off_t)p->stale_addr) != (ssize_t)p->stale_len)
		return -1;
	pause_ms(200);
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
	struct usnap_image *img = usnap_image_new();
	struct cut_mem mem = {read_image, img};
	struct usnap_info info;
	uint64_t errors;

	if (!img || usnap_image_open(img, path) < 0 ||
	    usnap_image_get_info(img, &info, sizeof(info)) < 0) {
		fprintf(stderr, "cutcheck: %s\n", usnap_image_error(img));
		exit(2);
	}
	printf("t0 %" PRIu64 "\n", info.t0_monotonic_ns);
	errors = cut_verify(&mem, header, stdout, true);
	usnap_image_free(img);
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

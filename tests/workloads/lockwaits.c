/*
 * lockwaits PID: how long threads of a process, and of its children, wait for
 * locks of the kernel's on what maps an anonymous page or a file. Who walks
 * from pages to mappings holds them, such as a kernel thread that looks for
 * idle memory (DAMON), also while it waits for a processor; who holds
 * mmap_lock meanwhile keeps others waiting. A snapshot takes them, too, where
 * registering splits or joins mappings; it has mmap_lock then, for which a
 * thread of the process waits elsewhere than here. Of a child's wait it could
 * be the reason.
 * Until SIGTERM or until it is gone, then "locks: longest wait N us", with the
 * place; that is up to two looks more than it was. Prints "ready".
 */
#include <dirent.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define NR_TASKS 1024
#define LOOK_NS 40000000

static volatile sig_atomic_t ended;

static struct task {
	long tid;
	unsigned look; /* when it was seen last */
	uint64_t since_ns;
	char place[64], ran[32]; /* ran: does not change while it sleeps */
} tasks[NR_TASKS];
static unsigned look;

static uint64_t longest_ns;
static char longest_place[64] = "nowhere";

static void on_signal(int sig)
{
	ended = 1;
}

static uint64_t clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static bool read_text(long pid, long tid, const char *name, char *buf, size_t size)
{
	char path[96];
	FILE *f;
	size_t n;

	snprintf(path, sizeof(path), "/proc/%ld/task/%ld/%s", pid, tid, name);
	f = fopen(path, "re");
	if (!f)
		return false;
	n = fread(buf, 1, size - 1, f);
	fclose(f);
	buf[n] = '\0';
	return n > 0;
}

/* Where only these locks are waited for. dup_mmap() is none: it also waits for mmap_lock. */
static bool is_lock(const char *place)
{
	static const char *const begin[] = {"anon_vma_",       "__anon_vma_",	"unlink_anon_vmas",
					    "unlink_file_vma", "__mmap_region", "vma_prepare",
					    "vma_link"};

	for (size_t i = 0; i < sizeof(begin) / sizeof(begin[0]); i++)
		if (!strncmp(place, begin[i], strlen(begin[i])))
			return true;
	return false;
}

static void look_at(long pid, long tid)
{
	char stat[1024], place[64] = "", ran[32] = "";
	struct task *t = &tasks[tid % NR_TASKS];
	const char *state;

	if (!read_text(pid, tid, "stat", stat, sizeof(stat)) || !(state = strrchr(stat, ')')) ||
	    strncmp(state, ") D", 3) || !read_text(pid, tid, "wchan", place, sizeof(place)) ||
	    !is_lock(place) || !read_text(pid, tid, "schedstat", ran, sizeof(ran)))
		return;
	ran[strcspn(ran, " ")] = '\0';
	if (t->tid != tid || t->look + 1 != look || strcmp(t->place, place) ||
	    strcmp(t->ran, ran)) {
		t->tid = tid;
		t->since_ns = clock_ns() - LOOK_NS; /* at most */
		snprintf(t->place, sizeof(t->place), "%s", place);
		snprintf(t->ran, sizeof(t->ran), "%s", ran);
	}
	t->look = look;
	uint64_t now = clock_ns() + LOOK_NS;
	if (now - t->since_ns > longest_ns) {
		longest_ns = now - t->since_ns;
		snprintf(longest_place, sizeof(longest_place), "%s", place);
	}
}

int main(int argc, char **argv)
{
	long pid = argc == 2 ? atol(argv[1]) : 0;
	char path[64];

	if (pid <= 0) {
		fprintf(stderr, "usage: lockwaits PID\n");
		return 2;
	}
	signal(SIGTERM, on_signal);
	snprintf(path, sizeof(path), "/proc/%ld/task", pid);
	printf("ready\n");
	fflush(stdout);
	for (look = 1; !ended; look++) {
		DIR *d = opendir(path);
		struct dirent *e;

		if (!d)
			break;
		while ((e = readdir(d))) {
			char children[4096], *p = children;
			long tid = atol(e->d_name), child;

			if (tid <= 0)
				continue;
			look_at(pid, tid);
			if (!read_text(pid, tid, "children", children, sizeof(children)))
				continue;
			while ((child = strtol(p, &p, 10)) > 0)
				look_at(child, child);
		}
		closedir(d);
		nanosleep(&(struct timespec){0, LOOK_NS}, NULL);
	}
	printf("locks: longest wait %" PRIu64 " us (%s)\n", longest_ns / 1000, longest_place);
	return 0;
}

/*
 * heldback N AGENT UFFD-SNAP IMAGE: threads of a child that has the agent give
 * memory back without end. N times a snapshot of it is stopped until all of
 * them wait, some of them to be answered, and killed; then they must go on at
 * once.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/util.h"
#include "process/agent_find.h"
#include "process/target.h"

enum {
	THREADS = 4,
	BLOCKS = 64,
	BLOCK = 64 * 4096,
	HEAP = 64 << 20,
};
#define LIMIT_NS 100000000u
/* They wait when they have done nothing for so long. */
#define STILL_NS 20000000u
/* A snapshot in which they do not come to wait within this does not count. */
#define PATIENCE_NS 2000000000u

struct shared {
	_Atomic uint64_t done[THREADS];
};

static struct shared *shared;

static void fatal(const char *what)
{
	fprintf(stderr, "heldback: cannot %s: %s\n", what, strerror(errno));
	exit(1);
}

static void *map_block(void)
{
	char *p = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		fatal("map memory");
	memset(p, 'x', BLOCK);
	return p;
}

/* ---- the child ----------------------------------------------------------------------------------- */

static void *give_back(void *arg)
{
	const size_t me = (size_t)arg;
	char *blocks[BLOCKS];

	for (unsigned i = 0; i < BLOCKS; i++)
		blocks[i] = map_block();
	for (unsigned i = 0;; i = (i + 1) % BLOCKS) {
		if (munmap(blocks[i], BLOCK))
			fatal("unmap memory");
		atomic_fetch_add(&shared->done[me], 1);
		blocks[i] = map_block();
		usleep(200);
	}
	return NULL;
}

static int child(void)
{
	pthread_t threads[THREADS];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	char *heap = mmap(NULL, HEAP, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (heap == MAP_FAILED)
		fatal("map memory");
	for (size_t i = 0; i < HEAP; i += 8)
		*(uint64_t *)(heap + i) = i * 0x9e3779b97f4a7c15u;
	for (size_t i = 0; i < THREADS; i++)
		if (pthread_create(&threads[i], NULL, give_back, (void *)i))
			fatal("start a thread");
	puts("ready");
	fflush(stdout);
	pthread_join(threads[0], NULL);
	return 0;
}

/* ---- the parent ---------------------------------------------------------------------------------- */

static pid_t start_child(const char *self, const char *agent, int fd)
{
	char number[16];

	snprintf(number, sizeof(number), "%d", fd);
	pid_t pid = fork();
	if (pid == 0) {
		setenv("LD_PRELOAD", agent, 1);
		execl(self, self, "child", number, (char *)NULL);
		_exit(127);
	}
	return pid;
}

static pid_t start_snapshot(const char *command, pid_t pid, const char *image)
{
	char number[16];

	snprintf(number, sizeof(number), "%d", (int)pid);
	pid_t s = fork();
	if (s == 0) {
		execl(command, command, "snapshot", "-q", "--rate", "64M", number, "-o", image,
		      (char *)NULL);
		_exit(127);
	}
	return s;
}

static unsigned nr_waiting(const struct agent_control *block)
{
	unsigned n = 0;

	for (unsigned i = 0; i < AGENT_SLOTS; i++)
		n += block->slots[i].owner && block->slots[i].ack != block->slots[i].request;
	return n;
}

/* What other threads, with nothing to do, have had to wait at most since they were last asked. */
static _Atomic uint64_t longest_ns;

static void *witness(void *arg)
{
	for (uint64_t last = now_ns(), now;; last = now) {
		usleep(1000);
		now = now_ns();
		if (now - last > longest_ns)
			longest_ns = now - last;
	}
	return NULL;
}

/* True when one of them has done something since. */
static bool progress(uint64_t seen[THREADS])
{
	bool some = false;

	for (unsigned i = 0; i < THREADS; i++) {
		uint64_t done = shared->done[i];

		some |= done != seen[i];
		seen[i] = done;
	}
	return some;
}

/* How long it took until all went on; 0: none of them has come to wait for an answer. */
static uint64_t kill_once(const char *command, const char *image, pid_t pid, uint64_t beacon)
{
	struct agent_found a = {0};
	pid_t s = start_snapshot(command, pid, image);
	uint64_t end = now_ns() + PATIENCE_NS, seen[THREADS] = {0}, since;

	while (now_ns() < end && !a.block.active) {
		if (!agent_look(pid, beacon, &a))
			fatal("find the agent");
		usleep(100);
	}
	kill(s, SIGSTOP);
	for (since = now_ns(); now_ns() - since < STILL_NS && now_ns() < end; usleep(1000))
		if (progress(seen))
			since = now_ns();
	unsigned waiting = agent_look(pid, beacon, &a) ? nr_waiting(&a.block) : 0;
	longest_ns = 0;
	since = now_ns();
	kill(s, SIGKILL);
	for (unsigned i = 0; i < THREADS; i++)
		while (shared->done[i] == seen[i] && now_ns() - since < 10 * PATIENCE_NS)
			usleep(100);
	uint64_t took = now_ns() - since;
	waitpid(s, NULL, 0);
	unlink(image);
	return waiting ? took : 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "child") == 0) {
		shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[2]), 0);
		return shared == MAP_FAILED ? 1 : child();
	}
	if (argc != 5) {
		fprintf(stderr, "usage: heldback N AGENT UFFD-SNAP IMAGE\n");
		return 2;
	}
	int fd = memfd_create("heldback", 0);
	if (fd < 0 || ftruncate(fd, 4096))
		fatal("make shared memory");
	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	pid_t pid = start_child("/proc/self/exe", argv[2], fd);
	for (unsigned i = 0; i < THREADS; i++)
		while (!shared->done[i])
			usleep(1000);

	struct target t;
	struct usnap_err err = {0};
	struct maps maps = {0};
	struct agent_found found;
	if (target_open(&t, pid, &err) < 0 || maps_read(t.procfd, &maps) < 0 ||
	    !agent_find(pid, &maps, &found)) {
		fprintf(stderr, "heldback: the child has no agent\n");
		kill(pid, SIGKILL);
		return 1;
	}
	pthread_t tid;
	for (unsigned i = 0; i < THREADS; i++)
		pthread_create(&tid, NULL, witness, NULL);
	uint64_t worst = 0;
	unsigned n = (unsigned)atoi(argv[1]), held = 0, late = 0;
	for (unsigned i = 0; held < n && i < 5 * n; i++) {
		uint64_t took = kill_once(argv[3], argv[4], pid, found.beacon);

		held += took > 0;
		worst = MAX(worst, took);
		/* A machine that stands still proves nothing: the threads of the one that is killed
		 * have to come to their end, the kernel lets those go that waited, and each of them has
		 * its turn. */
		if (took > LIMIT_NS + 4 * longest_ns)
			late++;
	}
	int status = 0;
	bool alive = waitpid(pid, &status, WNOHANG) == 0;
	kill(pid, SIGKILL);
	printf("%u of %u with threads held back, longest until all went on %llu us\n", held, n,
	       (unsigned long long)worst / 1000);
	if (late || held < n || !alive) {
		printf("%u were late, the child is %s\n", late, alive ? "alive" : "dead");
		return 1;
	}
	return 0;
}

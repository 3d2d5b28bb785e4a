/*
 * Processes that a snapshot must refuse or survive: oddproc KIND [ARG]
 *
 *	quiet           sleeps
 *	zombie          has a child that ended and is not waited for; its PID on stdout
 *	uffd            has a userfaultfd of its own with a registered range
 *	exit MS         exits with status 7 after so many milliseconds
 *	exec MS         replaces itself by "oddproc quiet" after so many milliseconds
 *	vfork           one thread waits for a vfork()ed child that sleeps
 *	dead-leader     the first thread has ended, another one lives
 *	setuid UID      sleeps as another user
 *	apart FLAGS     a second thread has left what unshare(FLAGS) says
 *	sharer          a child shares the memory without being a thread; its PID on stdout
 *
 * Prints "ready" when it is what it shall be. Before exec and exit, 32 MiB
 * are filled and written all the time.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what)
{
	fprintf(stderr, "oddproc: cannot %s: %s\n", what, strerror(errno));
	exit(2);
}

static void ready(void)
{
	printf("ready\n");
	fflush(stdout);
}

static void sleep_forever(void)
{
	for (;;)
		pause();
}

static void *map(size_t len)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		die("map memory");
	return p;
}

static void be_zombie(void)
{
	pid_t pid = fork();
	siginfo_t info;

	if (!pid)
		_exit(0);
	if (pid < 0 || waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT))
		die("make a zombie");
	printf("pid %d\n", (int)pid);
}

static void have_uffd(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register reg = {.mode = UFFDIO_REGISTER_MODE_MISSING};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	reg.range.start = (uint64_t)(uintptr_t)map(1 << 20);
	reg.range.len = 1 << 20;
	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &reg))
		die("register memory with a userfaultfd");
}

/* Writes pages here and there until the time has come. */
static void work_for(long ms)
{
	const size_t len = 32 << 20;
	volatile unsigned char *p = map(len);
	struct timespec now, end;
	uint64_t x = 1;

	memset((void *)p, 1, len);
	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += ms / 1000;
	end.tv_nsec += ms % 1000 * 1000000;
	end.tv_sec += end.tv_nsec / 1000000000;
	end.tv_nsec %= 1000000000;
	ready();
	do {
		for (int i = 0; i < 256; i++) {
			x = x * 6364136223846793005ull + 1442695040888963407ull;
			p[(x >> 33) % len]++;
		}
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (now.tv_sec < end.tv_sec ||
		 (now.tv_sec == end.tv_sec && now.tv_nsec < end.tv_nsec));
}

/* The child of vfork() never comes as far as execve: it sleeps. */
static void *held_thread(void *arg)
{
	pid_t pid = vfork();

	if (!pid) {
		prctl(PR_SET_PDEATHSIG, 9);
		for (;;)
			pause();
	}
	return NULL;
}

static void *other_thread(void *arg)
{
	struct timespec ts = {0, 50000000};

	nanosleep(&ts, NULL);
	ready();
	sleep_forever();
	return NULL;
}

static void *apart_thread(void *arg)
{
	if (unshare((int)(intptr_t)arg))
		die("unshare");
	ready();
	sleep_forever();
	return NULL;
}

/* Without libc, whose data is its parent's. */
static int sharing_child(void *arg)
{
	(void)arg;
	syscall(SYS_prctl, PR_SET_PDEATHSIG, 9);
	for (;;)
		syscall(SYS_pause);
	return 0;
}

static void have_sharer(void)
{
	const size_t len = 1 << 16;
	pid_t pid = clone(sharing_child, (char *)map(len) + len, CLONE_VM | SIGCHLD, NULL);

	if (pid < 0)
		die("clone");
	printf("pid %d\n", (int)pid);
}

int main(int argc, char **argv)
{
	const char *kind = argc > 1 ? argv[1] : "";
	long arg = argc > 2 ? strtol(argv[2], NULL, 0) : 0;
	pthread_t t;

	if (!strcmp(kind, "zombie")) {
		be_zombie();
	} else if (!strcmp(kind, "uffd")) {
		have_uffd();
	} else if (!strcmp(kind, "exit")) {
		work_for(arg);
		return 7;
	} else if (!strcmp(kind, "exec")) {
		work_for(arg);
		execl("/proc/self/exe", "oddproc", "quiet", (char *)NULL);
		die("exec");
	} else if (!strcmp(kind, "vfork")) {
		pthread_create(&t, NULL, held_thread, NULL);
		usleep(100000);
	} else if (!strcmp(kind, "dead-leader")) {
		pthread_create(&t, NULL, other_thread, NULL);
		pthread_exit(NULL);
	} else if (!strcmp(kind, "setuid")) {
		if (setgid((gid_t)arg) || setuid((uid_t)arg))
			die("change the user");
	} else if (!strcmp(kind, "apart")) {
		pthread_create(&t, NULL, apart_thread, (void *)(intptr_t)arg);
		sleep_forever();
	} else if (!strcmp(kind, "sharer")) {
		have_sharer();
	} else if (strcmp(kind, "quiet") != 0) {
		fprintf(stderr, "usage: oddproc KIND [ARG]\n");
		return 2;
	}
	ready();
	sleep_forever();
}

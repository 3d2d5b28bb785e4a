/*
 * compatwork MODE: gives memory back in every way there is and says what it
 * found; run with a preloaded library and without, it says the same. Modes:
 *
 *   plain       and nothing else
 *   closeall    after having closed every descriptor above 2
 *   daemon      as a daemon: twice forked, in a session of its own; its words go to FILE
 *   chroot DIR  in DIR, with nothing there
 *   drop UID    as another user
 *   filter      under a seccomp filter of its own that ends it for any call but the few it makes
 *   loop        again and again, until SIGTERM; "ready" after the first time; "loop filter":
 *               under that filter
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB ((size_t)1 << 20)

extern char **environ;

static void must(int ok, const char *what)
{
	if (ok)
		return;
	printf("wrong: %s: %s\n", what, strerror(errno));
	fflush(stdout);
	_exit(1);
}

static char *map(size_t len)
{
	char *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	must(p != MAP_FAILED, "mmap");
	memset(p, 7, len);
	return p;
}

/* Errors, too, are those of the kernel, and errno is kept by what succeeds. */
static void give_back(void)
{
	char *p = map(4 * MIB);

	errno = 77;
	must(madvise(p, MIB, MADV_DONTNEED) == 0 && !p[0] && p[MIB] == 7, "MADV_DONTNEED");
	must(madvise(p + MIB, MIB, MADV_FREE) == 0, "MADV_FREE");
	char *q = mremap(p, 4 * MIB, 2 * MIB, 0);
	must(q == p, "mremap to less");
	q = mremap(p, 2 * MIB, 8 * MIB, MREMAP_MAYMOVE);
	must(q != MAP_FAILED && !q[0], "mremap to more");
	char *fixed = mmap(q, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
			   -1, 0);
	must(fixed == q && !q[0], "mmap over it");
	must(munmap(q, 8 * MIB) == 0 && errno == 77, "munmap");
	must(munmap(q + 1, MIB) < 0 && errno == EINVAL, "munmap of no page");
	must(madvise(q + 1, MIB, MADV_DONTNEED) < 0 && errno == EINVAL, "madvise of no page");
	must(mremap(q, 0, 0, 0) == MAP_FAILED && errno == EINVAL, "mremap to nothing");
	errno = 0;
	char *end = sbrk(0);
	must(sbrk(MIB) == end && sbrk(-(intptr_t)MIB) == end + MIB && sbrk(0) == end, "sbrk");
}

static void allocate(void)
{
	static unsigned char *kept[512];
	uint64_t sum = 0;
	uint32_t r = 1;

	for (int i = 0; i < 4000; i++) {
		r = r * 1103515245 + 12345;
		size_t at = r >> 8 & 511, len = r >> 20 & 511;
		free(kept[at]);
		kept[at] = malloc(len * len + 1);
		must(kept[at] != NULL, "malloc");
		kept[at][0] = (unsigned char)i;
		sum += kept[at][0] * (at + 1);
	}
	for (int i = 0; i < 512; i++) {
		free(kept[i]);
		kept[i] = NULL;
	}
	printf("allocations %llu\n", (unsigned long long)sum);
}

static void *thread(void *arg)
{
	char *p = map(MIB);
	char *block = malloc(200000);

	memset(block, 1, 200000);
	free(block);
	munmap(p, MIB);
	return arg;
}

static void make_threads(void)
{
	pthread_t t[8];
	uintptr_t sum = 0;

	for (uintptr_t i = 0; i < 8; i++)
		must(pthread_create(&t[i], NULL, thread, (void *)i) == 0, "pthread_create");
	for (int i = 0; i < 8; i++) {
		void *r;

		must(pthread_join(t[i], &r) == 0, "pthread_join");
		sum += (uintptr_t)r;
	}
	printf("threads %lu\n", (unsigned long)sum);
}

static char *page;

static void on_signal(int sig)
{
	madvise(page, 4096, MADV_DONTNEED);
}

static void take_signals(void)
{
	page = map(4096);
	signal(SIGUSR1, on_signal);
	for (int i = 0; i < 100; i++)
		raise(SIGUSR1);
	must(!page[0], "madvise in a handler");
	munmap(page, 4096);
	printf("signals 100\n");
}

/* Programs come with what the parent's library left in the environment. */
static void make_children(void)
{
	int status = 0;
	pid_t pid = fork();

	if (pid == 0) {
		give_back();
		_exit(3);
	}
	must(pid > 0 && waitpid(pid, &status, 0) == pid, "fork");
	must(WIFEXITED(status) && WEXITSTATUS(status) == 3, "the child of fork()");
	char *args[] = {"sh", "-c", "exit 4", NULL};
	must(posix_spawn(&pid, "/bin/sh", NULL, NULL, args, environ) == 0, "posix_spawn");
	must(waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 4, "the spawned child");
	pid = vfork();
	if (pid == 0)
		execl("/bin/sh", "sh", "-c", "exit 5", (char *)NULL);
	must(waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 5, "the child of vfork()");
	FILE *f = popen("echo a word; exit 6", "r");
	char line[64] = "";
	must(f && fgets(line, sizeof(line), f), "popen");
	status = pclose(f);
	printf("children %s", line);
	must(WEXITSTATUS(status) == 6, "pclose");
}

static void show_descriptors(void)
{
	DIR *d = opendir("/proc/self/fd");
	const struct dirent *e;
	int n = 0;

	must(d != NULL, "opendir");
	while ((e = readdir(d)))
		n += e->d_name[0] != '.' && atoi(e->d_name) != dirfd(d);
	closedir(d);
	int next = open("/", O_RDONLY);
	printf("descriptors %d, next %d\n", n, next);
	close(next);
}

static void memory_work(void)
{
	give_back();
	allocate();
	make_threads();
	take_signals();
}

static void become_daemon(const char *file)
{
	if (fork() > 0)
		exit(0);
	setsid();
	if (fork() > 0)
		_exit(0);
	for (int fd = 0; fd < 1024; fd++)
		close(fd);
	open("/dev/null", O_RDONLY);
	must(open(file, O_WRONLY | O_CREAT | O_APPEND, 0644) == 1, "the first descriptor");
	must(dup(1) == 2, "the second descriptor");
}

static void filter(void)
{
	static const int let[] = {
		SYS_write,	     SYS_mmap,	       SYS_munmap,	   SYS_mremap,
		SYS_madvise,	     SYS_brk,	       SYS_exit_group,	   SYS_exit,
		SYS_mprotect,	     SYS_rt_sigreturn, SYS_rt_sigprocmask, SYS_getpid,
		SYS_futex,	     SYS_clone,	       SYS_clone3,	   SYS_gettid,
		SYS_set_robust_list, SYS_rseq,	       SYS_rt_sigaction,   SYS_tgkill,
		SYS_newfstatat,	     SYS_sched_yield,  SYS_getrandom,	   SYS_sched_getaffinity,
		SYS_prlimit64,	     SYS_openat,       SYS_read,	   SYS_close,
	};
	struct sock_filter code[64] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	};
	unsigned short n = 1;

	for (size_t i = 0; i < sizeof(let) / sizeof(*let); i++) {
		code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K,
							 (unsigned)let[i], 0, 1);
		code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	}
	code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	struct sock_fprog prog = {.len = n, .filter = code};
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
		     prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) == 0,
	     "prctl");
}

static volatile sig_atomic_t ended;

static void on_term(int sig)
{
	ended = 1;
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "plain", *arg = argc > 2 ? argv[2] : "";

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (strcmp(mode, "closeall") == 0) {
		for (int fd = 3; fd < 1024; fd++)
			close(fd);
		closefrom(3);
	} else if (strcmp(mode, "daemon") == 0) {
		become_daemon(arg);
	} else if (strcmp(mode, "chroot") == 0) {
		must(chroot(arg) == 0 && chdir("/") == 0, "chroot");
		memory_work();
		puts("end");
		return 7;
	} else if (strcmp(mode, "drop") == 0) {
		uid_t uid = (uid_t)atoi(arg);
		must(setgroups(0, NULL) == 0 && setresgid(uid, uid, uid) == 0 &&
			     setresuid(uid, uid, uid) == 0,
		     "setresuid");
	} else if (strcmp(mode, "filter") == 0) {
		filter();
		memory_work();
		puts("end");
		return 7;
	} else if (strcmp(mode, "loop") == 0) {
		signal(SIGTERM, on_term);
		if (strcmp(arg, "filter") == 0)
			filter();
		for (int i = 0; !ended; i++) {
			give_back();
			if (i == 0)
				puts("ready");
		}
		return 0;
	}
	show_descriptors();
	memory_work();
	make_children();
	puts("end");
	return 7;
}

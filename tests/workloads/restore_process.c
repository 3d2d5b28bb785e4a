/*
 * What belongs to the process as a whole after a restore; see restorework.h.
 */
#include "restorework.h"

#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/membarrier.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <stddef.h>
#include <sys/auxv.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

extern char **environ;

static void need_root(void)
{
	if (geteuid() != 0)
		work_skip("only for root");
}

/* ---- identity ------------------------------------------------------------------ */

static void ids(void)
{
	must(setpgid(0, 0) == 0 || getpgrp() == getpid());
	pid_t pid = getpid(), group = getpgrp(), session = getsid(0);

	work_wait();
	must_equal(getpid(), pid);
	must_equal(getpgrp(), group);
	must_equal(getsid(0), session);
}

static void names(void)
{
	char name[16], exe[4096], now[4096];
	ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe));

	must(n > 0);
	must(prctl(PR_SET_NAME, "new (name) x") == 0);
	work_wait();
	must(prctl(PR_GET_NAME, name) == 0 && strcmp(name, "new (name) x") == 0);
	must(readlink("/proc/self/exe", now, sizeof(now)) == n && memcmp(exe, now, (size_t)n) == 0);
	free(work_read_file("/proc/self/exe"));
}

static char *first_argument;

static void command_line(void)
{
	char before[4096], after[4096];
	int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);

	/* As servers do that show what they are doing. */
	memset(first_argument, 'T', strlen(first_argument));
	ssize_t n = pread(fd, before, sizeof(before), 0);

	must(n > 4 && memcmp(before, "TTTT", 4) == 0);
	close(fd);
	work_wait();
	fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
	must_equal(pread(fd, after, sizeof(after), 0), n);
	must(memcmp(before, after, (size_t)n) == 0);
	memset(first_argument, 'U', strlen(first_argument));
	must(pread(fd, after, sizeof(after), 0) == n && memcmp(after, "UUUU", 4) == 0);
	close(fd);
}

static void environment(void)
{
	char *env = work_read_file("/proc/self/environ"), *aux = work_read_file("/proc/self/auxv");
	unsigned long pages = getauxval(AT_PAGESZ), random = getauxval(AT_RANDOM);
	uint64_t bytes[2], now[2];

	memcpy(bytes, (void *)random, 16);
	must(setenv("ADDED", "later", 1) == 0);
	work_wait();
	char *env_now = work_read_file("/proc/self/environ");
	char *aux_now = work_read_file("/proc/self/auxv");

	must(strcmp(env, env_now) == 0 && memcmp(aux, aux_now, 18 * sizeof(uint64_t[2])) == 0);
	must(getauxval(AT_PAGESZ) == pages && getauxval(AT_RANDOM) == random);
	memcpy(now, (void *)random, 16);
	must(memcmp(bytes, now, 16) == 0);
	must(strcmp(getenv("ADDED"), "later") == 0 && environ[0] != NULL);
}

/* The fields of /proc/self/stat that describe the address space: 26-28, 45-51. */
static void layout(void)
{
	static const int fields[] = {26, 27, 28, 45, 46, 47, 48, 49, 50, 51};
	unsigned long long was[64] = {0}, is[64] = {0};

	for (int round = 0; round < 2; round++) {
		char *stat = work_read_file("/proc/self/stat"), *s = strrchr(stat, ')') + 1;

		for (int i = 3; s && *s && i < 64; i++) {
			(round ? is : was)[i] = strtoull(s + 1, NULL, 10);
			s = strchr(s + 1, ' ');
		}
		if (!round)
			work_wait();
	}
	for (size_t i = 0; i < WORK_COUNT(fields); i++)
		must_equal(is[fields[i]], was[fields[i]]);
}

/* ---- directories, limits, settings ----------------------------------------------- */

static void directory(void)
{
	char before[4096], after[4096];

	must(mkdir("deep", 0755) == 0 && mkdir("deep/er", 0755) == 0);
	must(chdir("deep/er") == 0 && getcwd(before, sizeof(before)));
	work_wait();
	must(getcwd(after, sizeof(after)) && strcmp(before, after) == 0);
	must(access("../../deep", F_OK) == 0);
}

static void root_directory(void)
{
	need_root();
	must(mkdir("root", 0755) == 0 && mkdir("root/inside", 0755) == 0);
	must(chroot("root") == 0 && chdir("/inside") == 0);
	work_wait();
	must(access("/inside", F_OK) == 0 && access("/root", F_OK) < 0);
}

static void mask_of_files(void)
{
	struct stat st;

	umask(0137);
	work_wait();
	int fd = open("masked", O_WRONLY | O_CREAT | O_CLOEXEC, 0777);

	must(fd >= 0 && fstat(fd, &st) == 0);
	must_equal(st.st_mode & 0777, 0640);
	must_equal(umask(022), 0137);
}

static void limits(void)
{
	struct rlimit before[RLIM_NLIMITS], now;

	for (int i = 0; i < (int)RLIM_NLIMITS; i++)
		must(getrlimit((__rlimit_resource_t)i, &before[i]) == 0);
	before[RLIMIT_MSGQUEUE] = (struct rlimit){4096, 1 << 18};
	before[RLIMIT_NOFILE] = (struct rlimit){222, 333};
	before[RLIMIT_STACK].rlim_cur = 3 << 20;
	before[RLIMIT_SIGPENDING].rlim_cur = 77;
	before[RLIMIT_CPU].rlim_cur = 86400;
	before[RLIMIT_NPROC].rlim_cur /= 2;
	for (int i = 0; i < (int)RLIM_NLIMITS; i++)
		must(setrlimit((__rlimit_resource_t)i, &before[i]) == 0);
	work_wait();
	for (int i = 0; i < (int)RLIM_NLIMITS; i++) {
		must(getrlimit((__rlimit_resource_t)i, &now) == 0);
		must_equal(now.rlim_cur, before[i].rlim_cur);
		must_equal(now.rlim_max, before[i].rlim_max);
	}
	must(dup2(0, 221) == 221 && dup2(0, 222) < 0);
}

static void put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	must(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
	close(fd);
}

static void oom(void)
{
	put("/proc/self/oom_score_adj", "321");
	put("/proc/self/coredump_filter", "0x7");
	work_wait();
	char *score = work_read_file("/proc/self/oom_score_adj");
	char *filter = work_read_file("/proc/self/coredump_filter");

	must_equal(atoi(score), 321);
	must_equal(strtol(filter, NULL, 16), 7);
}

static void persona(void)
{
	int want = personality(0xffffffff) | ADDR_NO_RANDOMIZE | UNAME26;

	must(personality((unsigned long)want) >= 0);
	work_wait();
	must_equal(personality(0xffffffff), want);
}

static void huge_pages_off(void)
{
	must(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0);
	work_wait();
	must_equal(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), 1);
}

static void dumpable(void)
{
	must(prctl(PR_SET_DUMPABLE, 0) == 0);
	work_wait();
	must_equal(prctl(PR_GET_DUMPABLE), 0);
	must(prctl(PR_SET_DUMPABLE, 1) == 0);
}

static void dumpable_yes(void)
{
	must_equal(prctl(PR_GET_DUMPABLE), 1);
	work_wait();
	must_equal(prctl(PR_GET_DUMPABLE), 1);
}

static void parent_death(void)
{
	int signo = 0;

	must(prctl(PR_SET_PDEATHSIG, SIGRTMIN + 9) == 0);
	work_wait();
	must(prctl(PR_GET_PDEATHSIG, &signo) == 0);
	must_equal(signo, SIGRTMIN + 9);
}

/* ---- children ------------------------------------------------------------------------ */

static int ends_with_9(void *arg)
{
	return 9;
}

static int runs_true(void *arg)
{
	execl("/bin/true", "true", NULL);
	return 1;
}

static int faults(void *arg)
{
	raise(SIGSEGV);
	return 1;
}

static void children(void)
{
	work_wait();
	must_equal(work_in_child(ends_with_9, NULL), 9);
	must_equal(work_in_child(runs_true, NULL), 0);
	must_equal(work_in_child(faults, NULL), 256 + SIGSEGV);
	must(waitpid(-1, NULL, 0) < 0 && errno == ECHILD);
}

static void subreaper(void)
{
	int is = 0, status;
	pid_t child, orphan;

	must(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
	work_wait();
	must(prctl(PR_GET_CHILD_SUBREAPER, &is) == 0 && is == 1);
	must((child = fork()) >= 0);
	if (!child) {
		if (fork() == 0) {
			usleep(20000);
			_exit(3);
		}
		_exit(0);
	}
	must(waitpid(child, NULL, 0) == child);
	must((orphan = waitpid(-1, &status, 0)) > 0 && WEXITSTATUS(status) == 3);
}

/* ---- signals --------------------------------------------------------------------------- */

static volatile int handled;

static void on_signal(int signo)
{
	handled = signo;
}

static void on_info(int signo, siginfo_t *si, void *context)
{
	handled = si->si_value.sival_int;
}

static void actions(void)
{
	struct sigaction a[64], now;

	for (int s = 1; s < 64; s++) {
		sigemptyset(&a[s].sa_mask);
		a[s].sa_flags = 0;
		a[s].sa_handler = SIG_DFL;
		if (s == SIGKILL || s == SIGSTOP || s == 32 || s == 33)
			continue;
		if (s % 4 == 1) {
			a[s].sa_handler = SIG_IGN;
		} else if (s % 4 == 2) {
			a[s].sa_handler = on_signal;
			a[s].sa_flags = SA_RESTART | (s % 8 == 2 ? (int)SA_RESETHAND : 0);
			sigaddset(&a[s].sa_mask, s / 2 + 1);
		} else if (s % 4 == 3) {
			a[s].sa_sigaction = on_info;
			a[s].sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
			sigaddset(&a[s].sa_mask, SIGRTMAX);
		}
		must(sigaction(s, &a[s], NULL) == 0);
		/* As the kernel keeps it. */
		must(sigaction(s, NULL, &a[s]) == 0);
	}
	work_wait();
	for (int s = 1; s < 64; s++) {
		if (s == SIGKILL || s == SIGSTOP || s == 32 || s == 33)
			continue;
		must(sigaction(s, NULL, &now) == 0);
		must(now.sa_handler == a[s].sa_handler);
		/* Without a handler nothing is restored: SA_RESTORER means nothing then. */
		int nothing =
			now.sa_handler == SIG_DFL || now.sa_handler == SIG_IGN ? 0x04000000 : 0;
		must_equal(now.sa_flags | nothing, a[s].sa_flags | nothing);
		for (int m = 1; m < 64; m++)
			must_equal(sigismember(&now.sa_mask, m), sigismember(&a[s].sa_mask, m));
	}
	must(raise(SIGUSR1) == 0 && handled == SIGUSR1); /* 10 */
	must(raise(SIGHUP) == 0); /* 1: ignored */
	must(sigqueue(getpid(), 47, (union sigval){.sival_int = 31415}) == 0);
	must_equal(handled, 31415);
	must(raise(34) == 0 && handled == 34);
	must(sigaction(34, NULL, &now) == 0 && now.sa_handler == SIG_DFL); /* SA_RESETHAND */
}

/* ---- privileges ------------------------------------------------------------------------- */

static void users(void)
{
	uid_t r, e, s;
	gid_t g[3], groups[10], want[3] = {5, 700, 70000};

	need_root();
	must(setgroups(3, want) == 0);
	must(setresgid(1001, 1002, 1003) == 0);
	must(setresuid(2001, 2002, 2003) == 0);
	work_wait();
	must(getresuid(&r, &e, &s) == 0 && getresgid(&g[0], &g[1], &g[2]) == 0);
	must(r == 2001 && e == 2002 && s == 2003);
	must(g[0] == 1001 && g[1] == 1002 && g[2] == 1003);
	must_equal(getgroups(10, groups), 3);
	must(groups[0] == 5 && groups[1] == 700 && groups[2] == 70000);
	must(strcmp(work_field("/proc/self/status", "Uid"), "2001\t2002\t2003\t2002") == 0);
	must(strcmp(work_field("/proc/self/status", "Gid"), "1001\t1002\t1003\t1002") == 0);
	must(setresuid(2003, 2001, 2002) == 0);
	must(setuid(0) < 0);
}

static void same_fields(const char *const *keys, size_t n, void (*wait)(void))
{
	char before[8][512];

	for (size_t i = 0; i < n; i++)
		snprintf(before[i], sizeof(before[i]), "%s",
			 work_field("/proc/self/status", keys[i]));
	wait();
	for (size_t i = 0; i < n; i++)
		if (strcmp(before[i], work_field("/proc/self/status", keys[i])) != 0)
			work_end(1, "FAIL: %s is %s instead of %s", keys[i],
				 work_field("/proc/self/status", keys[i]), before[i]);
}

static void capabilities(void)
{
	static const char *const keys[] = {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"};
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct d[2] = {0};

	need_root();
	must(prctl(PR_CAPBSET_DROP, CAP_SYS_TIME) == 0 &&
	     prctl(PR_CAPBSET_DROP, CAP_WAKE_ALARM) == 0);
	d[0].permitted =
		1U << CAP_NET_BIND_SERVICE | 1U << CAP_KILL | 1U << CAP_CHOWN | 1U << CAP_SYS_NICE;
	d[0].effective = 1U << CAP_KILL;
	d[0].inheritable = 1U << CAP_NET_BIND_SERVICE | 1U << CAP_KILL;
	must(syscall(SYS_capset, &h, d) == 0);
	must(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0) == 0);
	same_fields(keys, WORK_COUNT(keys), work_wait);
	must(prctl(PR_CAPBSET_READ, CAP_SYS_TIME) == 0 && prctl(PR_CAPBSET_READ, CAP_CHOWN) == 1);
	must(chown("log", 5, 5) < 0 && errno == EPERM);
}

static void no_new_privileges(void)
{
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	work_wait();
	must_equal(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 1);
}

static void barriers(void)
{
	must(syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0);
	work_wait();
	must(syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) == 0);
}

static void secure_bits(void)
{
	int want = SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_KEEP_CAPS |
		   SECBIT_NO_CAP_AMBIENT_RAISE;

	need_root();
	must(prctl(PR_SET_SECUREBITS, want) == 0);
	work_wait();
	must_equal(prctl(PR_GET_SECUREBITS), want);
}

static void seccomp_filter(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 77),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = {WORK_COUNT(code), code};

	need_root();
	must(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &prog) == 0);
	code[1].k = SYS_getpgrp;
	code[2].k = SECCOMP_RET_ERRNO | 78;
	must(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &prog) == 0);
	work_wait();
	must(syscall(SYS_getppid) < 0 && errno == 77);
	must(syscall(SYS_getpgrp) < 0 && errno == 78);
	must_equal(prctl(PR_GET_SECCOMP), 2);
	must_equal(atoi(work_field("/proc/self/status", "Seccomp_filters")), 2);
}

static const struct work works[] = {
	{"ids", ids, "the process ID, as leader of its process group and session"},
	{"names", names, "the name (comm) and the link to the program (/proc/PID/exe)"},
	{"cmdline", command_line, "the command line, also when the program has rewritten it"},
	{"environ", environment, "environment and auxiliary vector, for itself and in /proc"},
	{"layout", layout, "the layout of the address space as /proc/PID/stat shows it"},
	{"cwd", directory, "the working directory"},
	{"root", root_directory, "the root directory (chroot)"},
	{"umask", mask_of_files, "the umask"},
	{"limits", limits, "resource limits, soft and hard"},
	{"oom", oom, "oom_score_adj and coredump_filter"},
	{"personality", persona, "the personality"},
	{"thp", huge_pages_off, "transparent huge pages switched off (PR_SET_THP_DISABLE)"},
	{"dumpable", dumpable_yes, "being dumpable"},
	{"not-dumpable", dumpable, "not being dumpable"},
	{"pdeathsig", parent_death,
	 "the parent-death signal, unless it is detached under its own PID"},
	{"children", children, "making, running and waiting for children"},
	{"subreaper", subreaper, "being a child subreaper: orphans come to it"},
	{"actions", actions, "signal actions with their flags and masks"},
	{"users", users, "real, effective, saved and file system user and group, and groups"},
	{"capabilities", capabilities, "capabilities: all five sets"},
	{"no-new-privs", no_new_privileges, "no_new_privs"},
	{"securebits", secure_bits, "securebits"},
	{"membarrier", barriers, "being registered for membarrier()"},
	{"seccomp", seccomp_filter, "seccomp filters, when the restorer is privileged"},
};

int main(int argc, char **argv)
{
	first_argument = argv[0];
	return work_main(argc, argv, works, WORK_COUNT(works));
}

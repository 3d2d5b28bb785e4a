#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "process/target.h"

/* A child that says when it is ready and then waits to be killed. */
static pid_t start(int (*prepare)(void))
{
	int ready[2];
	char c;

	cr_assert_eq(pipe(ready), 0);
	pid_t pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (prepare && prepare() < 0)
			_exit(1);
		if (write(ready[1], "x", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(ready[1]);
	if (read(ready[0], &c, 1) != 1) {
		waitpid(pid, NULL, 0);
		pid = -1;
	}
	close(ready[0]);
	return pid;
}

static void stop(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static unsigned count_descriptors(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

/* Expects a refusal whose text holds the words, and nothing left open. */
static void expect_refusal(pid_t pid, int code, const char *words)
{
	struct target t = {.pid = 4711};
	struct usnap_err err = {0};
	unsigned before = count_descriptors();

	cr_expect_eq(target_open(&t, pid, &err), code, "%d: %s", err.code, err.text);
	cr_expect_eq(err.code, code);
	cr_expect_not_null(strstr(err.text, words), "%s", err.text);
	cr_expect_eq(t.pid, 4711);
	cr_expect_eq(count_descriptors(), before);
}

Test(target, an_ordinary_process_is_opened)
{
	struct target t;
	struct usnap_err err = {0};
	pid_t pid = start(NULL);

	cr_assert_eq(target_open(&t, pid, &err), 0, "%s", err.text);
	cr_expect_eq(t.pid, pid);
	cr_expect(t.start_ticks > 0);
	cr_expect(strlen(t.comm) > 0);
	cr_expect(target_alive(&t));
	stop(pid);
	cr_expect(!target_alive(&t));
	target_close(&t);
	target_close(&t);
}

static int odd_name(void)
{
	return prctl(PR_SET_NAME, "a) R (b");
}

Test(target, parentheses_in_the_name_do_not_confuse)
{
	struct target t;
	pid_t pid = start(odd_name);

	cr_assert_eq(target_open(&t, pid, NULL), 0);
	cr_expect_str_eq(t.comm, "a) R (b");
	target_close(&t);
	stop(pid);
}

Test(target, no_such_process)
{
	pid_t pid = start(NULL);

	stop(pid);
	expect_refusal(pid, -ESRCH, "no such process");
	expect_refusal(0, -EINVAL, "not a process id");
	expect_refusal(-1, -EINVAL, "not a process id");
}

Test(target, a_zombie)
{
	pid_t pid = fork();

	if (pid == 0)
		_exit(0);
	siginfo_t si;
	waitid(P_PID, (id_t)pid, &si, WEXITED | WNOWAIT);
	expect_refusal(pid, -ESRCH, "zombie");
	waitpid(pid, NULL, 0);
}

Test(target, itself)
{
	expect_refusal(getpid(), -EINVAL, "this very command");
}

Test(target, a_kernel_thread)
{
	struct target t;
	struct usnap_err err = {0};

	if (getuid() != 0 || access("/proc/2/exe", F_OK) == 0)
		cr_skip("no kernel threads to be seen");
	if (target_open(&t, 2, &err) == -ESRCH)
		cr_skip("no kernel threads to be seen");
	expect_refusal(2, -EINVAL, "kernel thread");
}

static void *wait_forever(void *arg)
{
	(void)arg;
	for (;;)
		pause();
	return NULL;
}

Test(target, a_thread_that_is_no_process)
{
	pid_t pid, tid = 0;
	char path[64], words[64];

	/* Of a child, so that it is not this command's own. */
	pid = fork();
	if (pid == 0) {
		pthread_t th;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pthread_create(&th, NULL, wait_forever, NULL);
		for (;;)
			pause();
	}
	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	while (!tid) {
		DIR *d = opendir(path);
		for (const struct dirent *e; (e = readdir(d));)
			if (atoi(e->d_name) > 0 && atoi(e->d_name) != pid)
				tid = atoi(e->d_name);
		closedir(d);
	}
	snprintf(words, sizeof(words), "thread of process %d", (int)pid);
	expect_refusal(tid, -EINVAL, words);
	stop(pid);
}

Test(target, one_that_is_traced_already)
{
	char words[64];
	pid_t pid = start(NULL);
	int seized[2];
	char c;

	cr_assert_eq(pipe(seized), 0);
	pid_t tracer = fork();
	if (tracer == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		prctl(PR_SET_NAME, "some-debugger");
		ptrace(PTRACE_SEIZE, pid, NULL, NULL);
		if (write(seized[1], "x", 1) == 1)
			pause();
		_exit(0);
	}
	cr_assert_eq(read(seized[0], &c, 1), 1);
	snprintf(words, sizeof(words), "traced by some-debugger (pid %d)", (int)tracer);
	expect_refusal(pid, -EBUSY, words);
	stop(tracer);
	stop(pid);
}

static int have_userfaultfd(void)
{
	return (int)syscall(SYS_userfaultfd, O_CLOEXEC);
}

Test(target, one_with_a_userfaultfd_of_its_own)
{
	pid_t pid = start(have_userfaultfd);

	if (pid < 0)
		cr_skip("no userfaultfd");
	expect_refusal(pid, -EBUSY, "userfaultfd of its own");
	stop(pid);
}

static int become_nobody(void)
{
	return setuid(65534);
}

Test(target, no_permission_names_the_remedy)
{
	/* Of another user, from a user without privilege. */
	pid_t pid = start(NULL);

	if (getuid() != 0)
		cr_skip("must be root to be somebody else");
	pid_t judge = fork();
	if (judge == 0) {
		struct target t;
		struct usnap_err err = {0};

		become_nobody();
		int r = target_open(&t, pid, &err);
		_exit((r == -EACCES || r == -EPERM) && strstr(err.hint, "CAP_SYS_PTRACE") ? 0 : 1);
	}
	int status;
	waitpid(judge, &status, 0);
	cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	stop(pid);
}

/* The smallest 32-bit program: pause(2) for ever. */
Test(target, a_32_bit_program)
{
	static const unsigned char
		program
			[] =
				{
					0x7f, 'E',  'L',  'F',	1,    1,    1,	  0,	0,
					0,    0,    0,	  0,	0,    0,    0, /* ELFCLASS32 */
					2,    0,    3,	  0,	1,    0,    0,	  0,	0x54,
					0x80, 0x04, 0x08, /* ET_EXEC EM_386, entry */
					0x34, 0,    0,	  0,	0,    0,    0,	  0,	0,
					0,    0,    0,	  0x34, 0,    0x20, 0,	  1,	0,
					0,    0,    0,	  0,	0,    0,    1,	  0,	0,
					0,    0,    0,	  0,	0,    0,    0x80, 0x04, 0x08,
					0,    0x80, 0x04, 0x08, /* PT_LOAD */
					0x5d, 0,    0,	  0,	0x5d, 0,    0,	  0,	5,
					0,    0,    0,	  0,	0x10, 0,    0,	  0xb8, 29,
					0,    0,    0, /* mov $__NR_pause, %eax */
					0xcd, 0x80, 0xeb, 0xf7 /* int $0x80; jmp */
				};
	char path[] = "/tmp/target.XXXXXX";
	int fd = mkstemp(path), status;

	cr_assert_eq(write(fd, program, sizeof(program)), (ssize_t)sizeof(program));
	fchmod(fd, 0700);
	close(fd);
	pid_t pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execl(path, path, NULL);
		_exit(99);
	}
	/* The program runs when /proc shows it, or has ended already. */
	char exe[64], link[64] = "";
	snprintf(exe, sizeof(exe), "/proc/%d/exe", (int)pid);
	while (strcmp(link, path) != 0) {
		ssize_t n = readlink(exe, link, sizeof(link) - 1);

		link[n > 0 ? n : 0] = '\0';
		if (waitpid(pid, &status, WNOHANG) == pid) {
			unlink(path);
			cr_skip("the kernel runs no 32-bit programs");
		}
	}
	expect_refusal(pid, -EOPNOTSUPP, "32-bit");
	stop(pid);
	unlink(path);
}

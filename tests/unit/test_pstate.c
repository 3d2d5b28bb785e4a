#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/procfs.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/util.h"
#include "process/pstate.h"

/* ---- a target -------------------------------------------------------------- */

/* What the child tells the test about itself. */
struct facts {
	pid_t tid;
	uint64_t v[8];
};

struct child {
	pid_t pid;
	struct facts *facts; /* shared with it */
};

/* Forks a child that sets itself up and then pauses, and waits until it does. */
static struct child start(void (*setup)(struct facts *))
{
	struct child c = {.facts = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
					MAP_SHARED | MAP_ANONYMOUS, -1, 0)};
	int ready[2];
	char byte;

	cr_assert_eq(pipe2(ready, O_CLOEXEC), 0);
	c.pid = fork();
	if (c.pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		/* Only what a test makes is to be seen. */
		dup2(ready[1], 99);
		close_range(3, 98, 0);
		close_range(100, ~0u, 0);
		setup(c.facts);
		if (write(99, "x", 1) == 1)
			close(99);
		for (;;)
			pause();
	}
	close(ready[1]);
	cr_assert_eq(read(ready[0], &byte, 1), 1, "the child could not set itself up");
	close(ready[0]);
	return c;
}

static void stop(struct child *c)
{
	kill(c->pid, SIGKILL);
	waitpid(c->pid, NULL, 0);
	munmap(c->facts, 4096);
}

struct look {
	struct target t;
	struct remote_gadgets g;
	struct maps maps;
	struct pstate *ps;
};

static void look_prepare(struct look *l, pid_t pid)
{
	struct usnap_err err = {0};

	memset(l, 0, sizeof(*l));
	cr_assert_eq(target_open(&l->t, pid, &err), 0, "%s", err.text);
	cr_assert_eq(maps_read_flags(l->t.procfd, &l->maps), 0);
	cr_assert_eq(remote_find_gadgets(&l->g, &l->t, &l->maps, &err), 0, "%s", err.text);
	cr_assert_eq(pstate_prepare(&l->ps, &l->t, &l->g, &err), 0, "%s", err.text);
}

static void look_collect(struct look *l)
{
	struct usnap_err err = {0};
	struct tracees ts = {0};

	cr_assert_eq(tracees_seize(&ts, &l->t, &err), 0, "%s", err.text);
	cr_assert_eq(tracees_stop(&ts, &l->t, true, now_ns() + 5000000000u, &err), 0, "%s",
		     err.text);
	int r = pstate_collect(l->ps, &ts, (struct remote_meanwhile){0}, &err);
	pstate_set_maps(l->ps, &l->maps);
	tracees_release(&ts, &l->t);
	cr_assert_eq(r, 0, "%s", err.text);
}

static json_t *look_finish(struct look *l)
{
	struct usnap_err err = {0};
	json_t *j = NULL;

	cr_assert_eq(pstate_finish(l->ps, &j, &err), 0, "%s", err.text);
	return j;
}

static void look_end(struct look *l)
{
	pstate_free(l->ps);
	maps_free(&l->maps);
	target_close(&l->t);
}

static json_t *look_at(pid_t pid)
{
	struct look l;

	look_prepare(&l, pid);
	look_collect(&l);
	json_t *j = look_finish(&l);
	look_end(&l);
	return j;
}

/* ---- reading the result ------------------------------------------------------ */

static json_t *get(const json_t *o, const char *key)
{
	json_t *v = json_object_get(o, key);

	cr_assert_not_null(v, "no '%s'", key);
	return v;
}

static long long num(const json_t *o, const char *key)
{
	return json_integer_value(get(o, key));
}

static uint64_t hex(const json_t *o, const char *key)
{
	const char *s = json_string_value(get(o, key));

	cr_assert_not_null(s, "'%s' is no string", key);
	return strtoull(s + (s[0] == '0' && s[1] == 'o' ? 2 : 0), NULL,
			s[0] == '0' && s[1] == 'o' ? 8 : 16);
}

static const char *str(const json_t *o, const char *key)
{
	const char *s = json_string_value(get(o, key));

	return s ? s : "";
}

static json_t *find(const json_t *array, const char *key, long long value)
{
	size_t i;
	json_t *o;

	json_array_foreach (array, i, o)
		if (json_is_integer(json_object_get(o, key)) && num(o, key) == value)
			return o;
	return NULL;
}

static json_t *file(const json_t *j, int fd)
{
	json_t *f = find(get(j, "files"), "fd", fd);

	cr_assert_not_null(f, "no descriptor %d", fd);
	return f;
}

static const char *severity_of(const json_t *j, const char *what)
{
	size_t i;
	json_t *o;

	json_array_foreach (get(j, "limits_of_restore"), i, o)
		if (!strcmp(str(o, "what"), what))
			return str(o, "severity");
	return NULL;
}

static void expect_hex(const json_t *o, const char *key, const void *bytes, size_t len)
{
	const char *s = json_string_value(get(o, key));
	const unsigned char *b = bytes;

	cr_assert_eq(strlen(s), 2 * len, "%s: %zu digits", key, strlen(s));
	for (size_t i = 0; i < len; i++) {
		unsigned v;

		sscanf(s + 2 * i, "%2x", &v);
		cr_assert_eq(v, b[i], "%s: byte %zu", key, i);
	}
}

/* ---- signals and timers ------------------------------------------------------ */

static void handler(int sig)
{
	(void)sig;
}

static void setup_signals(struct facts *f)
{
	struct sigaction sa = {.sa_handler = handler, .sa_flags = SA_RESTART | SA_ONSTACK};
	stack_t ss = {.ss_sp = malloc(65536), .ss_size = 65536};
	sigset_t mask;

	sigaltstack(&ss, NULL);
	f->v[0] = (uintptr_t)ss.ss_sp;
	f->v[1] = (uintptr_t)handler;
	sigemptyset(&sa.sa_mask);
	sigaddset(&sa.sa_mask, SIGHUP);
	sigaction(SIGUSR1, &sa, NULL);
	signal(SIGPIPE, SIG_IGN);
	sa = (struct sigaction){.sa_handler = SIG_DFL, .sa_flags = SA_NOCLDWAIT};
	sigaction(SIGCHLD, &sa, NULL);

	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR2);
	sigaddset(&mask, SIGRTMIN);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	/* Queued for the thread, and for the process, with a value each. */
	siginfo_t si = {.si_signo = SIGRTMIN, .si_code = SI_QUEUE};
	for (int i = 0; i < 20; i++) {
		si.si_value.sival_int = 100 + i;
		syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), SIGRTMIN, &si);
	}
	sigqueue(getpid(), SIGUSR2, (union sigval){.sival_int = 7});
}

Test(pstate, signals_actions_masks_queues_and_the_alternate_stack)
{
	struct child c = start(setup_signals);
	json_t *j = look_at(c.pid), *actions = get(get(j, "signals"), "actions"), *t, *o;

	o = find(actions, "signo", SIGUSR1);
	cr_assert_not_null(o);
	cr_expect_eq(hex(o, "handler"), c.facts->v[1]);
	cr_expect_eq(hex(o, "mask"), 1ull << (SIGHUP - 1));
	cr_expect_eq(hex(o, "flags") & (SA_RESTART | SA_ONSTACK),
		     (uint64_t)(SA_RESTART | SA_ONSTACK));
	cr_expect(hex(o, "restorer") != 0);
	o = find(actions, "signo", SIGPIPE);
	cr_assert_not_null(o);
	cr_expect_str_eq(str(o, "handler"), "ignore");
	o = find(actions, "signo", SIGCHLD);
	cr_assert_not_null(o);
	cr_expect_str_eq(str(o, "handler"), "default");
	cr_expect(hex(o, "flags") & SA_NOCLDWAIT);
	cr_expect_null(find(actions, "signo", SIGHUP));

	t = find(get(j, "threads"), "tid", c.pid);
	cr_assert_not_null(t);
	cr_expect_eq(hex(t, "sigmask"), 1ull << (SIGUSR2 - 1) | 1ull << (SIGRTMIN - 1));
	o = get(t, "sigaltstack");
	cr_expect_eq(hex(o, "sp"), c.facts->v[0]);
	cr_expect_eq(num(o, "size"), 65536);
	cr_expect_eq(json_array_size(get(t, "pending")), 20);
	for (int i = 0; i < 20; i++) {
		siginfo_t si;
		o = json_array_get(get(t, "pending"), (size_t)i);
		cr_expect_eq(num(o, "signo"), SIGRTMIN);
		const char *s = str(o, "siginfo");
		for (size_t k = 0; k < sizeof(si); k++)
			sscanf(s + 2 * k, "%2hhx", (unsigned char *)&si + k);
		cr_expect_eq(si.si_value.sival_int, 100 + i);
	}
	o = get(get(j, "signals"), "pending");
	cr_assert_eq(json_array_size(o), 1);
	cr_expect_eq(num(json_array_get(o, 0), "signo"), SIGUSR2);
	cr_expect_eq(num(json_array_get(o, 0), "code"), SI_QUEUE);
	json_decref(j);
	stop(&c);
}

enum {
	MANY_TIMERS = 150
};

static void setup_timers(struct facts *f)
{
	struct itimerval it = {.it_value = {.tv_sec = 1000}, .it_interval = {.tv_usec = 250000}};
	struct sigevent ev = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
	timer_t t;

	setitimer(ITIMER_REAL, &it, NULL);
	for (int i = 0; i < MANY_TIMERS; i++) {
		struct itimerspec its = {.it_value = {.tv_sec = 5000 + i},
					 .it_interval = {.tv_nsec = i}};

		ev.sigev_value.sival_ptr = (void *)(uintptr_t)(0xabc000 + i);
		if (timer_create(CLOCK_MONOTONIC, &ev, &t) < 0 ||
		    timer_settime(t, 0, &its, NULL) < 0)
			_exit(1);
	}
	(void)f;
}

Test(pstate, timers_with_the_time_that_is_left)
{
	struct child c = start(setup_timers);
	json_t *j = look_at(c.pid), *o = get(j, "itimers");

	cr_assert_eq(json_array_size(o), 1);
	o = json_array_get(o, 0);
	cr_expect_str_eq(str(o, "which"), "real");
	cr_expect_eq(num(o, "interval_ns"), 250000000);
	cr_expect(num(o, "value_ns") > 900000000000ll && num(o, "value_ns") <= 1000000000000ll);

	/* More than one batch of calls holds. */
	json_t *timers = get(j, "posix_timers");
	cr_assert_eq(json_array_size(timers), MANY_TIMERS);
	for (int i = 0; i < MANY_TIMERS; i++) {
		o = find(timers, "id", i);
		cr_assert_not_null(o);
		cr_expect_eq(hex(o, "sigval"), 0xabc000u + (unsigned)i);
		cr_expect_eq(num(o, "signo"), SIGUSR1);
		cr_expect_eq(num(o, "clock"), CLOCK_MONOTONIC);
		cr_expect_eq(num(o, "notify"), SIGEV_SIGNAL);
		cr_expect_eq(num(o, "interval_ns"), i);
		cr_expect(num(o, "value_ns") / 1000000000 >= 4900 + i);
		cr_expect(num(o, "value_ns") / 1000000000 <= 5000 + i);
	}
	json_decref(j);
	stop(&c);
}

/* ---- threads ----------------------------------------------------------------- */

static void *named_thread(void *arg)
{
	struct facts *f = arg;
	cpu_set_t set;

	prctl(PR_SET_NAME, "worker one");
	prctl(PR_SET_TIMERSLACK, 123456);
	CPU_ZERO(&set);
	CPU_SET(0, &set);
	sched_setaffinity(0, sizeof(set), &set);
	setpriority(PRIO_PROCESS, 0, 5);
	struct sched_param sp = {0};
	sched_setscheduler(0, SCHED_BATCH, &sp);
	f->v[0] = pthread_self();
	f->tid = gettid();
	__atomic_store_n(&f->v[7], 1, __ATOMIC_RELEASE);
	for (;;)
		pause();
	return NULL;
}

static void setup_thread(struct facts *f)
{
	pthread_t th;

	f->v[1] = syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 6) == 0;
	pthread_create(&th, NULL, named_thread, f);
	while (!__atomic_load_n(&f->v[7], __ATOMIC_ACQUIRE))
		sched_yield();
}

Test(pstate, what_belongs_to_a_thread)
{
	struct child c = start(setup_thread);
	json_t *j = look_at(c.pid), *t = find(get(j, "threads"), "tid", c.facts->tid);

	cr_assert_eq(json_array_size(get(j, "threads")), 2);
	cr_assert_not_null(t);
	cr_expect_str_eq(str(t, "comm"), "worker one");
	cr_expect_str_eq(str(get(t, "sched"), "policy"), "batch");
	cr_expect_eq(num(get(t, "sched"), "nice"), 5);
	cr_expect_str_eq(str(t, "affinity"), "01");
	cr_expect_eq(num(t, "timerslack_ns"), 123456);
	cr_expect_eq(num(get(t, "robust_list"), "len"), 24);
	cr_expect(hex(get(t, "robust_list"), "head") > c.facts->v[0]);
	cr_expect(hex(t, "tid_address") > c.facts->v[0]);
	cr_expect(hex(t, "tid_address") < c.facts->v[0] + 4096);
	cr_expect_eq(num(t, "pdeathsig"), 0);
	cr_expect_eq(num(get(t, "interrupted_call"), "nr"), SYS_pause);
	t = find(get(j, "threads"), "tid", c.pid);
	cr_assert_not_null(t);
	cr_expect_eq(num(t, "pdeathsig"), SIGKILL);
	if (c.facts->v[1])
		cr_expect_eq(num(t, "ioprio"), 2 << 13 | 6);
	json_decref(j);
	stop(&c);
}

static void setup_timed_wait(struct facts *f)
{
	struct timespec ts = {.tv_nsec = 500000000};

	if (write(99, "x", 1) != 1)
		_exit(1);
	/* nanosleep(2) does not end early but for a signal with a handler. */
	f->v[1] = nanosleep(&ts, NULL) == 0 ? 1 : 2;
	__atomic_store_n(&f->v[0], 1, __ATOMIC_RELEASE);
	for (;;)
		pause();
}

Test(pstate, a_wait_with_a_timeout_goes_on)
{
	struct child c = start(setup_timed_wait);
	struct look l;

	look_prepare(&l, c.pid);
	for (int i = 0; i < 5; i++)
		look_collect(&l);
	look_end(&l);
	while (!__atomic_load_n(&c.facts->v[0], __ATOMIC_ACQUIRE))
		sched_yield();
	cr_expect_eq(c.facts->v[1], 1);
	stop(&c);
}

static void setup_registers(struct facts *f)
{
	(void)f;
	/* Values to be found again, live in registers across a pause. */
	__asm__ volatile("movabs $0x1122334455667788, %%rbx\n\t"
			 "mov $0x5566, %%r12\n\t"
			 "movq %%rbx, %%xmm7\n\t"
			 "mov $1, %%eax\n\t" /* write(99, "x", 1) */
			 "mov $99, %%edi\n\t"
			 "lea 2f(%%rip), %%rsi\n\t"
			 "mov $1, %%edx\n\t"
			 "syscall\n"
			 "1:\tmov $34, %%eax\n\t" /* pause() */
			 "syscall\n\t"
			 "jmp 1b\n"
			 "2:\t.ascii \"x\"\n" ::
				 : "rbx", "r12", "xmm7", "rax", "rdi", "rsi", "rdx", "rcx", "r11",
				   "memory");
}

Test(pstate, notes_hold_the_registers)
{
	struct child c = start(setup_registers);
	struct look l;
	const unsigned char *p;
	const void *notes;
	size_t len;
	pid_t tid;
	unsigned seen = 0;

	look_prepare(&l, c.pid);
	look_collect(&l);
	cr_assert_eq(pstate_nr_threads(l.ps), 1);
	cr_assert_eq(pstate_notes(l.ps, 0, &tid, &notes, &len), 0);
	cr_expect_eq(tid, c.pid);
	cr_expect_eq(pstate_notes(l.ps, 1, &tid, &notes, &len), -EINVAL);
	for (p = notes; p < (const unsigned char *)notes + len;) {
		const Elf64_Nhdr *h = (const void *)p;
		const unsigned char *desc = p + sizeof(*h) + ALIGN_UP(h->n_namesz, 4u);
		uint64_t xmm7;

		switch (h->n_type) {
		case NT_PRSTATUS: {
			struct elf_prstatus pr;
			struct user_regs_struct regs;

			cr_assert_eq(h->n_descsz, sizeof(pr));
			memcpy(&pr, desc, sizeof(pr));
			cr_expect_eq(pr.pr_pid, c.pid);
			cr_expect_eq(pr.pr_ppid, getpid());
			memcpy(&regs, &pr.pr_reg, sizeof(regs));
			cr_expect_eq(regs.rbx, 0x1122334455667788u);
			cr_expect_eq(regs.r12, 0x5566u);
			cr_expect_eq(regs.orig_rax, (unsigned long)SYS_pause);
			seen |= 1;
			break;
		}
		case NT_PRFPREG:
		case NT_X86_XSTATE:
			memcpy(&xmm7, desc + 160 + 7 * 16, 8);
			cr_expect_eq(xmm7, 0x1122334455667788u);
			seen |= h->n_type == NT_PRFPREG ? 2 : 4;
			break;
		case NT_SIGINFO:
			cr_expect_eq(h->n_descsz, sizeof(siginfo_t));
			seen |= 8;
			break;
		}
		p = desc + ALIGN_UP(h->n_descsz, 4u);
	}
	cr_expect_eq(p, (const unsigned char *)notes + len);
	cr_expect_eq(seen & ~4u, 11u);
	look_end(&l);
	stop(&c);
}

/* ---- descriptors ------------------------------------------------------------- */

static char dir[64];

static void setup_files(struct facts *f)
{
	int fd, ends[2];

	if (chdir(dir) < 0)
		_exit(1);
	umask(027);
	fd = open("log", O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0640); /* 3 */
	if (write(fd, "0123456789", 10) != 10 || flock(fd, LOCK_EX) < 0)
		_exit(1);
	dup2(fd, 20); /* one description */
	open("log", O_RDWR | O_APPEND); /* 4: another one of the same file */
	lseek(4, 10, SEEK_SET);
	fd = open("gone", O_RDWR | O_CREAT, 0600); /* 5 */
	if (write(fd, "abc", 3) != 3)
		_exit(1);
	unlink("gone");
	if (pipe2(ends, O_NONBLOCK) < 0) /* 6, 7 */
		_exit(1);
	if (write(ends[1], "in the pipe", 11) != 11)
		_exit(1);
	fcntl(ends[1], F_SETPIPE_SZ, 131072);
	open("/dev/null", O_WRONLY); /* 8 */
	open(".", O_RDONLY | O_DIRECTORY); /* 9 */
	memfd_create("a memfd", MFD_ALLOW_SEALING); /* 10 */
	fcntl(10, F_ADD_SEALS, F_SEAL_SHRINK);
	struct flock lock = {.l_type = F_WRLCK, .l_start = 2, .l_len = 3};
	fcntl(3, F_SETLK, &lock);
	(void)f;
}

static void fresh_dir(void)
{
	strcpy(dir, "/tmp/pstate.XXXXXX");
	cr_assert_not_null(mkdtemp(dir));
}

static void remove_dir(void)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/log", dir);
	unlink(path);
	snprintf(path, sizeof(path), "%s/s", dir);
	unlink(path);
	rmdir(dir);
}

Test(pstate, files_pipes_and_what_they_share)
{
	fresh_dir();
	struct child c = start(setup_files);
	json_t *j = look_at(c.pid), *f, *o;

	cr_expect_str_eq(str(j, "cwd"), dir);
	cr_expect_eq(hex(j, "umask"), 027);

	f = file(j, 3);
	cr_expect_str_eq(str(f, "type"), "file");
	cr_expect_eq(num(f, "offset"), 10);
	cr_expect_eq(num(f, "size"), 10);
	cr_expect_eq(hex(f, "flags") & (O_ACCMODE | O_APPEND), (uint64_t)(O_RDWR | O_APPEND));
	cr_expect(json_is_true(get(f, "cloexec")));
	cr_expect(json_is_false(get(file(j, 20), "cloexec")));
	cr_expect_eq(num(f, "description"), num(file(j, 20), "description"));
	cr_expect_neq(num(f, "description"), num(file(j, 4), "description"));
	cr_expect_eq(hex(f, "mode"), S_IFREG | 0640);
	o = get(f, "locks");
	cr_assert_eq(json_array_size(o), 2);
	cr_expect_null(json_object_get(f, "deleted"));

	f = file(j, 5);
	cr_expect(json_is_true(get(f, "deleted")));
	cr_expect_eq(num(f, "size"), 3);
	cr_expect_str_eq(severity_of(j, "deleted-file"), "refuse");

	f = file(j, 6);
	cr_expect_str_eq(str(f, "type"), "pipe");
	cr_expect_eq(num(f, "inode"), num(file(j, 7), "inode"));
	cr_expect_neq(num(f, "description"), num(file(j, 7), "description"));
	o = get(f, "pipe");
	cr_expect_eq(num(o, "size"), 131072);
	cr_expect_eq(num(o, "queued"), 11);
	expect_hex(o, "data", "in the pipe", 11);

	f = file(j, 8);
	cr_expect_str_eq(str(f, "type"), "chr");
	cr_expect_str_eq(str(f, "rdev"), "1:3");
	cr_expect_str_eq(str(file(j, 9), "type"), "dir");
	f = file(j, 10);
	cr_expect_str_eq(str(f, "type"), "memfd");
	cr_expect_eq(num(get(f, "memfd"), "seals"), F_SEAL_SHRINK);
	json_decref(j);
	stop(&c);
	remove_dir();
}

static void setup_content_of_a_pipe(struct facts *f)
{
	int ends[2];
	static char page[65536];

	if (pipe(ends) < 0) /* 3, 4 */
		_exit(1);
	for (size_t i = 0; i < sizeof(page); i++)
		page[i] = (char)(i * 7);
	if (write(ends[1], page, sizeof(page)) != (ssize_t)sizeof(page))
		_exit(1);
	(void)f;
}

Test(pstate, a_full_pipe_is_copied_and_not_consumed)
{
	struct child c = start(setup_content_of_a_pipe);

	for (int i = 0; i < 2; i++) {
		json_t *j = look_at(c.pid), *o = get(file(j, 3), "pipe");

		cr_expect_eq(num(o, "queued"), 65536);
		unsigned char *want = malloc(65536);
		for (size_t k = 0; k < 65536; k++)
			want[k] = (unsigned char)(k * 7);
		expect_hex(o, "data", want, 65536);
		free(want);
		json_decref(j);
	}
	stop(&c);
}

static void setup_anonymous_kinds(struct facts *f)
{
	struct epoll_event ev = {.events = EPOLLIN | EPOLLET, .data.u64 = 0xfeedfacecafebeef};
	struct itimerspec its = {.it_value = {.tv_sec = 3000}, .it_interval = {.tv_nsec = 5}};
	sigset_t mask;

	eventfd(41, EFD_SEMAPHORE | EFD_NONBLOCK); /* 3 */
	epoll_create1(EPOLL_CLOEXEC); /* 4 */
	epoll_ctl(4, EPOLL_CTL_ADD, 3, &ev);
	timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK); /* 5 */
	timerfd_settime(5, 0, &its, NULL);
	sigemptyset(&mask);
	sigaddset(&mask, SIGTERM);
	signalfd(-1, &mask, 0); /* 6 */
	inotify_init1(0); /* 7 */
	f->v[0] = (uint64_t)inotify_add_watch(7, dir, IN_CREATE | IN_DELETE);
	syscall(SYS_pidfd_open, getppid(), 0); /* 8 */
	eventfd(41, EFD_SEMAPHORE | EFD_NONBLOCK); /* 9: like 3, and yet another */
	dup2(9, 21);
}

Test(pstate, eventfd_epoll_timerfd_signalfd_inotify_pidfd)
{
	fresh_dir();
	struct child c = start(setup_anonymous_kinds);
	json_t *j = look_at(c.pid), *o;
	struct stat st;

	o = get(file(j, 3), "eventfd");
	cr_expect_eq(hex(o, "count"), 41);
	cr_expect_eq(num(o, "semaphore"), 1);
	cr_expect_neq(num(file(j, 3), "description"), num(file(j, 9), "description"));
	cr_expect_eq(num(file(j, 9), "description"), num(file(j, 21), "description"));

	o = get(get(file(j, 4), "epoll"), "set");
	cr_assert_eq(json_array_size(o), 1);
	o = json_array_get(o, 0);
	cr_expect_eq(num(o, "fd"), 3);
	cr_expect_eq(hex(o, "data"), 0xfeedfacecafebeef);
	cr_expect(hex(o, "events") & EPOLLET);

	o = get(file(j, 5), "timerfd");
	cr_expect_eq(num(o, "clock"), CLOCK_BOOTTIME);
	cr_expect_eq(num(o, "interval_ns"), 5);
	cr_expect(num(o, "value_ns") / 1000000000 > 2900 &&
		  num(o, "value_ns") / 1000000000 <= 3000);

	cr_expect_eq(hex(get(file(j, 6), "signalfd"), "mask"), 1ull << (SIGTERM - 1));

	o = get(get(file(j, 7), "inotify"), "watches");
	cr_assert_eq(json_array_size(o), 1);
	o = json_array_get(o, 0);
	stat(dir, &st);
	cr_expect_eq(num(o, "wd"), (long long)c.facts->v[0]);
	cr_expect_eq(num(o, "inode"), (long long)st.st_ino);
	cr_expect_eq(hex(o, "mask"), (uint64_t)(IN_CREATE | IN_DELETE));
	struct stat named;
	cr_assert_eq(stat(str(o, "path"), &named), 0, "no path");
	cr_expect(named.st_ino == st.st_ino && named.st_dev == st.st_dev);

	cr_expect_eq(num(get(file(j, 8), "pidfd"), "pid"), getpid());
	cr_expect_str_eq(severity_of(j, "pidfd"), "refuse");
	json_decref(j);
	stop(&c);
	remove_dir();
}

static void setup_sockets(struct facts *f)
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	socklen_t len = sizeof(in);
	int one = 1, pair[2];

	socket(AF_INET, SOCK_STREAM, 0); /* 3: a listener */
	setsockopt(3, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(3, (struct sockaddr *)&in, sizeof(in)) < 0 || listen(3, 77) < 0)
		_exit(1);
	getsockname(3, (struct sockaddr *)&in, &len);
	f->v[0] = ntohs(in.sin_port);
	socket(AF_INET, SOCK_STREAM, 0); /* 4: a client of its own listener, 5 */
	if (connect(4, (struct sockaddr *)&in, sizeof(in)) < 0)
		_exit(1);
	accept(3, NULL, NULL);
	socket(AF_UNIX, SOCK_STREAM, 0); /* 6 */
	snprintf(un.sun_path, sizeof(un.sun_path), "%s/s", dir);
	if (bind(6, (struct sockaddr *)&un, sizeof(un)) < 0 || listen(6, 9) < 0)
		_exit(1);
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0) /* 7, 8 */
		_exit(1);
	if (write(pair[0], "queued", 6) != 6)
		_exit(1);
	socket(AF_INET6, SOCK_DGRAM, 0); /* 9 */
	socket(AF_NETLINK, SOCK_RAW, 0); /* 10 */
}

Test(pstate, sockets)
{
	fresh_dir();
	struct child c = start(setup_sockets);
	json_t *j = look_at(c.pid), *o;
	char text[64], path[80];

	o = get(file(j, 3), "socket");
	cr_expect_str_eq(str(o, "family"), "inet");
	cr_expect_str_eq(str(o, "type"), "stream");
	cr_expect(json_is_true(get(o, "listening")));
	cr_expect_eq(num(o, "backlog"), 77);
	cr_expect_eq(num(get(o, "options"), "reuseaddr"), 1);
	snprintf(text, sizeof(text), "127.0.0.1:%d", (int)c.facts->v[0]);
	cr_expect_str_eq(str(get(o, "local"), "text"), text);

	o = get(file(j, 4), "socket");
	cr_expect(json_is_true(get(o, "connected")));
	cr_expect_str_eq(str(get(o, "peer"), "text"), text);
	cr_expect_str_eq(severity_of(j, "connected-socket"), "note");

	o = get(file(j, 6), "socket");
	snprintf(path, sizeof(path), "%s/s", dir);
	cr_expect(json_is_true(get(o, "listening")));
	cr_expect_eq(num(o, "backlog"), 9);
	cr_expect_str_eq(str(get(o, "local"), "path"), path);

	o = get(file(j, 8), "socket");
	cr_expect_eq(num(o, "peer_inode"), num(file(j, 7), "inode"));
	cr_expect_eq(num(o, "queued"), 6);
	expect_hex(o, "data", "queued", 6);

	o = get(file(j, 9), "socket");
	cr_expect_str_eq(str(o, "family"), "inet6");
	cr_expect_str_eq(str(o, "type"), "dgram");
	cr_expect(json_is_false(get(o, "connected")));
	cr_expect_str_eq(str(get(file(j, 10), "socket"), "family"), "netlink");
	json_decref(j);
	stop(&c);
	remove_dir();
}

static void setup_terminal(struct facts *f)
{
	struct winsize ws = {.ws_row = 33, .ws_col = 77};
	int n;

	open("/dev/ptmx", O_RDWR | O_NOCTTY); /* 3 */
	if (grantpt(3) < 0 || unlockpt(3) < 0 || ptsname_r(3, dir, sizeof(dir)) != 0)
		_exit(1);
	open(dir, O_RDWR | O_NOCTTY); /* 4 */
	ioctl(4, TIOCSWINSZ, &ws);
	ioctl(3, TIOCGPTN, &n);
	f->v[0] = (uint64_t)n;
}

Test(pstate, terminals)
{
	struct child c = start(setup_terminal);
	json_t *j = look_at(c.pid), *o = get(file(j, 3), "terminal");

	cr_expect_eq(num(o, "pty"), (long long)c.facts->v[0]);
	o = get(file(j, 4), "terminal");
	cr_expect_eq(strlen(str(o, "termios")), 72);
	cr_expect_eq(json_integer_value(json_array_get(get(o, "winsize"), 0)), 33);
	cr_expect_eq(json_integer_value(json_array_get(get(o, "winsize"), 1)), 77);
	json_decref(j);
	stop(&c);
}

/* ---- what changes between the steps --------------------------------------------- */

static void on_change(int sig)
{
	(void)sig;
	/* Everything at once: close, reuse, swap, new, moved. */
	close(3);
	dup2(5, 4);
	eventfd(5, 0); /* 3: was a file */
	dup2(6, 7);
	dup2(3, 30);
	if (write(5, "more", 4) != 4)
		_exit(1);
	sigset_t mask;
	sigfillset(&mask);
	sigprocmask(SIG_SETMASK, &mask, NULL);
	if (write(31, "x", 1) != 1)
		_exit(1);
	close(31);
}

static void setup_change(struct facts *f)
{
	int fd = (int)f->v[0];

	dup2(fd, 31);
	memfd_create("first", 0); /* 3 */
	memfd_create("second", 0); /* 4 */
	memfd_create("third", 0); /* 5 */
	epoll_create1(0); /* 6 */
	inotify_init(); /* 7: no watch, one inode with 6 */
	signal(SIGUSR1, on_change);
}

Test(pstate, the_freeze_sees_what_changed_after_prepare)
{
	struct child c = {0};
	struct look l;
	int ends[2];
	char byte;

	/* The child's descriptor 31 says when it has changed. */
	cr_assert_eq(pipe(ends), 0);
	c.facts = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	c.pid = fork();
	if (c.pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(ends[1], 60);
		close_range(3, 59, 0);
		c.facts->v[0] = 60;
		setup_change(c.facts);
		if (write(60, "x", 1) == 1)
			close(60);
		for (;;)
			pause();
	}
	close(ends[1]);
	cr_assert_eq(read(ends[0], &byte, 1), 1);
	look_prepare(&l, c.pid);
	look_collect(&l);
	json_t *j = look_finish(&l);
	cr_expect_str_eq(str(file(j, 3), "type"), "memfd");
	cr_expect_neq(num(file(j, 4), "description"), num(file(j, 5), "description"));
	json_decref(j);

	kill(c.pid, SIGUSR1);
	cr_assert_eq(read(ends[0], &byte, 1), 1);
	look_collect(&l); /* again, with what prepare knew */
	j = look_finish(&l);
	cr_expect_str_eq(str(file(j, 3), "type"), "eventfd");
	cr_expect_eq(num(file(j, 3), "description"), num(file(j, 30), "description"));
	cr_expect_eq(num(file(j, 4), "description"), num(file(j, 5), "description"));
	cr_expect_eq(num(file(j, 5), "offset"), 4);
	cr_expect_str_eq(str(file(j, 7), "type"), "epoll");
	cr_expect_eq(num(file(j, 6), "description"), num(file(j, 7), "description"));
	json_decref(j);
	look_end(&l);
	stop(&c);
	close(ends[0]);
}

/* ---- the process ------------------------------------------------------------------ */

static void setup_process(struct facts *f)
{
	struct rlimit rl = {.rlim_cur = 300, .rlim_max = 400};

	setrlimit(RLIMIT_NOFILE, &rl);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	prctl(PR_SET_NAME, "odd \"n\xff\n");
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	f->v[0] = (uintptr_t)sbrk(0);
}

Test(pstate, the_process_as_a_whole)
{
	struct child c = start(setup_process);
	json_t *j = look_at(c.pid), *o, *mm = get(j, "mm");
	char exe[256], *text;

	ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);
	exe[n] = '\0';
	cr_expect_str_eq(str(j, "exe"), exe);
	cr_expect_eq(num(j, "pid"), c.pid);
	cr_expect_eq(num(j, "ppid"), getpid());
	cr_expect(json_is_true(get(j, "child_subreaper")));
	cr_expect(json_is_true(get(j, "thp_disable")));
	cr_expect(json_is_true(get(get(j, "creds"), "no_new_privs")));
	cr_expect_eq(json_array_size(get(get(j, "creds"), "uid")), 4);
	expect_hex(j, "comm_hex", "odd \"n\xff\n", 8);

	size_t i;
	bool found = false;
	json_array_foreach (get(j, "limits"), i, o)
		if (!strcmp(str(o, "resource"), "nofile")) {
			found = true;
			cr_expect_eq(num(o, "soft"), 300);
			cr_expect_eq(num(o, "hard"), 400);
		}
	cr_expect(found);

	cr_expect_eq(hex(mm, "brk"), ALIGN_UP(c.facts->v[0], (uint64_t)4096));
	cr_expect(hex(mm, "arg_start") < hex(mm, "arg_end"));
	cr_expect(strlen(str(mm, "auxv")) > 32);
	cr_expect(json_array_size(get(j, "maps")) > 5);
	cr_expect_not_null(json_object_get(get(j, "namespaces"), "pid"));
	/* It is JSON, whatever bytes went into it. */
	text = json_dumps(j, 0);
	cr_expect_not_null(text);
	free(text);
	json_decref(j);
	stop(&c);
}

static void setup_children(struct facts *f)
{
	pid_t pid = fork();

	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	f->tid = pid;
}

Test(pstate, children_are_named_as_a_limit)
{
	struct child c = start(setup_children);
	json_t *j = look_at(c.pid);

	cr_assert_eq(json_array_size(get(j, "children")), 1);
	cr_expect_eq(json_integer_value(json_array_get(get(j, "children"), 0)), c.facts->tid);
	cr_expect_str_eq(severity_of(j, "children"), "refuse");
	json_decref(j);
	stop(&c);
}

static void setup_filter(struct facts *f)
{
	/* A sigaltstack(2) would be the end: ours must not be judged. */
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_sigaltstack, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {4, code};

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	f->v[0] = prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

Test(pstate, a_seccomp_filter_is_recorded_and_does_not_strike)
{
	struct child c = start(setup_filter);

	if (!c.facts->v[0] || getuid() != 0)
		cr_skip("no seccomp filters to be read");
	json_t *j = look_at(c.pid), *t = json_array_get(get(j, "threads"), 0), *o;

	cr_expect_eq(kill(c.pid, 0), 0);
	cr_expect_eq(num(t, "seccomp"), 2);
	o = get(j, "seccomp_filters");
	cr_assert_eq(json_array_size(o), 1);
	cr_expect_eq(strlen(json_string_value(json_array_get(o, 0))), 4 * 8 * 2);
	cr_expect_eq(json_array_size(get(t, "seccomp_filters")), 1);
	cr_expect_str_eq(severity_of(j, "seccomp-filter"), "note");
	cr_expect(json_is_object(get(t, "sigaltstack")));
	json_decref(j);
	stop(&c);
}

static void setup_nothing(struct facts *f)
{
	(void)f;
}

Test(pstate, nothing_is_left_open_and_nothing_changes_in_the_target)
{
	struct child c = start(setup_nothing);
	struct look l;
	char path[64];
	struct stat before, after;

	/* Until it has closed what it told us with. */
	snprintf(path, sizeof(path), "/proc/%d/fd/99", (int)c.pid);
	while (access(path, F_OK) == 0)
		sched_yield();
	snprintf(path, sizeof(path), "/proc/%d/fd", (int)c.pid);
	stat(path, &before);
	look_prepare(&l, c.pid);
	for (int i = 0; i < 10; i++)
		look_collect(&l);
	look_end(&l);
	stat(path, &after);
	cr_expect_eq(before.st_size, after.st_size);
	snprintf(path, sizeof(path), "/proc/self/fd");
	stat(path, &before);
	look_prepare(&l, c.pid);
	look_collect(&l);
	json_decref(look_finish(&l));
	look_end(&l);
	stat(path, &after);
	cr_expect_eq(before.st_size, after.st_size);
	stop(&c);
}

Test(pstate, finish_before_collect_is_refused)
{
	struct child c = start(setup_nothing);
	struct usnap_err err = {0};
	struct look l;
	json_t *j = NULL;

	look_prepare(&l, c.pid);
	cr_expect_eq(pstate_finish(l.ps, &j, &err), -EINVAL);
	cr_expect_null(j);
	look_end(&l);
	stop(&c);
}

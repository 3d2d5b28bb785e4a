/* The builder; restore_internal.h has the design. */
#include "restore/builder.h"

#include <errno.h>
#include <linux/sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/util.h"
#include "restore/rfiles.h"
#include "restore/rproc.h"
#include "restore/rthreads.h"

/* Signals that are sent to the process meanwhile wait until it runs. */
static int block_signals(void)
{
	sigset_t all;

	sigfillset(&all);
	return sigprocmask(SIG_SETMASK, &all, NULL) < 0 ? -errno : 0;
}

/* A handler of the restorer's would lie in memory that goes. */
static void default_signals(void)
{
	for (int sig = 1; sig < NSIG; sig++)
		if (sig != SIGKILL && sig != SIGSTOP)
			signal(sig, SIG_DFL);
}

/* Registered by libc for our own main thread, in memory that goes. */
static void forget_libc(void)
{
	syscall(SYS_set_robust_list, NULL, 24);
	syscall(SYS_set_tid_address, NULL);
	extern const ptrdiff_t __rseq_offset __attribute__((weak));
	extern const unsigned __rseq_size __attribute__((weak));
	if (&__rseq_offset && &__rseq_size && __rseq_size) {
		char *rseq = (char *)__builtin_thread_pointer() + __rseq_offset;
		enum {
			RSEQ_SIG_X86 = 0x53053053,
			RSEQ_FLAG_UNREGISTER = 1
		};
		syscall(SYS_rseq, rseq, 32, RSEQ_FLAG_UNREGISTER, RSEQ_SIG_X86);
	}
}

static int build(struct restore *r, struct usnap_err *err)
{
	int ret = stub_map_here(r->stub);

	if (ret < 0)
		return usnap_fail_errno(err, ret, "cannot map the stub");
	if ((ret = rproc_begin(r, err)) < 0 || (ret = rfiles_build(r, err)) < 0 ||
	    (ret = rproc_build(r, err)) < 0)
		return ret;
	ret = block_signals();
	return ret < 0 ? usnap_fail_errno(err, ret, "cannot block signals") : 0;
}

static _Noreturn void builder_main(struct restore *r, pid_t restorer)
{
	/* Looked up after the request: the restorer may have died before it. */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != restorer)
		_exit(1);
	default_signals();
	if (build(r, &r->shared->err) < 0)
		_exit(1);
	forget_libc();
	stub_enter(r->stub);
}

static int no_pid(struct restore *r, int code, struct usnap_err *err)
{
	if (code == -EEXIST) {
		usnap_fail(err, code, "cannot restore '%s': PID %d is in use", r->o->image,
			   (int)r->pid);
		return usnap_hint(err, "--pid-namespace gives the process its own numbers");
	}
	usnap_fail_errno(err, code, "cannot make process %d", (int)r->pid);
	if (code == -EPERM)
		return usnap_hint(err, "choosing a PID takes CAP_CHECKPOINT_RESTORE; "
				       "--pid-namespace does without");
	return code;
}

int builder_start(struct restore *r, struct usnap_err *err)
{
	pid_t set_tid[] = {r->pid}, restorer = getpid();
	int pidfd = -1;
	struct clone_args args = {
		.flags = CLONE_PIDFD,
		.pidfd = (uintptr_t)&pidfd,
		.exit_signal = SIGCHLD,
		.set_tid = (uintptr_t)set_tid,
		.set_tid_size = 1,
	};

	r->shared = mmap(NULL, sizeof(*r->shared), PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (r->shared == MAP_FAILED) {
		r->shared = NULL;
		return usnap_fail_errno(err, -errno, "cannot make process %d", (int)r->pid);
	}
	long pid;
	for (unsigned tries = 0; (pid = syscall(SYS_clone3, &args, sizeof(args))) < 0 &&
				 errno == EEXIST && tries < ID_TRIES;
	     tries++)
		usleep(ID_WAIT_US);
	if (pid == 0)
		builder_main(r, restorer);
	if (pid < 0)
		return no_pid(r, -errno, err);
	r->builder = (pid_t)pid;
	r->builder_pidfd = pidfd;
	int ret = stub_wait_ready(r->stub, pidfd, r->o->cancel);
	if (ret == 0)
		return 0;

	struct usnap_err why = r->shared->err;
	builder_kill(r);
	why.text[sizeof(why.text) - 1] = why.hint[sizeof(why.hint) - 1] = '\0';
	if (why.code >= 0)
		return usnap_fail(err, -ECHILD, "cannot restore '%s': the new process was killed",
				  r->o->image);
	usnap_fail(err, why.code, "%s", why.text);
	return why.hint[0] ? usnap_hint(err, "%s", why.hint) : why.code;
}

void builder_kill(struct restore *r)
{
	if (r->builder <= 0)
		return;
	syscall(SYS_pidfd_send_signal, r->builder_pidfd, SIGKILL, NULL, 0);
	rthreads_reap(r);
	while (waitpid(r->builder, NULL, __WALL) < 0 && errno == EINTR)
		;
	close(r->builder_pidfd);
	r->builder = 0;
	r->builder_pidfd = -1;
}

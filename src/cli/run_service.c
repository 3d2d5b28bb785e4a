/*
 * Snapshots that "run" takes: "uffd-snap snapshot" as a child, and when it is
 * through, "uffd-snap prune". One at a time; when the next is due before that,
 * it comes right after.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cli/cmd_run.h"
#include "cli/msg.h"
#include "cli/readiness.h"
#include "common/compat.h"
#include "common/procstat.h"
#include "common/util.h"
#include "store/registry.h"

#define NS_PER_S UINT64_C(1000000000)
#define NS_PER_MS UINT64_C(1000000)

enum {
	END_S = 30, /* what is being done when the process has ended may take */
	GIVE_UP_S = 5, /* and this when it was told to end */
	REST_S = 120 /* who has been told to end, and has not by then, goes on */
};

/* ---- the standard error of another process ---------------------------------------------------- */

/* Of the process that is looked after; the caller closes. */
static int their_stderr(const struct run_service *s)
{
	cleanup_fd int pidfd = (int)syscall(SYS_pidfd_open, s->program.pid, 0);

	return pidfd < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, pidfd, STDERR_FILENO, 0);
}

/* -1 when it is another file by now: it may be the program's data. */
static int messages(const struct run_service *s)
{
	cleanup_fd int fd = s->messages ? their_stderr(s) : -1;
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0 || st.st_dev != s->messages_dev ||
	    st.st_ino != s->messages_ino)
		return -1;
	return take_fd(&fd);
}

void run_service_detach(struct run_service *s)
{
	cleanup_fd int theirs = their_stderr(s), null = open("/dev/null", O_RDWR | O_CLOEXEC);
	struct stat st;

	if (theirs >= 0 && fstat(theirs, &st) == 0) {
		s->messages = true;
		s->messages_dev = st.st_dev;
		s->messages_ino = st.st_ino;
	}
	/* Whoever waits for the end of a pipe or a terminal does not wait for this. */
	for (int fd = STDIN_FILENO; null >= 0 && fd <= STDERR_FILENO; fd++)
		dup2(null, fd);
	setsid();
	if (chdir("/") < 0)
		return;
}

/* ---- at work ------------------------------------------------------------------------------- */

static void begin_child(struct run_service *s, const char **argv, const char *what)
{
	cleanup_fd int fd = messages(s);
	pid_t pid = run_self(argv, fd, -1);

	if (pid < 0)
		msg_error("cannot %s process %d: %s", what, (int)s->program.pid, strerror(-pid));
	s->at_work = pid < 0 ? 0 : pid;
}

static size_t add_common(const struct run_service *s, const struct run_passed *passed,
			 const char **argv, size_t n)
{
	argv[n++] = "-q";
	argv[n++] = "--skip-if-busy";
	if (s->args->store) {
		argv[n++] = "--store";
		argv[n++] = s->args->store;
	}
	for (size_t i = 0; i < passed->nr; i++)
		argv[n++] = passed->arg[i];
	return n;
}

/* T0 of the last image; 0 where nothing is known of one. */
static uint64_t taken_ms(const struct run_service *s)
{
	struct registry_taken taken;

	return registry_taken(s->program.pid, s->program.start_ticks, &taken) ? taken.t0_ms : 0;
}

static void snapshot(struct run_service *s)
{
	const char *argv[RUN_MAX_PASSED + 16] = {"uffd-snap", "snapshot"};
	char which[64];
	size_t n = add_common(s, &s->args->snapshot, argv, 2);

	/* The last that is given counts. */
	if (s->wants_full)
		argv[n++] = "--full-every=1";
	/* The PID alone may be another's in a moment. */
	snprintf(which, sizeof(which), "%d:%" PRIu64, (int)s->program.pid, s->program.start_ticks);
	argv[n++] = "--name";
	argv[n++] = s->name;
	argv[n++] = which;
	argv[n] = NULL;
	s->wanted = false;
	s->prunes = false;
	s->taken_ms = taken_ms(s);
	begin_child(s, argv, "take");
}

static void prune(struct run_service *s)
{
	const char *argv[RUN_MAX_PASSED + 16] = {"uffd-snap", "prune"};
	size_t n = add_common(s, &s->args->prune, argv, 2);

	argv[n++] = s->name;
	argv[n] = NULL;
	s->prunes = true;
	begin_child(s, argv, "prune the images of");
}

/* While it can still be helped. Each reason once. */
static void warn_of_obstacle(struct run_service *s, const char *file)
{
	cleanup_fd int fd = messages(s), ours = -1;
	struct obstacle o;

	if (!run_image_obstacle(s->args, file, &o) || !strcmp(o.kind, s->obstacle))
		return;
	memcpy(s->obstacle, o.kind, sizeof(s->obstacle));
	if (fd >= 0 && (ours = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3)) >= 0)
		dup2(fd, STDERR_FILENO);
	msg_warning("the image of '%s' cannot be brought back by itself: %s: %s; "
		    "--restore-or-start would take an older one; --ignore %s goes on without",
		    s->name, o.kind, o.detail, o.kind);
	if (ours >= 0)
		dup2(ours, STDERR_FILENO);
}

static void look_at_image(struct run_service *s)
{
	struct registry_taken taken;
	char *slash;

	if (!registry_taken(s->program.pid, s->program.start_ticks, &taken) ||
	    !(slash = strrchr(taken.file, '/')))
		return;
	warn_of_obstacle(s, taken.file);
	*slash = '\0';
	if (s->args->command && !*s->program.image && !s->remembered)
		s->remembered = run_command_remember(s->args, taken.file);
}

static void reap(struct run_service *s)
{
	int status;
	pid_t pid = s->at_work ? waitpid(s->at_work, &status, WNOHANG) : 0;

	if (!pid || (pid < 0 && errno == EINTR))
		return;
	s->at_work = 0;
	if (pid < 0 || s->prunes || !WIFEXITED(status) || WEXITSTATUS(status))
		return;
	/* One that found others at work has taken none. */
	const uint64_t last_ms = taken_ms(s);
	if (!last_ms || last_ms != s->taken_ms)
		s->wants_full = false;
	look_at_image(s);
	if (s->args->prune.nr && !s->ends)
		prune(s);
}

/* ---- on a signal --------------------------------------------------------------------------- */

static bool read_asked(const struct run_service *s, uint64_t *ret)
{
	struct agent_found found;

	if (!s->beacon || agent_look(s->program.pid, s->beacon, &found) <= 0)
		return false;
	*ret = found.block.asked;
	return true;
}

/* The agent of a program that was exec()ed lies elsewhere, and counts anew. */
static bool find_agent(struct run_service *s)
{
	struct agent_found found;
	uint64_t now = now_ns();

	if (s->looked_ns && now - s->looked_ns < NS_PER_S)
		return false;
	s->looked_ns = now;
	s->beacon = 0;
	if (!readiness_agent(s->program.pid, 0, &found))
		return false;
	s->beacon = found.beacon;
	/* When we began with the program, all that it has counted is since then. */
	if (found.block.restored || (s->args->pid && !s->args->background))
		s->asked = found.block.asked;
	else
		s->asked = 0;
	return true;
}

static void look_at_signal(struct run_service *s)
{
	uint64_t asked;

	if (!read_asked(s, &asked) && !(find_agent(s) && read_asked(s, &asked)))
		return;
	if (asked != s->asked)
		s->wanted = true;
	s->asked = asked;
}

/* ---- time ---------------------------------------------------------------------------------- */

void run_service_begin(struct run_service *s, const struct run_args *a, const struct run_program *p)
{
	struct registry ready = {0};
	struct procstat stat;

	*s = (struct run_service){.args = a, .program = *p};
	s->next_ns = now_ns() + a->every_s * NS_PER_S;
	/* It would continue the newest, which is damaged, and be as useless. */
	s->wants_full = p->distrusts;
	if (*a->name)
		snprintf(s->name, sizeof(s->name), "%s", a->name);
	else if (registry_load(&ready) < 0 ||
		 !(readiness_of(&ready, p->pid, true, s->name) && *s->name))
		store_name_from(procstat_read(p->pid, &stat) == 0 ? stat.comm : "", s->name);
	registry_free(&ready);
}

int run_service_tick(void *arg)
{
	struct run_service *s = arg;
	uint64_t every = s->args->every_s * NS_PER_S, now;
	int wait_ms = s->args->on_signal ? RUN_SIGNAL_LOOK_MS : -1;

	reap(s);
	if (s->args->on_signal)
		look_at_signal(s);
	now = now_ns();
	if (now < s->rests_ns)
		s->wanted = false;
	if (every && now >= s->next_ns) {
		s->wanted |= now >= s->rests_ns;
		s->next_ns += (now - s->next_ns) / every * every + every;
	}
	if (s->wanted && !s->at_work)
		snapshot(s);
	if (every) {
		uint64_t left_ms = (s->next_ns - now) / NS_PER_MS + 1;

		if (wait_ms < 0 || left_ms < (uint64_t)wait_ms)
			wait_ms = (int)MIN(left_ms, (uint64_t)3600000);
	}
	return wait_ms;
}

void run_service_last(struct run_service *s)
{
	s->wanted = s->ends = true;
	/* Removing can wait: the next one goes on with it. */
	if (s->at_work && s->prunes)
		kill(s->at_work, SIGTERM);
}

bool run_service_is_idle(const struct run_service *s)
{
	return !s->wanted && (!s->at_work || s->prunes);
}

void run_service_rest(struct run_service *s)
{
	s->wanted = false;
	s->rests_ns = now_ns() + REST_S * NS_PER_S;
}

/* One of those it waits for; or that somebody wants an end: true. */
static bool wait_a_while(uint64_t until_ns)
{
	static const int signals[] = {SIGCHLD, SIGTERM, SIGINT, SIGQUIT};
	uint64_t now = now_ns();
	/* Orphans of the program may end between: the end that counts is asked for again. */
	struct timespec t = {.tv_nsec =
				     until_ns > now ? (long)MIN(until_ns - now, NS_PER_S / 2) : 0};
	sigset_t set;

	sigemptyset(&set);
	for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
		sigaddset(&set, signals[i]);
	int sig = sigtimedwait(&set, NULL, &t);
	return sig > 0 && sig != SIGCHLD;
}

bool run_service_end(struct run_service *s)
{
	static const int means[] = {SIGTERM, SIGKILL, 0};
	uint64_t until_ns = now_ns() + END_S * NS_PER_S;
	size_t nr = 0;
	bool told = false;
	int status;
	pid_t r;

	while (s->at_work &&
	       ((r = waitpid(s->at_work, &status, WNOHANG)) == 0 || (r < 0 && errno == EINTR))) {
		if (wait_a_while(until_ns)) {
			told = true;
			if (!nr)
				until_ns = now_ns();
		}
		if (now_ns() < until_ns)
			continue;
		if (!means[nr])
			break;
		kill(s->at_work, means[nr++]);
		until_ns = now_ns() + GIVE_UP_S * NS_PER_S;
	}
	s->at_work = 0;
	return told;
}

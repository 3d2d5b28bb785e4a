/* The program: started with the agent, or brought back from the newest image that is good. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

#include <jansson.h>

#include "cli/cli.h"
#include "cli/cmd_run.h"
#include "cli/msg.h"
#include "cli/refs.h"
#include "common/io.h"
#include "common/procstat.h"
#include "common/util.h"
#include "image/image.h"
#include "store/links.h"
#include "store/registry.h"
#include "store/storelock.h"
#include "store/storetime.h"

extern char **environ;

void run_signals(sigset_t *ret)
{
	static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGCHLD};
	struct sigaction sa;

	sigemptyset(ret);
	for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
		/* As started by nohup, or in the background by a shell without job control: blocked, it
		 * would wait for us. */
		if (sigaction(signals[i], NULL, &sa) < 0 || sa.sa_handler != SIG_IGN)
			sigaddset(ret, signals[i]);
}

/* ---- children ------------------------------------------------------------------------------ */

pid_t run_self(const char *const argv[], int error_fd, int keep_fd)
{
	posix_spawn_file_actions_t files;
	posix_spawnattr_t attr;
	sigset_t none;
	pid_t pid;

	sigemptyset(&none);
	posix_spawnattr_init(&attr);
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK);
	posix_spawn_file_actions_init(&files);
	if (keep_fd >= 0) {
		posix_spawn_file_actions_adddup2(&files, keep_fd, keep_fd);
	} else {
		posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
		posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
	}
	if (error_fd >= 0)
		posix_spawn_file_actions_adddup2(&files, error_fd, STDERR_FILENO);
	int r = posix_spawn(&pid, "/proc/self/exe", &files, &attr, (char **)argv, environ);

	posix_spawn_file_actions_destroy(&files);
	posix_spawnattr_destroy(&attr);
	return r ? -r : pid;
}

int run_reap(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -1;
	return status;
}

/* ---- started ------------------------------------------------------------------------------- */

static char *own_directory(void)
{
	char *path;

	if (io_readlink_at(AT_FDCWD, "/proc/self/exe", &path) < 0)
		return NULL;
	char *slash = strrchr(path, '/');

	if (slash)
		*slash = '\0';
	return path;
}

/* Where it was built, and where it is installed. The caller frees; NULL: nowhere. */
static char *find_agent(void)
{
	static const char *const places[] = {"", "/../lib", "/../lib64", "/../lib/x86_64-linux-gnu",
					     "/../lib/aarch64-linux-gnu"};
	cleanup_free char *dir = own_directory();
	char *path;

	for (size_t i = 0; dir && i < ARRAY_SIZE(places); i++) {
		cleanup_free char *file = NULL;

		if (asprintf(&file, "%s%s/libuffd-snap-agent.so", dir, places[i]) < 0)
			file = NULL;
		/* Without "..": the program may change its root. */
		if (file && access(file, R_OK) == 0 && (path = realpath(file, NULL)))
			return path;
	}
	return NULL;
}

static int set_environment(const struct run_args *a, const char *agent)
{
	const char *others = getenv("LD_PRELOAD");
	cleanup_free char *preload = NULL, *dir = own_directory(), *command = NULL;
	int r = 0;

	/* Snapshots are our business. */
	unsetenv("UFFD_SNAP_EVERY");
	unsetenv("UFFD_SNAP_KEEP");
	if (a->store)
		r |= setenv("UFFD_SNAP_STORE", a->store, 1);
	if (!agent)
		return r;
	if (asprintf(&preload, "%s%s%s", agent, others && *others ? ":" : "",
		     others ? others : "") < 0)
		preload = NULL;
	if (dir && asprintf(&command, "%s/uffd-snap", dir) < 0)
		command = NULL;
	r |= !preload || setenv("LD_PRELOAD", preload, 1);
	r |= setenv("UFFD_SNAP_NAME", a->name, 1);
	if (command && access(command, X_OK) == 0)
		r |= setenv("UFFD_SNAP_COMMAND", command, 0);
	return r;
}

__attribute__((noreturn)) static void become(const struct run_args *a, const char *agent, int tell)
{
	sigset_t none;
	int error;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	errno = ENOMEM;
	if (set_environment(a, agent) == 0)
		execvp(a->command[0], a->command);
	error = errno;
	io_write_full(tell, &error, sizeof(error));
	_exit(EXIT_CANNOT_RUN);
}

int run_program_start(const struct run_args *a, struct run_program *ret)
{
	cleanup_free char *agent = a->no_agent ? NULL : find_agent();
	int tell[2], error = 0;
	struct procstat stat;

	if (!agent && !a->no_agent) {
		struct usnap_err err = {0};

		usnap_fail(&err, -ENOENT,
			   "cannot run '%s': the agent, libuffd-snap-agent.so, is not found",
			   a->command[0]);
		usnap_hint(&err, "install it beside this command, or use --no-agent");
		msg_failure(&err);
		return EXIT_CANNOT_RUN;
	}
	if (pipe2(tell, O_CLOEXEC) < 0) {
		msg_error("cannot run '%s': %s", a->command[0], strerror(errno));
		return EXIT_CANNOT_RUN;
	}
	pid_t pid = fork();
	if (pid == 0)
		become(a, agent, tell[1]);
	if (pid < 0)
		error = errno;
	close(tell[1]);
	if (pid > 0)
		/* It says nothing when it has become the program. */
		while (read(tell[0], &error, sizeof(error)) < 0 && errno == EINTR)
			;
	close(tell[0]);
	if (error) {
		if (pid > 0)
			run_reap(pid);
		msg_error("cannot run '%s': %s", a->command[0], strerror(error));
		return error == ENOENT ? EXIT_NOT_FOUND : EXIT_CANNOT_RUN;
	}
	*ret = (struct run_program){.child = pid, .pid = pid};
	if (procstat_read(pid, &stat) == 0)
		ret->start_ticks = stat.start_ticks;
	return 0;
}

/* ---- restored ------------------------------------------------------------------------------ */

/* What the restore writes where it believes a file to be. 0: it ended without. */
static pid_t hear_pid(int fd, pid_t restore, int *ret_signal)
{
	struct signalfd_siginfo si;
	char text[16] = "";
	size_t len = 0;
	sigset_t set;

	run_signals(&set);
	sigdelset(&set, SIGCHLD);
	sigdelset(&set, SIGUSR1);
	cleanup_fd int signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	while (len < sizeof(text) - 1 && !strchr(text, '\n')) {
		struct pollfd p[] = {{.fd = fd, .events = POLLIN},
				     {.fd = signals, .events = POLLIN}};

		if (poll(p, ARRAY_SIZE(p), -1) < 0 && errno != EINTR)
			break;
		if (p[1].revents & POLLIN && read(signals, &si, sizeof(si)) == sizeof(si)) {
			*ret_signal = (int)si.ssi_signo;
			/* It undoes what it has done. */
			kill(restore, *ret_signal);
		}
		if (!p[0].revents)
			continue;
		ssize_t n = read(fd, text + len, sizeof(text) - 1 - len);

		if (n <= 0)
			break;
		len += (size_t)n;
		text[len] = '\0';
	}
	return (pid_t)strtol(text, NULL, 10);
}

/* The process that an image shows, if it is there yet: whoever looked after it was killed alone. 0: it
 * is not. */
static pid_t still_runs(const char *path)
{
	cleanup_free char *boot = NULL;
	json_t *o = run_image_member(path, "snapshot.json"), *target;
	const char *boot_id;
	pid_t pid = 0;

	target = json_object_get(o, "target");
	boot_id = json_string_value(json_object_get(target, "boot_id"));
	if (boot_id && *boot_id &&
	    io_read_file_at(AT_FDCWD, "/proc/sys/kernel/random/boot_id", 64, &boot, NULL) == 0 &&
	    !strncmp(boot, boot_id, strlen(boot_id))) {
		json_int_t id = json_integer_value(json_object_get(target, "pid"));
		json_int_t ticks = json_integer_value(json_object_get(target, "start_ticks"));

		if (id > 0 && id <= INT32_MAX && procstat_is((pid_t)id, (uint64_t)ticks))
			pid = (pid_t)id;
	}
	json_decref(o);
	return pid;
}

/* One that is ready under this name, and whose last image, or the one it was made of, lies in this
 * directory. 0: there is none. */
static pid_t lives_by_name(const struct run_args *a, const char *dir)
{
	cleanup_free char *real = realpath(dir, NULL);
	size_t len = real ? strlen(real) : 0;
	struct registry_taken taken;
	struct registry r;
	pid_t pid = 0;

	if (!real || registry_load(&r) < 0)
		return 0;
	for (size_t i = 0; i < r.nr && !pid; i++) {
		const struct registry_entry *e = &r.entry[i];

		if (e->counts && !strcmp(e->name, a->name) &&
		    registry_taken(e->pid, e->start_ticks, &taken) &&
		    !strncmp(taken.file, real, len) && taken.file[len] == '/')
			pid = e->pid;
	}
	registry_free(&r);
	return pid;
}

static int refuse_twice(const struct run_args *a, const struct store *store,
			const struct store_images *images, struct usnap_err *err)
{
	const struct store_image *newest = store_newest(images, NULL, wall_ns() / 1000000);
	cleanup_free char *dir = NULL, *path = NULL;
	pid_t pid;

	if (!newest)
		return 0;
	if (asprintf(&dir, "%s/%s", store_path(store), a->name) < 0)
		dir = NULL;
	if (dir && asprintf(&path, "%s/%s", dir, newest->file) < 0)
		path = NULL;
	if (!path)
		return usnap_fail_errno(err, -ENOMEM, "cannot bring back '%s'", a->name);
	if (!(pid = lives_by_name(a, dir)) && !(pid = still_runs(path)))
		return 0;
	usnap_fail(err, -EEXIST, "cannot bring back '%s': it still runs, as process %d", a->name,
		   (int)pid);
	return usnap_hint(err, "end it, or go on with it: uffd-snap run --pid %d ...", (int)pid);
}

enum outcome {
	RUNS,
	DAMAGED,
	FAILED
};

static enum outcome restore_one(const struct run_args *a, const char *ref, struct run_program *ret,
				int *ret_signal)
{
	char file[32];
	const char *argv[RUN_MAX_PASSED + 16] = {"uffd-snap",	 "restore",   "-q",
						 "--own-output", "--pidfile", file};
	size_t n = 6;
	int pipe_[2];
	struct procstat stat;

	if (pipe2(pipe_, O_CLOEXEC) < 0)
		return FAILED;
	snprintf(file, sizeof(file), "/proc/self/fd/%d", pipe_[1]);
	if (a->store) {
		argv[n++] = "--store";
		argv[n++] = a->store;
	}
	for (size_t i = 0; i < a->restore.nr; i++)
		argv[n++] = a->restore.arg[i];
	argv[n++] = "--";
	argv[n++] = ref;
	argv[n] = NULL;
	pid_t child = run_self(argv, -1, pipe_[1]);

	close(pipe_[1]);
	pid_t pid = child > 0 ? hear_pid(pipe_[0], child, ret_signal) : 0;

	close(pipe_[0]);
	if (child < 0) {
		msg_error("cannot restore '%s': %s", ref, strerror(-child));
		return FAILED;
	}
	if (pid <= 0) {
		int status = run_reap(child);

		return WIFEXITED(status) && WEXITSTATUS(status) == EXIT_DAMAGED ? DAMAGED : FAILED;
	}
	ret->child = child;
	ret->pid = pid;
	ret->start_ticks = 0;
	if (procstat_read(pid, &stat) == 0)
		ret->start_ticks = stat.start_ticks;
	return RUNS;
}

/* One that a restore would refuse, wherever it was tried. */
static bool is_unfit(const struct run_args *a, const char *dir, const char *ref, const char *file)
{
	cleanup_free char *path = NULL;
	struct obstacle o;

	if (asprintf(&path, "%s/%s", dir, file) < 0)
		path = NULL;
	if (!path || !run_image_obstacle(a, path, &o))
		return false;
	msg_error("cannot restore '%s': %s: %s", ref, o.kind, o.detail);
	msg_error("skipped: '%s'; --ignore %s goes on without", ref, o.kind);
	return true;
}

/* Whether something else than what image i refers to is in its place, as restore has said. What may not be
 * read may be as good as any. */
static bool lacks_ancestor(const char *dir, const struct store_images *images,
			   const struct store_link *links, size_t i)
{
	struct usnap_image *img = usnap_image_new();
	cleanup_free char *path = NULL;
	struct usnap_err err = {0};
	bool lacks = false;

	if (asprintf(&path, "%s/%s", dir, images->image[i].file) < 0)
		path = NULL;
	if (img && path && usnap_image_open(img, path) == 0 && img_load_index(img) == 0)
		lacks = img_open_chain(img, &err) == -ESTALE;
	usnap_image_free(img);
	bool any = false;
	for (size_t k = 0; lacks && k < links[i].nr_needs; k++) {
		const struct store_link *l = &links[links[i].needs[k]];

		any |= l->damaged;
		lacks = l->readable || l->damaged;
	}
	return lacks && any;
}

static void tell_of_age(const struct run_args *a, const struct store_images *images, size_t i)
{
	const struct store_image *newest = store_newest(images, NULL, wall_ns() / 1000000);
	const size_t past = (size_t)(newest - images->image) + 1;
	char age[RUN_AGE_MAX];

	if (past < images->nr && i < past)
		msg_warning(
			"%zu images of '%s' are of times later than now and were passed over: the "
			"clock is wrong, or was",
			images->nr - past, a->name);
	if (&images->image[i] >= newest)
		return;
	run_image_age(newest->t0_ms - images->image[i].t0_ms, age);
	msg_warning("'%s' is as it was %s before its newest image", a->name, age);
}

/* Which are tried, one after the other: from the newest back, and those from the future after them; what
 * is to be avoided, and was taken since, when nothing else is left. */
static void put_in_order(const struct store_images *images, uint64_t avoid_ms, size_t *order)
{
	const uint64_t now_ms = store_time_ms(images, wall_ns() / 1000000);
	size_t n = 0;

	for (unsigned pass = 0; pass < 4; pass++)
		for (size_t i = images->nr; i-- > 0;) {
			const uint64_t t0_ms = images->image[i].t0_ms;
			unsigned avoid = avoid_ms && t0_ms >= avoid_ms;

			if (avoid * 2 + (t0_ms > now_ms) == pass)
				order[n++] = i;
		}
}

static enum outcome try_each(const struct run_args *a, const struct store *store,
			     const struct store_images *images, const struct store_link *links,
			     struct run_program *ret, int *ret_signal)
{
	char ref[STORE_NAME_MAX + STORE_ID_LEN + 2], id[sizeof(ref)];
	cleanup_free char *dir = NULL;
	char stamp[STORETIME_STAMP + 1];
	bool skipped = false, unfit = false;

	if (asprintf(&dir, "%s/%s", store_path(store), a->name) < 0)
		dir = NULL;
	cleanup_free size_t *order = calloc(images->nr + 1, sizeof(*order));

	if (order)
		put_in_order(images, ret->avoid_ms, order);
	for (size_t n = 0; dir && order && n < images->nr; n++) {
		const size_t i = order[n];
		enum outcome o = DAMAGED;

		/* Whoever reads it knows the time from list; of two at once it would be one. */
		snprintf(id, sizeof(id), "%s@%s", a->name, images->image[i].id);
		if (storetime_stamp(images->image[i].t0_ms, stamp) == 0)
			snprintf(ref, sizeof(ref), "%s@%s", a->name, stamp);
		else
			memcpy(ref, id, sizeof(ref));
		if (!links[i].readable) {
			msg_error("%s", links[i].why);
			/* One that we may not read may be as good as any. */
			if (!links[i].damaged)
				o = FAILED;
		} else if (links[i].nr_missing) {
			msg_error("cannot restore '%s': it needs image %s, which is missing", ref,
				  links[i].missing);
		} else if (is_unfit(a, dir, ref, images->image[i].file)) {
			unfit = true;
			continue;
		} else {
			o = restore_one(a, id, ret, ret_signal);
			if (o == FAILED && lacks_ancestor(dir, images, links, i))
				o = DAMAGED;
		}
		ret->distrusts = skipped;
		if (o == RUNS && !a->quiet)
			msg_info("brought back '%s' as process %d", ref, (int)ret->pid);
		if (o == RUNS) {
			memcpy(ret->image, images->image[i].id, sizeof(ret->image));
			ret->image_t0_ms = images->image[i].t0_ms;
			tell_of_age(a, images, i);
			if (run_command_differs(a, dir))
				msg_warning("'%s' goes on with the command that it was started "
					    "with: the one that is given now differs",
					    a->name);
		}
		if (o != DAMAGED)
			return o;
		msg_error("skipped: '%s'", ref);
		skipped = ret->distrusts = true;
	}
	/* What is whole holds the data, by hand if not by itself. */
	return unfit || !dir || !order ? FAILED : DAMAGED;
}

/* Whoever removes images is waited for, unless a signal that wants an end comes first: they are blocked,
 * and would not interrupt flock(2). */
static int lock_images(struct store_lock **ret, struct store *store, const char *name,
		       int *ret_signal, struct usnap_err *err)
{
	const struct store_lock_options o = {.no_wait = true};
	const struct timespec moment = {.tv_nsec = 100 * 1000 * 1000};
	sigset_t set;
	int r;

	run_signals(&set);
	sigdelset(&set, SIGCHLD);
	sigdelset(&set, SIGUSR1);
	while ((r = store_lock(ret, store, name, STORE_READ, &o, err)) == -EBUSY) {
		int sig = sigtimedwait(&set, NULL, &moment);

		*err = (struct usnap_err){0};
		if (sig > 0) {
			*ret_signal = sig;
			return -ECANCELED;
		}
	}
	return r;
}

int run_program_restore(const struct run_args *a, struct run_program *ret, bool *ret_found,
			int *ret_signal)
{
	struct usnap_err err = {0};
	struct store *store = NULL;
	struct store_lock *lock = NULL;
	struct store_images images = {0};
	struct store_link *links = NULL;
	enum outcome o = DAMAGED;
	int r = refs_open_store(&store, a->store, &err);

	*ret_found = false;
	*ret_signal = 0;
	if (r == 0)
		r = lock_images(&lock, store, a->name, ret_signal, &err);
	if (r == 0 && (r = store_scan(store, a->name, &images, &err)) == 0)
		r = store_links_load(store, a->name, &images, &links, &err);
	if (r == 0)
		r = refuse_twice(a, store, &images, &err);
	if (r == 0)
		o = try_each(a, store, &images, links, ret, ret_signal);
	if (links)
		store_links_free(links, images.nr);
	store_images_free(&images);
	store_unlock(lock);
	store_close(store);
	if (r == -ECANCELED)
		return EXIT_FAILED;
	if (r < 0 && r != -ENOENT)
		return msg_failure(&err);
	if (o == FAILED) {
		/* What is in the image may be all that there is of the data: nothing is put in its
		 * place unless somebody says so. */
		usnap_fail(&err, -EIO, "cannot bring back '%s', and it is not started anew",
			   a->name);
		usnap_hint(&err, "to have it start anew, remove its images: uffd-snap rm --all %s",
			   a->name);
		if (!*ret_signal)
			msg_failure(&err);
		return EXIT_FAILED;
	}
	*ret_found = o == RUNS;
	return 0;
}

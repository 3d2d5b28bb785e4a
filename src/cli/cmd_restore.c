#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/cmd_restore.h"
#include "cli/msg.h"
#include "cli/obstacle.h"
#include "cli/refs.h"
#include "cli/restore_agent.h"
#include "cli/show.h"
#include "common/io.h"
#include "common/util.h"

enum {
	MAX_THREADS = 256,
	MAX_GIVEN = 4096, /* --fd, --ignore */
	MAX_FD = 1 << 20
};

struct restore_args {
	struct restore_options o;
	struct restore_fd fds[MAX_GIVEN];
	const char *ignore[MAX_GIVEN];
	const char *pidfile; /* or NULL */
	bool dry_run, json, quiet;
};

static volatile sig_atomic_t interrupted;

static void on_signal(int sig)
{
	interrupted = sig;
}

static void catch_signals(void)
{
	static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};
	struct sigaction sa = {.sa_handler = on_signal}, old;

	for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
		/* What nohup or a shell without job control ignores stays ignored. */
		if (sigaction(signals[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
			sigaction(signals[i], &sa, NULL);
	sa.sa_handler = SIG_IGN;
	sigaction(SIGPIPE, &sa, NULL);
	/* Whoever started us may ignore it: then nobody could wait for the process. */
	sa.sa_handler = SIG_DFL;
	sigaction(SIGCHLD, &sa, NULL);
}

static void on_progress(void *ctx, uint64_t done, uint64_t total)
{
	struct restore_front *f = ctx;

	/* Not before: the clocks may have been set since. */
	if (!f->progress_started)
		progress_start(&f->progress, f->quiet);
	f->progress_started = true;
	progress_update(&f->progress, "restoring", done, total);
}

/* The process stands complete. */
static void on_complete(void *ctx, pid_t pid)
{
	struct restore_front *f = ctx;

	progress_end(&f->progress);
	if (!f->detach)
		front_lend_terminal(f, pid);
}

/* ---- what cannot be ------------------------------------------------------------------------ */

static const char *word_for(const struct restore_problem *p)
{
	if (p->severity == RESTORE_NOTE)
		return "note";
	return p->ignored ? "ignored" : "cannot";
}

static bool is_obstacle(const struct restore_problem *p)
{
	return p->severity != RESTORE_NOTE && !p->ignored;
}

/* One line for each kind: a server has a thousand connections. */
static void warn(const struct restore *r)
{
	size_t n;
	const struct restore_problem *p = restore_problems(r, &n);

	for (size_t i = 0; i < n; i++) {
		size_t more = 0;
		bool seen = is_obstacle(&p[i]);

		for (size_t k = 0; k < n; k++)
			if (!strcmp(p[i].kind, p[k].kind) && p[i].severity == p[k].severity) {
				seen |= k < i;
				more += k > i;
			}
		if (!seen && more)
			msg_info("%s: %s: %s (and %zu more)", word_for(&p[i]), p[i].kind,
				 p[i].detail, more);
		else if (!seen)
			msg_info("%s: %s: %s", word_for(&p[i]), p[i].kind, p[i].detail);
	}
}

static void show_place(const json_t *place)
{
	const char *why = json_string_value(json_object_get(place, "why"));

	if (json_is_true(json_object_get(place, "pid_namespace"))) {
		printf("  numbers: its own, in a new PID namespace");
		if (json_is_true(json_object_get(place, "user_namespace")))
			printf(" within a new user namespace");
		if (why) {
			printf(" (");
			show_text(why);
			putchar(')');
		}
		putchar('\n');
	} else {
		puts(why ? "  numbers: not to be had" : "  numbers: its own");
	}
	puts(json_is_true(json_object_get(place, "time_namespace"))
		     ? "  clocks: its own, in a new time namespace"
		     : "  clocks: those of this machine");
}

static int show_plan(const struct restore *r, const struct restore_args *a)
{
	size_t n, obstacles = 0;
	const struct restore_problem *p = restore_problems(r, &n);
	json_t *o = restore_describe(r);

	for (size_t i = 0; i < n; i++)
		obstacles += is_obstacle(&p[i]);
	if (a->json) {
		if (o)
			json_object_set_new(o, "can_restore", json_boolean(!obstacles));
		int code = show_json(o);
		return code == EXIT_DONE && obstacles ? EXIT_FAILED : code;
	}
	fputs(obstacles ? "cannot restore '" : "would restore '", stdout);
	show_text(a->o.image);
	printf("' as process %d\n", (int)json_integer_value(json_object_get(o, "pid")));
	show_place(json_object_get(o, "place"));
	for (size_t i = 0; i < n; i++) {
		printf("  %s: ", word_for(&p[i]));
		show_text(p[i].kind);
		fputs(": ", stdout);
		show_text(p[i].detail);
		if (p[i].hint) {
			fputs("; ", stdout);
			show_text(p[i].hint);
		}
		putchar('\n');
	}
	json_decref(o);
	return obstacles ? EXIT_FAILED : EXIT_DONE;
}

/* ---- what was done ------------------------------------------------------------------------- */

static void show_done(struct restore *r, const struct restore_args *a, pid_t pid,
		      uint64_t elapsed_ns)
{
	/* In the foreground standard output is the process's. */
	FILE *out = a->o.detach ? stdout : stderr;

	if (a->json) {
		json_t *o = restore_describe(r);
		char *text;

		if (o) {
			json_object_set_new(o, "pid_here", json_integer(pid));
			json_object_set_new(o, "elapsed_ns", json_integer((json_int_t)elapsed_ns));
		}
		text = o ? json_dumps(o, JSON_COMPACT) : NULL;
		if (text)
			fprintf(out, "%s\n", text);
		free(text);
		json_decref(o);
	} else if (a->o.detach) {
		printf("%d\n", (int)pid);
	}
	if (show_flush(out) < 0 && a->o.detach)
		msg_warning("process %d runs, though nobody was told", (int)pid);
}

/* Before anything is made: who counts on the file is not to have a process without it. */
static int try_pidfile(const char *path, struct usnap_err *err)
{
	struct stat st;

	/* Who reads a pipe would take the trial for all there is; a link is followed when it is time. */
	if (lstat(path, &st) == 0 && !S_ISREG(st.st_mode))
		return 0;
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	if (fd >= 0)
		unlink(path);
	else if (errno == EEXIST)
		fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return usnap_fail_errno(err, -errno, "cannot write '%s'", path);
	close(fd);
	return 0;
}

/* It runs, whatever becomes of the file. */
static void write_pidfile(const char *path, pid_t pid)
{
	cleanup_fd int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	char text[16];
	int n = snprintf(text, sizeof(text), "%d\n", (int)pid), r;

	r = fd < 0 ? -errno : io_write_full(fd, text, (size_t)n);
	if (r < 0)
		msg_warning("cannot write '%s': %s", path, strerror(-r));
}

static int fail(struct restore_front *f, struct usnap_err *err)
{
	progress_end(&f->progress);
	front_reset_terminal(f);
	if (interrupted) {
		msg_error("interrupted: nothing was restored");
		/* As the shell expects of a command that a signal ended. */
		signal(interrupted, SIG_DFL);
		raise(interrupted);
	}
	return msg_failure(err);
}

/* A number that was free when the restore was planned may be another process's when it is wanted:
 * another plan finds it in use, and a PID namespace instead. Standard input cannot be read again. */
static bool is_overtaken(const struct restore_args *a, int code)
{
	return code == -EEXIST && a->o.pids == RESTORE_PIDS_AUTO && !a->o.from_input;
}

/* What stands in the way may be a limit of ours. */
static void hint_limit(struct usnap_err *err)
{
	struct rlimit rl;

	if (*err->hint)
		return;
	if (err->code == -EFBIG)
		usnap_hint(err, "raise the limit on file sizes (ulimit -f)");
	else if (err->code == -ENOMEM && getrlimit(RLIMIT_AS, &rl) == 0 &&
		 rl.rlim_cur != RLIM_INFINITY)
		usnap_hint(err, "raise the limit on address space (ulimit -v)");
}

/* A command with file capabilities is not dumpable, its files in /proc belong to root, and so would those
 * of the processes that are built. Tracing it takes its capabilities, all the same. */
static void own_our_files(void)
{
	if (prctl(PR_GET_DUMPABLE) != 1)
		prctl(PR_SET_DUMPABLE, 1);
}

/* refs: the image, and the lock that keeps it in the store until it is not needed any more. */
static int restore(const struct restore_args *a, struct refs *refs, struct restore_front *f)
{
	struct usnap_err err = {0};
	struct restore *r = NULL;
	struct restore_watch watch;
	uint64_t start = wall_ns();
	pid_t pid = 0;
	int code = restore_plan(&r, &a->o, &err);

	if (code < 0)
		return fail(f, &err);
	if (a->dry_run) {
		code = show_plan(r, a);
		restore_free(r);
		return code;
	}
	if (!a->quiet)
		warn(r);
	code = a->pidfile ? try_pidfile(a->pidfile, &err) : 0;
	if (code == 0)
		code = restore_build(r, &pid, &err);
	if (is_overtaken(a, code)) {
		restore_free(r);
		r = NULL;
		err = (struct usnap_err){0};
		code = restore_plan(&r, &a->o, &err);
		if (code == 0)
			code = restore_build(r, &pid, &err);
	}
	refs_unlock(refs);
	if (code < 0) {
		restore_free(r);
		hint_limit(&err);
		return fail(f, &err);
	}
	restore_agent(pid, a->o.from_input ? NULL : a->o.image);
	if (a->pidfile)
		write_pidfile(a->pidfile, pid);
	show_done(r, a, pid, wall_ns() - start);
	restore_watch_begin(r, &watch);
	restore_free(r);
	if (!a->o.detach)
		return front_stand_in(f, &watch, pid, &interrupted);
	restore_watch_end(&watch);
	return EXIT_DONE;
}

/* ---- options ------------------------------------------------------------------------------- */

static bool parse_number(const char *text, uint64_t min, uint64_t max, uint64_t *ret)
{
	char *end;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	unsigned long long v = strtoull(text, &end, 10);
	*ret = v;
	return !errno && !*end && v >= min && v <= max;
}

/* "N=PATH", "N=inherit". */
static int parse_fd(struct restore_args *a, char *text)
{
	char *path = strchr(text, '=');
	uint64_t fd;

	if (path)
		*path++ = '\0';
	if (!path || !*path || !parse_number(text, 0, MAX_FD, &fd)) {
		if (path)
			path[-1] = '=';
		return cli_usage_error(&cmd_restore,
				       "cannot use '%s' as --fd: N=PATH or N=inherit is wanted",
				       text);
	}
	for (size_t i = 0; i < a->o.nr_fds; i++)
		if (a->fds[i].fd == (int)fd)
			return cli_usage_error(&cmd_restore,
					       "cannot use --fd %d=...: %d was given already",
					       (int)fd, (int)fd);
	if (a->o.nr_fds == MAX_GIVEN)
		return cli_usage_error(&cmd_restore, "cannot use more than %d --fd", MAX_GIVEN);
	a->fds[a->o.nr_fds++] = (struct restore_fd){
		.fd = (int)fd,
		.path = strcmp(path, "inherit") ? path : NULL,
	};
	return EXIT_DONE;
}

static int parse_ignore(struct restore_args *a, const char *kind)
{
	int code = obstacle_check_kind(kind);

	if (code != EXIT_DONE)
		return code;
	if (a->o.nr_ignore == MAX_GIVEN)
		return cli_usage_error(&cmd_restore, "cannot use more than %d --ignore", MAX_GIVEN);
	a->ignore[a->o.nr_ignore++] = kind;
	return EXIT_DONE;
}

static int run_parsed(struct restore_args *a, const char *image, const char *store)
{
	struct refs refs = {0};
	struct usnap_err err = {0};
	int code;

	/* Shared with the process that builds within a namespace. */
	struct restore_front *f =
		mmap(NULL, sizeof(*f), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (f == MAP_FAILED) {
		msg_error("cannot restore '%s': out of memory", image);
		return EXIT_FAILED;
	}
	if (refs_add(&refs, image, store, REFS_ONE, &err) < 0) {
		refs_close(&refs);
		return msg_failure(&err);
	}
	a->o.from_input = !strcmp(refs.path[0], "-");
	a->o.image = a->o.from_input ? "standard input" : refs.path[0];
	if (a->quiet)
		msg_set_level(MSG_QUIET);
	a->o.fds = a->fds;
	a->o.ignore = a->ignore;
	a->o.cancel = &interrupted;
	a->o.ctx = f;
	a->o.progress = on_progress;
	a->o.complete = on_complete;
	own_our_files();
	/* As an error it can be told of. The process gets its own actions. */
	signal(SIGXFSZ, SIG_IGN);
	front_begin(f);
	f->quiet = a->quiet || a->json;
	f->detach = a->o.detach;
	f->stopped = a->o.stopped;
	catch_signals();
	code = restore(a, &refs, f);
	refs_close(&refs);
	return code;
}

static int run(int argc, char **argv)
{
	enum {
		OPT_PID_NAMESPACE = 256,
		OPT_SAME_PID,
		OPT_DETACH,
		OPT_STOPPED,
		OPT_DRY_RUN,
		OPT_FD,
		OPT_IGNORE,
		OPT_ALLOW_CHANGED,
		OPT_OWN_OUTPUT,
		OPT_THREADS,
		OPT_STORE,
		OPT_PIDFILE,
		OPT_JSON
	};
	static const struct option options[] = {
		{"pid-namespace", no_argument, NULL, OPT_PID_NAMESPACE},
		{"same-pid", no_argument, NULL, OPT_SAME_PID},
		{"detach", no_argument, NULL, OPT_DETACH},
		{"stopped", no_argument, NULL, OPT_STOPPED},
		{"dry-run", no_argument, NULL, OPT_DRY_RUN},
		{"fd", required_argument, NULL, OPT_FD},
		{"ignore", required_argument, NULL, OPT_IGNORE},
		{"allow-changed-files", no_argument, NULL, OPT_ALLOW_CHANGED},
		{"own-output", no_argument, NULL, OPT_OWN_OUTPUT},
		{"threads", required_argument, NULL, OPT_THREADS},
		{"store", required_argument, NULL, OPT_STORE},
		{"pidfile", required_argument, NULL, OPT_PIDFILE},
		{"json", no_argument, NULL, OPT_JSON},
		{"quiet", no_argument, NULL, 'q'},
		{0},
	};
	static struct restore_args a;
	const char *store = NULL;
	bool space = false, same = false;
	uint64_t n;
	int c, code;

	opterr = 0;
	while ((c = getopt_long(argc, argv, ":q", options, NULL)) != -1) {
		switch (c) {
		case OPT_PID_NAMESPACE:
			space = true;
			break;
		case OPT_SAME_PID:
			same = true;
			break;
		case OPT_DETACH:
			a.o.detach = true;
			break;
		case OPT_STOPPED:
			a.o.stopped = true;
			break;
		case OPT_DRY_RUN:
			a.dry_run = true;
			break;
		case OPT_FD:
			if ((code = parse_fd(&a, optarg)) != EXIT_DONE)
				return code;
			break;
		case OPT_IGNORE:
			if ((code = parse_ignore(&a, optarg)) != EXIT_DONE)
				return code;
			break;
		case OPT_ALLOW_CHANGED:
			a.o.allow_changed_files = true;
			break;
		case OPT_OWN_OUTPUT:
			a.o.own_output = true;
			break;
		case OPT_THREADS:
			if (!parse_number(optarg, 1, MAX_THREADS, &n))
				return cli_usage_error(&cmd_restore,
						       "cannot use '%s' as --threads: a number "
						       "from 1 to %d is wanted",
						       optarg, MAX_THREADS);
			a.o.nr_threads = (unsigned)n;
			break;
		case OPT_STORE:
			store = optarg;
			break;
		case OPT_PIDFILE:
			a.pidfile = optarg;
			break;
		case OPT_JSON:
			a.json = true;
			break;
		case 'q':
			a.quiet = true;
			break;
		case ':':
			return cli_usage_error(&cmd_restore, "cannot use '%s': it takes a value",
					       argv[optind - 1]);
		default:
			return cli_usage_error(&cmd_restore, "cannot use '%s': no such option",
					       argv[optind - 1]);
		}
	}
	if (optind >= argc)
		return cli_usage_error(&cmd_restore, "cannot restore: no FILE given");
	if (optind + 1 < argc)
		return cli_usage_error(&cmd_restore,
				       "cannot restore '%s' as well: one image at a time",
				       argv[optind + 1]);
	if (space && same)
		return cli_usage_error(&cmd_restore, "cannot use --same-pid with --pid-namespace");
	a.o.pids = space ? RESTORE_PIDS_NAMESPACE : same ? RESTORE_PIDS_SAME : RESTORE_PIDS_AUTO;
	return run_parsed(&a, argv[optind], store);
}

const struct cli_command cmd_restore = {
	.name = "restore",
	.args = "FILE|NAME[@TIME] [OPTION]...",
	.summary = "bring the process of an image back to life",
	.help = "      --pid-namespace  give it its PIDs in a PID namespace of its own\n"
		"      --same-pid       give it its PIDs here, or fail\n"
		"      --detach         let it run by itself, and print its PID\n"
		"      --stopped        leave it stopped, for a debugger\n"
		"      --dry-run        say what would be done, and what cannot be\n"
		"      --fd N=PATH      open PATH for descriptor N; 'inherit': the own one\n"
		"      --ignore KIND    go on although this cannot come back\n"
		"      --allow-changed-files  accept mapped and open files that have changed\n"
		"      --own-output     write logs through the own descriptors 0 to 2\n"
		"      --threads N      threads that decompress (default: one per CPU)\n"
		"      --store DIR      the store, if not the usual one\n"
		"      --pidfile FILE   write the PID of the process into FILE\n"
		"      --json           print what was done as JSON\n"
		"  -q, --quiet          print nothing but errors\n"
		"\n"
		"FILE '-' is standard input. Without --detach, signals are passed on to the\n"
		"process, and the exit status is that of the process.\n",
	.run = run,
};

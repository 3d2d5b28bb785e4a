#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "capture/capture.h"
#include "cli/cli.h"
#include "cli/msg.h"
#include "cli/obstacle.h"
#include "cli/progress.h"
#include "cli/show.h"
#include "cli/snapshot_args.h"
#include "cli/snapshot_dest.h"
#include "cli/snapshot_parent.h"
#include "cli/snapshot_run.h"
#include "cli/snapshot_sync.h"
#include "cli/unattended.h"
#include "common/procstat.h"
#include "common/util.h"
#include "image/writer.h"
#include "process/target.h"
#include "store/registry.h"

enum {
	MAX_TORN = 2,
	FRAME_PAGES = 64
};

static const volatile sig_atomic_t *interrupted;

static void on_progress(void *arg, const char *what, uint64_t done, uint64_t total)
{
	progress_update(arg, what, done, total);
}

/* One process, with everything open that it takes. */
struct snapshot {
	const struct snapshot_args *args;
	struct target target;
	struct snapshot_dest dest;
	struct snapshot_parent parent;
	struct image_writer *writer;
	struct capture *capture;
	struct progress progress;
	struct snapshot_run run;
	struct snapshot_sync sync;
};

static bool is_ignored(const void *arg, const char *kind)
{
	const struct snapshot_args *a = arg;

	for (size_t i = 0; i < a->nr_ignore; i++)
		if (!strcmp(a->ignore[i], kind))
			return true;
	return false;
}

/* An image that nobody can start again is no reason to end a process. */
static int judge(void *arg, const json_t *process, struct usnap_err *err)
{
	const struct snapshot *s = arg;
	struct obstacle o;

	if (!obstacle_find(process, is_ignored, s->args, &o))
		return 0;
	usnap_fail(err, -EOPNOTSUPP,
		   "cannot end process %d, which could not be brought back: %s: %s%s",
		   (int)s->run.pid, o.kind, o.detail, o.nr > 1 ? " (and more)" : "");
	return usnap_hint(err, "--ignore %s ends it all the same, and is for restore then", o.kind);
}

static int capture(struct snapshot *s, struct usnap_err *err)
{
	const struct snapshot_args *a = s->args;
	const struct image_writer_options wo = {
		.fd = output_fd(s->dest.output),
		.page_size = (uint32_t)sysconf(_SC_PAGESIZE),
		.level = a->level,
		.frame_pages = FRAME_PAGES,
		.seed = s->dest.store ? &s->dest.seed : NULL,
		.cancel = interrupted,
	};
	int r = image_writer_open(&s->writer, &wo, err);

	if (r == 0)
		r = snapshot_parent_adopt(&s->parent, s->writer, &s->target, err);
	const struct capture_options co = {
		.pool_bytes = a->memory,
		.nr_threads = a->threads,
		.hold = !a->no_hold,
		.kill = a->kill,
		.ghost_limit = a->ghost_limit,
		.parent_id = s->parent.id,
		.parent_path = s->parent.path,
		.depth = s->parent.depth + 1,
		.rate_bytes_s = a->rate_bytes_s,
		.full_because = *s->parent.why ? s->parent.why : NULL,
		.max_torn = MAX_TORN,
		.cancel = interrupted,
		.progress = on_progress,
		.progress_arg = &s->progress,
		.before_freeze = a->sync_fd >= 0 ? snapshot_sync_before : NULL,
		.after_freeze = a->sync_fd >= 0 ? snapshot_sync_after : NULL,
		.freeze_arg = &s->sync,
		.by_itself = a->sync_fd >= 0,
		.judge = a->kill ? judge : NULL,
		.judge_arg = s,
	};
	if (r == 0)
		r = capture_run(&s->capture, &s->target, s->writer, &co, err);
	return r;
}

/* "-", or another name of the same pipe. */
static bool is_our_stdout(const struct output *o)
{
	struct stat a, b;

	return output_is_stream(o) && fstat(output_fd(o), &a) == 0 &&
	       fstat(STDOUT_FILENO, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

static void report(struct snapshot *s, uint64_t start)
{
	/* A stream carries the image: the summary goes where it does not mix. */
	FILE *out = is_our_stdout(s->dest.output) ? stderr : stdout;

	progress_end(&s->progress);
	s->run.path = s->dest.path;
	s->run.stats = *capture_get_stats(s->capture);
	image_writer_get_stats(s->writer, &s->run.written);
	s->run.continues = s->parent.id != NULL;
	s->run.full_because = s->parent.why;
	s->run.elapsed_ns = now_ns() - start;
	snapshot_print(out, s->args, &s->run);
	/* Before what a command of --on-success prints. */
	if (show_flush(out) < 0)
		msg_warning("image '%s' is complete, though nobody was told", s->dest.path);
	if (s->run.stats.inject_left)
		msg_warning(
			"what held back discards in process %d could not be taken out again; it "
			"does nothing, and the next snapshot tries again",
			(int)s->run.pid);
}

/* Says what happened as a whole. Returns the exit status. ret_signal: the command is to end by it, as
 * the shell expects, once everybody has been told; or 0. */
static int fail(const struct snapshot *s, struct usnap_err *err, int *ret_signal)
{
	const int signal_ = *interrupted;

	*ret_signal = 0;
	if (s->dest.busy) {
		msg_info("skipped: %s", err->text);
		return EXIT_DONE;
	}
	if (err->code == -ECANCELED && signal_ == SIGALRM) {
		*err = (struct usnap_err){0};
		usnap_fail(err, -ETIMEDOUT,
			   "cannot snapshot process %d: not done within %" PRIu64
			   " s; no image was written, it runs on",
			   (int)s->run.pid, s->args->timeout_s);
	} else if (err->code == -ECANCELED && signal_) {
		*err = (struct usnap_err){0};
		usnap_fail(err, -ECANCELED, "interrupted: no image was written, process %d runs on",
			   (int)s->run.pid);
		*ret_signal = signal_;
	}
	return msg_failure(err);
}

/* *err says that another snapshot has the process. */
static int hint_busy(struct snapshot *s, struct usnap_err *err)
{
	s->dest.busy = s->args->skip_if_busy;
	return usnap_hint(err, "try again when that has ended; --skip-if-busy ends well instead");
}

/* What the kernel tells of it may have another cause as well, which the process that is at it
 * then does not have. */
static int blame_other(struct snapshot *s, struct usnap_err *err)
{
	struct procstat stat;
	struct registry_taken taken;

	if (procstat_read(s->run.pid, &stat) < 0 ||
	    !registry_taken(s->run.pid, stat.start_ticks, &taken) || taken.by <= 0 ||
	    taken.by == getpid())
		return err->code;
	*err = (struct usnap_err){0};
	usnap_fail(err, -EBUSY, "cannot snapshot process %d: it is being taken by process %d",
		   (int)s->run.pid, (int)taken.by);
	return hint_busy(s, err);
}

/* Whoever asked to be told. Nothing of this undoes an image. */
static int tell(const struct snapshot_args *a, const struct snapshot_run *run, int code)
{
	struct usnap_err err = {0};

	if (snapshot_metrics(a, run, &err) < 0)
		code = cli_worse(code, msg_failure(&err));
	err = (struct usnap_err){0};
	if (snapshot_hook(a, run, interrupted, &err) < 0)
		code = cli_worse(code, msg_failure(&err));
	return code;
}

static int take(const struct snapshot_args *a, pid_t pid, bool is_one_of_many)
{
	struct snapshot s = {.args = a,
			     .run = {.pid = pid, .name = "", .path = "", .store = ""},
			     .sync = {a->sync_fd, interrupted}};
	struct usnap_err err = {0};
	uint64_t start;
	bool opened = false;
	int code = EXIT_DONE, registered = -1, deadly = 0;

	if (a->quiet)
		msg_set_level(MSG_QUIET);
	progress_start(&s.progress, a->quiet || a->json);
	int r = snapshot_dest_lock(&s.dest, a, pid, is_one_of_many, interrupted, &err);

	s.run.name = *s.dest.name ? s.dest.name : a->name ? a->name : "";
	s.run.store = s.dest.store ? store_path(s.dest.store) : "";
	if (r == 0)
		r = snapshot_sync_attach(&s.sync, &err);
	start = now_ns();
	if (r == 0) {
		r = target_open(&s.target, pid, &err);
		opened = r == 0;
	}
	if (r == 0 && a->query.start_ticks &&
	    !procstat_same_start(s.target.start_ticks, a->query.start_ticks))
		r = usnap_fail(&err, -ESRCH,
			       "cannot snapshot process %d: it is not the one that was started at "
			       "%" PRIu64,
			       (int)pid, a->query.start_ticks);
	if (r == 0) {
		registered = registry_begin(pid, s.target.start_ticks);
		if (registered == -EBUSY) {
			usnap_fail(
				&err, -EBUSY,
				"cannot snapshot process %d: it is being taken by another snapshot",
				(int)pid);
			r = hint_busy(&s, &err);
		}
	}
	if (r == 0)
		r = snapshot_dest_open(&s.dest, a, &s.target, &err);
	if (r == 0)
		r = snapshot_parent_open(&s.parent, a, &s.dest, &err);
	if (r == 0)
		r = capture(&s, &err);
	if (r == 0)
		r = snapshot_dest_commit(&s.dest, &err);
	if (r == -EBUSY && !s.dest.busy)
		r = blame_other(&s, &err);
	if (r == 0) {
		report(&s, start);
		snapshot_sync_done(&s.sync);
	}
	capture_end(s.capture, a->kill && r == 0);
	registry_end(registered, s.run.stats.t0_realtime_ns / 1000000, r == 0 ? s.dest.path : NULL);
	image_writer_close(s.writer);
	snapshot_parent_close(&s.parent);
	progress_end(&s.progress);
	/* What was not committed is gone before anybody is told, and who is told may want the name. */
	snapshot_dest_release(&s.dest);
	if (r < 0) {
		code = fail(&s, &err, &deadly);
		s.run.error = err.text;
	}
	if (!s.dest.busy)
		code = tell(a, &s.run, code);
	snapshot_dest_close(&s.dest);
	if (opened)
		target_close(&s.target);
	if (deadly) {
		signal(deadly, SIG_DFL);
		raise(deadly);
	}
	return code;
}

/* Nobody was found: the name that its images have had, so that whoever watches sees them fail. */
static int fail_unfound(const struct snapshot_args *a, struct usnap_err *err)
{
	const struct names_query *q = &a->query;
	char name[STORE_NAME_MAX + 1] = "";
	struct snapshot_run run = {.name = name, .path = "", .store = "", .error = err->text};

	if (a->name)
		run.name = a->name;
	else if (q->unit)
		names_of_unit(q->unit, name);
	else if (q->comm)
		store_name_from(q->comm, name);
	else if (q->exe) {
		const char *base = strrchr(q->exe, '/') ? strrchr(q->exe, '/') + 1 : q->exe;
		char comm[16];

		/* As much of it as the process calls itself. */
		snprintf(comm, sizeof(comm), "%.15s", base);
		store_name_from(comm, name);
	}
	return tell(a, &run, msg_failure(err));
}

/* Takes each of them. Those of one name are told apart by their PIDs: a chain is of one process. */
static int take_all(const struct snapshot_args *a, const pid_t *pids, size_t nr)
{
	char(*names)[STORE_NAME_MAX + 1] = calloc(nr + 1, sizeof(*names));
	struct usnap_err err = {0};
	int code = EXIT_DONE;

	if (!names) {
		usnap_fail_errno(&err, -ENOMEM, "cannot snapshot");
		return msg_failure(&err);
	}
	for (size_t i = 0; i < nr && !a->output; i++)
		snapshot_dest_name(a, pids[i], names[i], NULL);
	for (size_t i = 0; i < nr; i++) {
		bool again = false;

		for (size_t k = 0; k < nr && !again && *names[i]; k++)
			again = k != i && !strcmp(names[i], names[k]);
		code = cli_worse(code, take(a, pids[i], again));
	}
	free(names);
	return code;
}

/* The target waits for pages that we hold: a stop from the terminal would be one of the target. */
static void refuse_stops(void)
{
	static const int signals[] = {SIGTSTP, SIGTTIN, SIGTTOU};

	for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
		signal(signals[i], SIG_IGN);
}

static int run(int argc, char **argv)
{
	struct usnap_err err = {0};
	struct snapshot_args a;
	cleanup_free pid_t *pids = NULL;
	size_t nr = 1;
	int code = snapshot_args_parse(argc, argv, &a);

	if (code >= 0)
		return code;
	interrupted = unattended_catch_signals();
	refuse_stops();
	if (a.timeout_s)
		unattended_limit_time(a.timeout_s);
	if (unattended_be_modest(a.nice, a.idle, &err) < 0 ||
	    (a.sync_fd >= 0 && snapshot_sync_open(a.sync_fd, &err) < 0))
		return msg_failure(&err);
	/* A PID alone is not looked up: what is wrong with it, the attempt tells. */
	if (names_query_is_pid(&a.query))
		return take(&a, a.query.pid, false);
	if (names_find(&a.query, &pids, &nr, &err) < 0 ||
	    (nr > 1 && !a.all && names_ambiguous(&a.query, pids, nr, &err) < 0))
		return fail_unfound(&a, &err);
	return take_all(&a, pids, nr);
}

const struct cli_command cmd_snapshot = {
	.name = "snapshot",
	.args = "PID|NAME [-o FILE] [OPTION]...",
	.summary = "take an image of a running process",
	.help = snapshot_args_help,
	.run = run,
};

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "capture/capture.h"
#include "cli/cli.h"
#include "cli/msg.h"
#include "cli/progress.h"
#include "cli/show.h"
#include "common/util.h"
#include "image/output.h"
#include "image/writer.h"
#include "process/target.h"

enum {
	MAX_TORN = 2,
	MAX_THREADS = 256,
	MAX_LEVEL = 19,
	FRAME_PAGES = 64
};

struct snapshot_args {
	pid_t pid;
	const char *output;
	int level;
	unsigned threads;
	size_t memory;
	uint64_t ghost_limit;
	bool no_hold, kill, json, quiet;
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
	sigaction(SIGPIPE, &sa, NULL); /* a closed pipe is an error of write(2) */
}

static void on_progress(void *arg, const char *what, uint64_t done, uint64_t total)
{
	progress_update(arg, what, done, total);
}

static void print_json(FILE *out, const struct snapshot_args *a, const struct capture_stats *s,
		       const struct image_writer_stats *w, uint64_t elapsed_ns)
{
	json_t *j = json_pack(
		"{s:i, s:s?, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:i, s:b, s:I, s:I}",
		"pid", (int)a->pid, "file", a->output, "t0_realtime_ns",
		(json_int_t)s->t0_realtime_ns, "t0_monotonic_ns", (json_int_t)s->t0_monotonic_ns,
		"pause_ns", (json_int_t)s->pause_ns, "elapsed_ns", (json_int_t)elapsed_ns,
		"memory_bytes", (json_int_t)s->bytes_populated, "file_bytes",
		(json_int_t)w->file_bytes, "faults", (json_int_t)s->faults, "fault_max_ns",
		(json_int_t)s->fault_max_ns, "arm_ns", (json_int_t)s->arm_ns, "torn", (int)s->torn,
		"held", (int)s->held, "threads", (json_int_t)s->threads, "regions",
		(json_int_t)s->regions);
	char *text = j ? json_dumps(j, JSON_COMPACT) : NULL;

	if (text)
		fprintf(out, "%s\n", text);
	free(text);
	json_decref(j);
}

static void print_summary(FILE *out, const struct snapshot_args *a, const struct capture_stats *s,
			  const struct image_writer_stats *w, uint64_t elapsed_ns)
{
	char memory[24], file[24];

	fprintf(out, "%s: %s of memory in %s, %.1f s, pause %.2f ms", a->output,
		show_size(memory, s->bytes_populated), show_size(file, w->file_bytes),
		(double)elapsed_ns / 1e9, (double)s->pause_ns / 1e6);
	if (s->held)
		fprintf(out, " (%s)", a->kill ? "stopped at T0" : "threads held for the copy");
	if (s->torn)
		fprintf(out, ", %u torn attempt%s: %s", s->torn, s->torn == 1 ? "" : "s",
			s->torn_reason);
	fputc('\n', out);
}

static int fail(const struct snapshot_args *a, struct progress *progress, struct usnap_err *err)
{
	progress_end(progress);
	if (err->code == -ECANCELED && interrupted) {
		msg_error("interrupted: no image was written, process %d runs on", (int)a->pid);
		/* As the shell expects of a command that a signal ended. */
		signal(interrupted, SIG_DFL);
		raise(interrupted);
	}
	return msg_failure(err);
}

static int take(const struct snapshot_args *a)
{
	struct usnap_err err = {0};
	struct target target;
	struct output *output = NULL;
	struct image_writer *writer = NULL;
	struct capture *capture = NULL;
	struct progress progress;
	struct image_writer_stats ws;
	uint64_t start = now_ns();

	progress_start(&progress, a->quiet || a->json);
	int r = target_open(&target, a->pid, &err);
	if (r < 0)
		return fail(a, &progress, &err);
	r = output_open(&output, a->output, &err);
	if (r == 0) {
		struct image_writer_options wo = {
			.fd = output_fd(output),
			.page_size = (uint32_t)sysconf(_SC_PAGESIZE),
			.level = a->level,
			.frame_pages = FRAME_PAGES,
		};
		r = image_writer_open(&writer, &wo, &err);
	}
	if (r == 0) {
		struct capture_options co = {
			.pool_bytes = a->memory,
			.nr_threads = a->threads,
			.hold = !a->no_hold,
			.kill = a->kill,
			.ghost_limit = a->ghost_limit,
			.max_torn = MAX_TORN,
			.cancel = &interrupted,
			.progress = on_progress,
			.progress_arg = &progress,
		};
		r = capture_run(&capture, &target, writer, &co, &err);
	}
	if (r == 0)
		r = output_commit(output, &err);
	if (r == 0) {
		/* A stream carries the image: the summary goes where it does not mix. */
		FILE *out =
			output_is_stream(output) && strcmp(a->output, "-") == 0 ? stderr : stdout;

		progress_end(&progress);
		image_writer_get_stats(writer, &ws);
		if (a->json)
			print_json(out, a, capture_get_stats(capture), &ws, now_ns() - start);
		else if (!a->quiet)
			print_summary(out, a, capture_get_stats(capture), &ws, now_ns() - start);
	}
	capture_end(capture, a->kill && r == 0);
	image_writer_close(writer);
	output_close(output);
	target_close(&target);
	return r < 0 ? fail(a, &progress, &err) : EXIT_DONE;
}

/* A whole number, with a suffix K, M or G where suffixes is set. */
static bool parse_number(const char *text, uint64_t min, uint64_t max, bool suffixes, uint64_t *ret)
{
	char *end;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	unsigned long long v = strtoull(text, &end, 10);
	if (errno)
		return false;
	if (suffixes && *end && !end[1]) {
		static const char units[] = "KMG";
		const char *u = strchr(units, *end >= 'a' ? *end - 'a' + 'A' : *end);

		if (!u || v > UINT64_MAX >> 10 * (u - units + 1))
			return false;
		v <<= 10 * (u - units + 1);
		end++;
	}
	*ret = v;
	return !*end && v >= min && v <= max;
}

static int run(int argc, char **argv)
{
	enum {
		OPT_LEVEL = 256,
		OPT_THREADS,
		OPT_MEMORY,
		OPT_GHOST_LIMIT,
		OPT_NO_HOLD,
		OPT_KILL,
		OPT_JSON,
		OPT_HELP
	};
	static const struct option options[] = {
		{"output", required_argument, NULL, 'o'},
		{"level", required_argument, NULL, OPT_LEVEL},
		{"threads", required_argument, NULL, OPT_THREADS},
		{"memory", required_argument, NULL, OPT_MEMORY},
		{"ghost-limit", required_argument, NULL, OPT_GHOST_LIMIT},
		{"no-hold", no_argument, NULL, OPT_NO_HOLD},
		{"kill", no_argument, NULL, OPT_KILL},
		{"json", no_argument, NULL, OPT_JSON},
		{"quiet", no_argument, NULL, 'q'},
		{"help", no_argument, NULL, OPT_HELP},
		{0},
	};
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	struct snapshot_args a = {
		.level = 1,
		.threads = cpus < 1 ? 1 : (unsigned)MIN(cpus, MAX_THREADS),
		.memory = MIB(64),
		.ghost_limit = MIB(64),
	};
	uint64_t n;
	int c;

	opterr = 0;
	while ((c = getopt_long(argc, argv, ":o:q", options, NULL)) != -1) {
		switch (c) {
		case 'o':
			a.output = optarg;
			break;
		case OPT_LEVEL:
			if (!parse_number(optarg, 1, MAX_LEVEL, false, &n))
				return cli_usage_error(&cmd_snapshot,
						       "cannot use '%s' as --level: a number from "
						       "1 to %d is wanted",
						       optarg, MAX_LEVEL);
			a.level = (int)n;
			break;
		case OPT_THREADS:
			if (!parse_number(optarg, 1, MAX_THREADS, false, &n))
				return cli_usage_error(&cmd_snapshot,
						       "cannot use '%s' as --threads: a number "
						       "from 1 to %d is wanted",
						       optarg, MAX_THREADS);
			a.threads = (unsigned)n;
			break;
		case OPT_MEMORY:
			if (!parse_number(optarg, MIB(4), (uint64_t)1 << 40, true, &n))
				return cli_usage_error(&cmd_snapshot,
						       "cannot use '%s' as --memory: a size of at "
						       "least 4M is wanted",
						       optarg);
			a.memory = n;
			break;
		case OPT_GHOST_LIMIT:
			if (!parse_number(optarg, 0, (uint64_t)1 << 40, true, &n))
				return cli_usage_error(
					&cmd_snapshot,
					"cannot use '%s' as --ghost-limit: a size is "
					"wanted, 0 for none",
					optarg);
			a.ghost_limit = n;
			break;
		case OPT_NO_HOLD:
			a.no_hold = true;
			break;
		case OPT_KILL:
			a.kill = true;
			break;
		case OPT_JSON:
			a.json = true;
			break;
		case 'q':
			a.quiet = true;
			break;
		case OPT_HELP:
			return cli_help(&cmd_snapshot);
		case ':':
			return cli_usage_error(&cmd_snapshot, "cannot use '%s': it takes a value",
					       argv[optind - 1]);
		default:
			return cli_usage_error(&cmd_snapshot, "cannot use '%s': no such option",
					       argv[optind - 1]);
		}
	}
	if (optind >= argc)
		return cli_usage_error(&cmd_snapshot, "cannot snapshot: no PID given");
	if (optind + 1 < argc)
		return cli_usage_error(&cmd_snapshot,
				       "cannot snapshot '%s' as well: one process at a time",
				       argv[optind + 1]);
	if (!parse_number(argv[optind], 1, INT32_MAX, false, &n))
		return cli_usage_error(&cmd_snapshot, "cannot snapshot '%s': not a PID",
				       argv[optind]);
	if (!a.output)
		return cli_usage_error(&cmd_snapshot, "cannot snapshot: no -o FILE given");
	if (a.kill && a.no_hold)
		return cli_usage_error(&cmd_snapshot,
				       "cannot use --no-hold with --kill, which stops the process");
	a.pid = (pid_t)n;
	catch_signals();
	return take(&a);
}

const struct cli_command cmd_snapshot = {
	.name = "snapshot",
	.args = "PID -o FILE [OPTION]...",
	.summary = "take an image of a running process",
	.help = "  -o, --output FILE   where to write the image; - is standard output\n"
		"      --level N       compression level of zstd, 1 to 19 (default 1)\n"
		"      --threads N     threads that compress (default: one per CPU)\n"
		"      --memory SIZE   memory for pages on their way to the image (default 64M)\n"
		"      --ghost-limit SIZE  content of an unlinked file that the image is to hold\n"
		"                      (default 64M each)\n"
		"      --no-hold       fail rather than hold the threads while memory is copied\n"
		"      --kill          stop the process at T0, end it once the image is complete\n"
		"      --json          print the summary as JSON\n"
		"  -q, --quiet         print nothing but errors\n"
		"      --help          show this help\n",
	.run = run,
};

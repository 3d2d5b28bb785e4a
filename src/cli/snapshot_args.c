#include "cli/snapshot_args.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/obstacle.h"
#include "common/util.h"
#include "store/storetime.h"

enum {
	MAX_THREADS = 256,
	MAX_LEVEL = 19
};

enum {
	OPT_EXE = 256,
	OPT_CGROUP,
	OPT_UNIT,
	OPT_PIDFILE,
	OPT_MATCH,
	OPT_ALL,
	OPT_PARENT,
	OPT_STORE,
	OPT_NAME,
	OPT_FULL_EVERY,
	OPT_LEVEL,
	OPT_THREADS,
	OPT_MEMORY,
	OPT_GHOST_LIMIT,
	OPT_RATE,
	OPT_NO_HOLD,
	OPT_KILL,
	OPT_IGNORE,
	OPT_SKIP_IF_BUSY,
	OPT_TIMEOUT,
	OPT_NICE,
	OPT_IDLE,
	OPT_ON_SUCCESS,
	OPT_ON_FAILURE,
	OPT_METRICS,
	OPT_SYNC_FD,
	OPT_JSON,
	OPT_HELP
};

static const struct option options[] = {
	{"output", required_argument, NULL, 'o'},
	{"exe", required_argument, NULL, OPT_EXE},
	{"cgroup", required_argument, NULL, OPT_CGROUP},
	{"unit", required_argument, NULL, OPT_UNIT},
	{"pidfile", required_argument, NULL, OPT_PIDFILE},
	{"match", required_argument, NULL, OPT_MATCH},
	{"all", no_argument, NULL, OPT_ALL},
	{"parent", required_argument, NULL, OPT_PARENT},
	{"store", required_argument, NULL, OPT_STORE},
	{"name", required_argument, NULL, OPT_NAME},
	{"full-every", required_argument, NULL, OPT_FULL_EVERY},
	{"level", required_argument, NULL, OPT_LEVEL},
	{"threads", required_argument, NULL, OPT_THREADS},
	{"memory", required_argument, NULL, OPT_MEMORY},
	{"ghost-limit", required_argument, NULL, OPT_GHOST_LIMIT},
	{"rate", required_argument, NULL, OPT_RATE},
	{"no-hold", no_argument, NULL, OPT_NO_HOLD},
	{"kill", no_argument, NULL, OPT_KILL},
	{"ignore", required_argument, NULL, OPT_IGNORE},
	{"skip-if-busy", no_argument, NULL, OPT_SKIP_IF_BUSY},
	{"timeout", required_argument, NULL, OPT_TIMEOUT},
	{"nice", required_argument, NULL, OPT_NICE},
	{"idle", no_argument, NULL, OPT_IDLE},
	{"on-success", required_argument, NULL, OPT_ON_SUCCESS},
	{"on-failure", required_argument, NULL, OPT_ON_FAILURE},
	{"metrics", required_argument, NULL, OPT_METRICS},
	{"sync-fd", required_argument, NULL, OPT_SYNC_FD},
	{"json", no_argument, NULL, OPT_JSON},
	{"quiet", no_argument, NULL, 'q'},
	{"help", no_argument, NULL, OPT_HELP},
	{0},
};

const char snapshot_args_help[] =
	"  -o, --output FILE   write the image to FILE, not into the store; - is standard\n"
	"                      output\n"
	"      --parent FILE   with -o: refer to pages that FILE, an earlier image of the\n"
	"                      process, has already\n"
	"      --store DIR     the store, if not the usual one ($UFFD_SNAP_STORE, or\n"
	"                      /var/lib/uffd-snap)\n"
	"      --name NAME     name in the store (default: that of the process)\n"
	"      --full-every N  at least every Nth image in the store refers to no other\n"
	"      --exe PROGRAM   the process that runs this program: a path, or the last\n"
	"                      part of one or of argv[0]\n"
	"      --cgroup CGROUP  the process in this control group\n"
	"      --unit UNIT     the main process of this unit of systemd\n"
	"      --pidfile FILE  the process whose PID is in FILE\n"
	"      --match REGEX   the process with such a command line\n"
	"      --all           every process that fits, one after the other\n"
	"      --level N       compression level of zstd, 1 to 19 (default 1)\n"
	"      --threads N     threads that compress (default: one per CPU)\n"
	"      --memory SIZE   memory for pages on their way to the image (default 64M)\n"
	"      --ghost-limit SIZE  content of an unlinked file that the image is to hold\n"
	"                      (default 64M each)\n"
	"      --rate SIZE     bytes of memory to read and write in a second, at most\n"
	"      --no-hold       fail rather than hold the threads while memory is copied\n"
	"      --kill          stop the process at T0, end it once the image is complete\n"
	"      --ignore KIND   with --kill: end it although this cannot come back\n"
	"      --skip-if-busy  end well when another snapshot has the store's name,\n"
	"                      or the process\n"
	"      --timeout TIME  give up after this long: 90, 5m, 1h30m\n"
	"      --nice N        run at this niceness, 1 to 19\n"
	"      --idle          use what CPU and disk others leave\n"
	"      --on-success COMMAND  run this shell command for each image taken\n"
	"      --on-failure COMMAND  run this shell command for each failure\n"
	"      --metrics FILE  keep figures for Prometheus in FILE\n"
	"      --sync-fd FD    keep in step with whoever is at this socket\n"
	"      --json          print the summary as JSON\n"
	"  -q, --quiet         print nothing but errors\n";

/* A whole number, with a suffix K, M, G or T where suffixes is set. */
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
		static const char units[] = "KMGT";
		const char *u = strchr(units, *end >= 'a' ? *end - 'a' + 'A' : *end);

		if (!u || v > UINT64_MAX >> 10 * (u - units + 1))
			return false;
		v <<= 10 * (u - units + 1);
		end++;
	}
	*ret = v;
	return !*end && v >= min && v <= max;
}

static int wanted(const char *option, const char *what)
{
	return cli_usage_error(&cmd_snapshot, "cannot use '%s' as %s: %s is wanted", optarg, option,
			       what);
}

/* Options with numbers. -1: done, or the exit status. */
static int set_number(int c, struct snapshot_args *a)
{
	uint64_t n;

	switch (c) {
	case OPT_LEVEL:
		if (!parse_number(optarg, 1, MAX_LEVEL, false, &n))
			return wanted("--level", "a number from 1 to 19");
		a->level = (int)n;
		break;
	case OPT_THREADS:
		if (!parse_number(optarg, 1, MAX_THREADS, false, &n))
			return wanted("--threads", "a number from 1 to 256");
		a->threads = (unsigned)n;
		break;
	case OPT_MEMORY:
		if (!parse_number(optarg, MIB(4), (uint64_t)1 << 40, true, &n))
			return wanted("--memory", "a size of at least 4M");
		a->memory = n;
		break;
	case OPT_GHOST_LIMIT:
		if (!parse_number(optarg, 0, (uint64_t)1 << 40, true, &a->ghost_limit))
			return wanted("--ghost-limit", "a size, or 0 for none,");
		break;
	case OPT_RATE:
		if (!parse_number(optarg, MIB(1), (uint64_t)1 << 50, true, &a->rate_bytes_s))
			return wanted("--rate", "a size of at least 1M");
		break;
	case OPT_FULL_EVERY:
		if (!parse_number(optarg, 1, 1000000, false, &a->full_every))
			return wanted("--full-every", "a number of images");
		break;
	case OPT_NICE:
		if (!parse_number(optarg, 1, 19, false, &n))
			return wanted("--nice", "a number from 1 to 19");
		a->nice = (int)n;
		break;
	case OPT_SYNC_FD:
		if (!parse_number(optarg, 0, INT32_MAX, false, &n))
			return wanted("--sync-fd", "the number of a descriptor");
		a->sync_fd = (int)n;
		break;
	case OPT_TIMEOUT:
		if (storetime_duration(optarg, &a->timeout_s) < 0 || !a->timeout_s)
			return wanted("--timeout", "a time such as 90s, 5m or 1h");
		break;
	}
	return -1;
}

static void set_text(int c, struct snapshot_args *a)
{
	switch (c) {
	case 'o':
		a->output = optarg;
		break;
	case OPT_EXE:
		a->query.exe = optarg;
		break;
	case OPT_CGROUP:
		a->query.cgroup = optarg;
		break;
	case OPT_UNIT:
		a->query.unit = optarg;
		break;
	case OPT_PIDFILE:
		a->query.pidfile = optarg;
		break;
	case OPT_MATCH:
		a->query.match = optarg;
		break;
	case OPT_PARENT:
		a->parent = optarg;
		break;
	case OPT_STORE:
		a->store = optarg;
		break;
	case OPT_NAME:
		a->name = optarg;
		break;
	case OPT_ON_SUCCESS:
		a->on_success = optarg;
		break;
	case OPT_ON_FAILURE:
		a->on_failure = optarg;
		break;
	case OPT_METRICS:
		a->metrics = optarg;
		break;
	}
}

static int set_ignore(struct snapshot_args *a)
{
	int code = obstacle_check_kind(optarg);

	if (code != EXIT_DONE)
		return code;
	if (a->nr_ignore == SNAPSHOT_MAX_IGNORE)
		return cli_usage_error(&cmd_snapshot, "cannot use more than %d --ignore",
				       SNAPSHOT_MAX_IGNORE);
	a->ignore[a->nr_ignore++] = optarg;
	return -1;
}

static int set(int c, char **argv, struct snapshot_args *a)
{
	switch (c) {
	case OPT_ALL:
		a->all = true;
		return -1;
	case OPT_NO_HOLD:
		a->no_hold = true;
		return -1;
	case OPT_KILL:
		a->kill = true;
		return -1;
	case OPT_IGNORE:
		return set_ignore(a);
	case OPT_SKIP_IF_BUSY:
		a->skip_if_busy = true;
		return -1;
	case OPT_IDLE:
		a->idle = true;
		return -1;
	case OPT_JSON:
		a->json = true;
		return -1;
	case 'q':
		a->quiet = true;
		return -1;
	case OPT_HELP:
		return cli_help(&cmd_snapshot);
	case ':':
		return cli_usage_error(&cmd_snapshot, "cannot use '%s': it takes a value",
				       argv[optind - 1]);
	case '?':
		return cli_usage_error(&cmd_snapshot, "cannot use '%s': no such option",
				       argv[optind - 1]);
	default:
		set_text(c, a);
		return set_number(c, a);
	}
}

/* "PID", "PID:START": PIDs are used again. */
static bool parse_pid(const char *text, struct names_query *q)
{
	char digits[16];
	size_t len = strcspn(text, ":");
	uint64_t n;

	if (len >= sizeof(digits) ||
	    (text[len] && !parse_number(text + len + 1, 1, UINT64_MAX, false, &q->start_ticks)))
		return false;
	memcpy(digits, text, len);
	digits[len] = '\0';
	if (!parse_number(digits, 1, INT32_MAX, false, &n))
		return false;
	q->pid = (pid_t)n;
	return true;
}

/* A PID is a number; anything else is what the process calls itself. */
static int set_target(int argc, char **argv, struct snapshot_args *a)
{
	if (optind + 1 < argc)
		return cli_usage_error(&cmd_snapshot,
				       "cannot snapshot '%s' as well: one process at a time",
				       argv[optind + 1]);
	if (optind < argc) {
		const char *target = argv[optind];

		if (*target && !target[strspn(target, "0123456789:")]) {
			if (!parse_pid(target, &a->query))
				return cli_usage_error(&cmd_snapshot,
						       "cannot snapshot '%s': not a PID", target);
		} else if (!*target || *target == '-') {
			return cli_usage_error(&cmd_snapshot,
					       "cannot snapshot '%s': neither a PID nor a name",
					       target);
		} else {
			a->query.comm = target;
		}
	}
	if (names_query_is_empty(&a->query))
		return cli_usage_error(&cmd_snapshot,
				       "cannot snapshot%s: no PID or NAME given, nor --exe, "
				       "--cgroup, --unit, --pidfile or --match",
				       a->all ? " by --all alone" : "");
	return -1;
}

static int check(const struct snapshot_args *a)
{
	if (a->kill && a->no_hold)
		return cli_usage_error(&cmd_snapshot,
				       "cannot use --no-hold with --kill, which stops the process");
	if (a->nr_ignore && !a->kill)
		return cli_usage_error(&cmd_snapshot,
				       "cannot use --ignore without --kill: a process that runs on "
				       "need not come back");
	if (a->output && (a->store || a->name || a->full_every))
		return cli_usage_error(&cmd_snapshot,
				       "cannot use %s with -o, which is not the store",
				       a->store	 ? "--store"
				       : a->name ? "--name"
						 : "--full-every");
	if (a->parent && !a->output)
		return cli_usage_error(&cmd_snapshot,
				       "cannot use --parent without -o: the store has its own");
	if (a->all && (a->output || a->name))
		return cli_usage_error(&cmd_snapshot,
				       "cannot use %s with --all: each image has its own",
				       a->output ? "-o" : "--name");
	return -1;
}

int snapshot_args_parse(int argc, char **argv, struct snapshot_args *ret)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	struct snapshot_args a = {
		.level = 1,
		.threads = cpus < 1 ? 1 : (unsigned)MIN(cpus, MAX_THREADS),
		.memory = MIB(64),
		.ghost_limit = MIB(64),
		.sync_fd = -1,
	};
	int c, r;

	opterr = 0;
	while ((c = getopt_long(argc, argv, ":o:q", options, NULL)) != -1)
		if ((r = set(c, argv, &a)) >= 0)
			return r;
	if ((r = set_target(argc, argv, &a)) >= 0 || (r = check(&a)) >= 0)
		return r;
	*ret = a;
	return -1;
}

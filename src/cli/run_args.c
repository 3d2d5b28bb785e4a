#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/cmd_run.h"
#include "common/rundir.h"
#include "common/util.h"
#include "store/storetime.h"

/* Options that another command gets as they are. */
enum passed_kind {
	PASS_WORD, /* any value */
	PASS_NOTHING, /* it has none */
	PASS_COUNT,
	PASS_SIZE,
	PASS_TIME
};

enum passed_to {
	TO_SNAPSHOT,
	TO_PRUNE,
	TO_RESTORE
};

static const struct passed {
	const char *name;
	enum passed_kind kind;
	enum passed_to to;
} passed[] = {
	{"keep-last", PASS_COUNT, TO_PRUNE},
	{"keep-hourly", PASS_COUNT, TO_PRUNE},
	{"keep-daily", PASS_COUNT, TO_PRUNE},
	{"keep-weekly", PASS_COUNT, TO_PRUNE},
	{"keep-monthly", PASS_COUNT, TO_PRUNE},
	{"keep-within", PASS_TIME, TO_PRUNE},
	{"max-size", PASS_SIZE, TO_PRUNE},
	{"full-every", PASS_COUNT, TO_SNAPSHOT},
	{"rate", PASS_SIZE, TO_SNAPSHOT},
	{"timeout", PASS_TIME, TO_SNAPSHOT},
	{"idle", PASS_NOTHING, TO_SNAPSHOT},
	{"metrics", PASS_WORD, TO_SNAPSHOT},
	{"on-success", PASS_WORD, TO_SNAPSHOT},
	{"on-failure", PASS_WORD, TO_SNAPSHOT},
	{"ignore", PASS_WORD, TO_RESTORE},
	{"pid-namespace", PASS_NOTHING, TO_RESTORE},
	{"allow-changed-files", PASS_NOTHING, TO_RESTORE},
};

enum {
	OPT_PASSED = 256,
	OPT_NAME = OPT_PASSED + ARRAY_SIZE(passed),
	OPT_STORE,
	OPT_EVERY,
	OPT_RESTORE,
	OPT_RESTART,
	OPT_NO_AGENT,
	OPT_PID,
	OPT_BACKGROUND,
	OPT_HELP
};

static const struct option own_options[] = {
	{"name", required_argument, NULL, OPT_NAME},
	{"store", required_argument, NULL, OPT_STORE},
	{"every", required_argument, NULL, OPT_EVERY},
	{"restore-or-start", no_argument, NULL, OPT_RESTORE},
	{"restart", no_argument, NULL, OPT_RESTART},
	{"no-agent", no_argument, NULL, OPT_NO_AGENT},
	{"pid", required_argument, NULL, OPT_PID},
	{"background", no_argument, NULL, OPT_BACKGROUND},
	{"quiet", no_argument, NULL, 'q'},
	{"help", no_argument, NULL, OPT_HELP},
};

const char run_args_help[] =
	"      --name NAME       name of the process, and in the store (default: that of\n"
	"                        the command)\n"
	"      --store DIR       the store, if not the usual one\n"
	"      --every TIME      take a snapshot so often: 30s, 5m, 1h\n"
	"      --keep-last N     after each snapshot keep the last N images, as 'prune'\n"
	"      --keep-hourly N   keep the last image of each of the last N hours with any\n"
	"      --keep-daily N    the same of days\n"
	"      --keep-weekly N   the same of weeks\n"
	"      --keep-monthly N  the same of months\n"
	"      --keep-within TIME  keep what is at most so much older than the last\n"
	"      --max-size SIZE   remove the oldest until they take no more\n"
	"      --full-every N    at least every Nth image refers to no other (default 24\n"
	"                        where images are removed)\n"
	"      --rate SIZE       bytes of memory to read in a second, at most\n"
	"      --timeout TIME    give a snapshot up after this long\n"
	"      --idle            use what CPU and disk others leave\n"
	"      --metrics FILE    keep figures for Prometheus in FILE\n"
	"      --on-success COMMAND  run this shell command for each image taken\n"
	"      --on-failure COMMAND  run this shell command for each failure\n"
	"      --restore-or-start  bring back the newest good image; start the command\n"
	"                        when there is none\n"
	"      --ignore KIND     bring it back although this cannot come back\n"
	"      --allow-changed-files  accept mapped files that have changed\n"
	"      --pid-namespace   bring it back in a PID namespace of its own\n"
	"      --restart         bring back, or start again, what crashes or fails\n"
	"      --no-agent        start the command without the agent\n"
	"      --pid PID         start nothing: look after this process until it ends\n"
	"      --background      with --pid: let go of terminal and directory\n"
	"  -q, --quiet           print nothing but errors\n"
	"\n"
	"Signals are passed on, and the exit status is that of the command.\n";

/* ---- values -------------------------------------------------------------------------------- */

static bool is_count(const char *s)
{
	size_t n = strspn(s, "0123456789");

	return n && n < 10 && !s[n] && strtoul(s, NULL, 10);
}

static bool is_size(const char *s)
{
	size_t n = strspn(s, "0123456789");

	return n && n < 18 && strtoull(s, NULL, 10) &&
	       (!s[n] || (strchr("kKmMgGtT", s[n]) && !s[n + 1]));
}

static bool is_time(const char *s)
{
	uint64_t seconds;

	return storetime_duration(s, &seconds) == 0 && seconds;
}

static int unusable(const char *option, const char *value, const char *what)
{
	return cli_usage_error(&cmd_run, "cannot use '%s' as %s: %s is wanted", value, option,
			       what);
}

static int pass(struct run_args *a, const struct passed *p, const char *value)
{
	struct run_passed *to = p->to == TO_SNAPSHOT ? &a->snapshot
				: p->to == TO_PRUNE  ? &a->prune
						     : &a->restore;
	char option[32], *arg = NULL;

	snprintf(option, sizeof(option), "--%s", p->name);
	if (p->kind == PASS_COUNT && !is_count(value))
		return unusable(option, value, "a number");
	if (p->kind == PASS_SIZE && !is_size(value))
		return unusable(option, value, "a size");
	if (p->kind == PASS_TIME && !is_time(value))
		return unusable(option, value, "a time such as 36h or 7d");
	if (to->nr == RUN_MAX_PASSED)
		return cli_usage_error(&cmd_run, "cannot use %s: too many options", option);
	if ((value ? asprintf(&arg, "%s=%s", option, value) : asprintf(&arg, "%s", option)) < 0)
		return cli_usage_error(&cmd_run, "cannot use %s: out of memory", option);
	to->arg[to->nr++] = arg;
	return -1;
}

/* "PID", "PID:START". */
static int set_pid(struct run_args *a, const char *text)
{
	char *end;

	errno = 0;
	unsigned long long pid = strtoull(text, &end, 10);
	if (*text < '0' || *text > '9' || errno || pid < 1 || pid > INT32_MAX)
		return unusable("--pid", text, "a PID");
	a->pid = (pid_t)pid;
	if (*end == ':' && end[1] >= '0' && end[1] <= '9')
		a->start_ticks = strtoull(end + 1, &end, 10);
	return errno || *end ? unusable("--pid", text, "a PID") : -1;
}

static int set_every(struct run_args *a, const char *option, const char *text)
{
	return storetime_duration(text, &a->every_s) < 0 || !a->every_s
		       ? unusable(option, text, "a time such as 30s, 5m or 1h")
		       : -1;
}

/* What runs elsewhere finds it too. */
static int set_store(struct run_args *a, const char *text)
{
	cleanup_free char *here = NULL;

	free(a->store);
	a->store = NULL;
	if (*text == '/')
		a->store = strdup(text);
	else if ((here = getcwd(NULL, 0)) && asprintf(&a->store, "%s/%s", here, text) < 0)
		a->store = NULL;
	return a->store ? -1 : cli_usage_error(&cmd_run, "cannot use store '%s'", text);
}

static int set_name(struct run_args *a, const char *text)
{
	if (!store_name_valid(text) || strlen(text) > RUNDIR_NAME_MAX)
		return unusable(
			"--name", text,
			"a name of up to 63 letters, digits and \".-_+:\", no dot or dash first,");
	snprintf(a->name, sizeof(a->name), "%s", text);
	return -1;
}

/* ---- the command line, and the environment --------------------------------------------------- */

static int set(struct run_args *a, int c, char **argv)
{
	if (c >= OPT_PASSED && c < OPT_NAME)
		return pass(a, &passed[c - OPT_PASSED], optarg);
	switch (c) {
	case OPT_NAME:
		return set_name(a, optarg);
	case OPT_STORE:
		return set_store(a, optarg);
	case OPT_EVERY:
		return set_every(a, "--every", optarg);
	case OPT_RESTORE:
		a->restore_or_start = true;
		return -1;
	case OPT_RESTART:
		a->restart = true;
		return -1;
	case OPT_NO_AGENT:
		a->no_agent = true;
		return -1;
	case OPT_PID:
		return set_pid(a, optarg);
	case OPT_BACKGROUND:
		a->background = true;
		return -1;
	case 'q':
		a->quiet = true;
		return -1;
	case OPT_HELP:
		return cli_help(&cmd_run);
	case ':':
		return cli_usage_error(&cmd_run, "cannot use '%s': it takes a value",
				       argv[optind - 1]);
	default:
		return cli_usage_error(&cmd_run, "cannot use '%s': no such option",
				       argv[optind - 1]);
	}
}

static const struct passed *keep_option(const char *word, size_t len)
{
	for (size_t i = 0; i < ARRAY_SIZE(passed); i++)
		if (passed[i].to == TO_PRUNE && strlen(passed[i].name) == len &&
		    !strncmp(passed[i].name, word, len))
			return &passed[i];
	return NULL;
}

/* UFFD_SNAP_KEEP: the options as they would be on a command line. */
static int parse_keep(struct run_args *a, const char *text)
{
	cleanup_free char *words = strdup(text);
	char *save = NULL;
	int r = -1;

	for (char *w = words ? strtok_r(words, " \t\n", &save) : NULL; w && r < 0;
	     w = strtok_r(NULL, " \t\n", &save)) {
		size_t len = strcspn(w, "=");
		const struct passed *p =
			len > 2 && !strncmp(w, "--", 2) ? keep_option(w + 2, len - 2) : NULL;
		const char *value = w[len] ? w + len + 1 : NULL;

		if (p && !value)
			value = strtok_r(NULL, " \t\n", &save);
		if (!p || !value)
			return unusable("UFFD_SNAP_KEEP", text,
					"a list such as '--keep-last 5 --keep-daily 7'");
		r = pass(a, p, value);
	}
	return r;
}

static const char *variable(const char *name)
{
	const char *value = getenv(name);

	return value && *value ? value : NULL;
}

/* As the agent takes it: names of units have characters that one for the store cannot have. */
static int set_name_of_environment(struct run_args *a, const char *text)
{
	char name[STORE_NAME_MAX + 1];

	if (!text[strcspn(text, "@\\")])
		return set_name(a, text);
	store_name_from(text, name);
	return set_name(a, name);
}

/* What was given on the command line counts more. */
static int use_environment(struct run_args *a)
{
	const char *every = variable("UFFD_SNAP_EVERY"), *keep = variable("UFFD_SNAP_KEEP"),
		   *name = variable("UFFD_SNAP_NAME"), *store = variable("UFFD_SNAP_STORE");
	int r = -1;

	a->on_signal = variable("UFFD_SNAP_SIGNAL");
	if (!a->every_s && every)
		r = set_every(a, "UFFD_SNAP_EVERY", every);
	if (r < 0 && !a->prune.nr && keep)
		r = parse_keep(a, keep);
	/* Of a process that looks after another, its own name says nothing of that. */
	if (r < 0 && !*a->name && (!a->pid || a->background) && name)
		r = set_name_of_environment(a, name);
	if (r < 0 && !a->store && store)
		r = set_store(a, store);
	return r;
}

static int check(struct run_args *a, int argc, char **argv)
{
	if (a->pid && optind < argc)
		return cli_usage_error(&cmd_run, "cannot use --pid with a command");
	if (!a->pid && optind == argc)
		return cli_usage_error(&cmd_run, "cannot run: no command given");
	if (a->pid && (a->restore_or_start || a->restart || a->no_agent || a->restore.nr))
		return cli_usage_error(&cmd_run,
				       "cannot use --pid with what is for a command: the process "
				       "runs already");
	if (a->background && !a->pid)
		return cli_usage_error(&cmd_run, "cannot use --background without --pid");
	if (a->pid && !a->every_s && !a->on_signal)
		return cli_usage_error(&cmd_run, "cannot use --pid without --every");
	if (!a->pid)
		a->command = argv + optind;
	return -1;
}

/* What images that stay refer to stays with them, however long the chain: where there are rules, it
 * is to have an end. */
static int bound_chains(struct run_args *a)
{
	static const char option[] = "--full-every";
	static const struct passed full_every = {"full-every", PASS_COUNT, TO_SNAPSHOT};

	for (size_t i = 0; i < a->snapshot.nr; i++)
		if (!strncmp(a->snapshot.arg[i], option, strlen(option)))
			return -1;
	return a->prune.nr ? pass(a, &full_every, RUN_FULL_EVERY) : -1;
}

static void name_after_command(struct run_args *a)
{
	const char *slash = strrchr(a->command[0], '/');

	store_name_from(slash ? slash + 1 : a->command[0], a->name);
	a->name[MIN(strlen(a->name), (size_t)RUNDIR_NAME_MAX)] = '\0';
}

int run_args_parse(int argc, char **argv, struct run_args *ret)
{
	struct option options[ARRAY_SIZE(passed) + ARRAY_SIZE(own_options) + 1] = {0};
	int c, r = -1;

	for (size_t i = 0; i < ARRAY_SIZE(passed); i++)
		options[i] = (struct option){passed[i].name,
					     passed[i].kind == PASS_NOTHING ? no_argument
									    : required_argument,
					     NULL, OPT_PASSED + (int)i};
	memcpy(options + ARRAY_SIZE(passed), own_options, sizeof(own_options));
	*ret = (struct run_args){0};
	opterr = 0;
	while (r < 0 && (c = getopt_long(argc, argv, "+:q", options, NULL)) != -1)
		r = set(ret, c, argv);
	if (r < 0 && (r = use_environment(ret)) < 0)
		r = check(ret, argc, argv);
	if (r < 0)
		r = bound_chains(ret);
	if (r < 0 && ret->command && !*ret->name)
		name_after_command(ret);
	if (r >= 0)
		run_args_free(ret);
	return r;
}

void run_args_free(struct run_args *a)
{
	struct run_passed *all[] = {&a->snapshot, &a->prune, &a->restore};

	for (size_t i = 0; i < ARRAY_SIZE(all); i++)
		while (all[i]->nr)
			free(all[i]->arg[--all[i]->nr]);
	free(a->store);
	a->store = NULL;
}

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/msg.h"
#include "cli/show.h"
#include "common/util.h"

static int run_help(int argc, char **argv);

static const struct cli_command cmd_help = {
	.name = "help",
	.args = "[COMMAND]",
	.summary = "show the commands, or the options of one",
	.run = run_help,
};

const struct cli_command *const cli_commands[] = {
	&cmd_snapshot, &cmd_info,  &cmd_verify, &cmd_read,  &cmd_core, &cmd_restore,
	&cmd_diff,     &cmd_merge, &cmd_list,	&cmd_prune, &cmd_rm,   &cmd_push,
	&cmd_pull,     &cmd_run,   &cmd_ps,	&cmd_check, &cmd_help, NULL,
};

static size_t nr_commands(void)
{
	return ARRAY_SIZE(cli_commands) - 1;
}

static const struct cli_command *find_command(const char *name)
{
	for (size_t i = 0; i < nr_commands(); i++) {
		if (strcmp(cli_commands[i]->name, name) == 0)
			return cli_commands[i];
	}
	return NULL;
}

/* Levenshtein's distance with a swap of neighbours as one step; names are
 * short, and what is longer is near to none of them. */
static unsigned edit_distance(const char *a, const char *b)
{
	enum {
		MOST = 24
	};
	unsigned d[MOST + 1][MOST + 1];
	size_t n = strlen(a), m = strlen(b);

	if (n > MOST || m > MOST)
		return MOST;
	for (size_t i = 0; i <= n; i++) {
		for (size_t j = 0; j <= m; j++) {
			if (!i || !j) {
				d[i][j] = (unsigned)(i + j);
				continue;
			}
			unsigned change = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
			d[i][j] = MIN(change, MIN(d[i - 1][j], d[i][j - 1]) + 1);
			if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
				d[i][j] = MIN(d[i][j], d[i - 2][j - 2] + 1);
		}
	}
	return d[n][m];
}

static const char *nearest_command(const char *name)
{
	const char *best = NULL;
	unsigned best_distance = 3; /* more than two slips are no slip */

	for (size_t i = 0; i < nr_commands(); i++) {
		const char *candidate = cli_commands[i]->name;
		unsigned distance = edit_distance(name, candidate);
		if (strlen(name) >= 2 && strncmp(name, candidate, strlen(name)) == 0)
			distance = 0;
		if (distance < best_distance && distance < strlen(candidate)) {
			best = candidate;
			best_distance = distance;
		}
	}
	return best;
}

static int unknown_command(const char *name)
{
	const char *nearest = nearest_command(name);
	struct usnap_err err = {0};

	usnap_fail(&err, -EINVAL, "cannot run '%s': no such command", name);
	if (nearest)
		usnap_hint(&err, "did you mean 'uffd-snap %s'?", nearest);
	else
		usnap_hint(&err, "'uffd-snap help' lists the commands");
	msg_failure(&err);
	return EXIT_USAGE;
}

static void print_overview(FILE *f)
{
	fputs("usage: uffd-snap COMMAND [ARGUMENT]...\n"
	      "\n"
	      "Consistent point-in-time snapshots of running processes.\n"
	      "\n"
	      "commands:\n",
	      f);
	for (size_t i = 0; i < nr_commands(); i++)
		fprintf(f, "  %-10s %s\n", cli_commands[i]->name, cli_commands[i]->summary);
	fputs("\n"
	      "options:\n"
	      "  --help     show this text; after a command, its options\n"
	      "  --version  show the version\n"
	      "\n"
	      "'uffd-snap help COMMAND' shows the options of one. See also uffd-snap(1).\n",
	      f);
}

/* Where the texts of the options begin that end at end: with most of them. */
static size_t text_column(const char *help, const char *end)
{
	size_t best = strlen("      --help  ");
	bool found = false;

	for (const char *line = help; line < end; line = strchr(line, '\n') + 1) {
		const char *option = line + strspn(line, " "), *gap = strstr(option, "  ");

		if (*option != '-' || !gap || gap > strchr(line, '\n'))
			continue;
		size_t column = (size_t)(gap - line) + strspn(gap, " ");
		if (!found || column < best)
			best = column;
		found = true;
	}
	return best;
}

/* What every command takes comes last of its options, before the text that may follow them. */
static void print_options(const char *help)
{
	const char *text = strstr(help, "\n\n"), *end = text ? text + 1 : help + strlen(help);

	printf("\noptions:\n%.*s%-*sshow this help\n%s", (int)(end - help), help,
	       (int)text_column(help, end), "      --help", end);
}

int cli_help(const struct cli_command *cmd)
{
	printf("usage: uffd-snap %s%s%s\n\n%s\n", cmd->name, cmd->args && *cmd->args ? " " : "",
	       cmd->args ? cmd->args : "", cmd->summary);
	print_options(cmd->help ? cmd->help : "");
	return EXIT_DONE;
}

int cli_usage_error(const struct cli_command *cmd, const char *fmt, ...)
{
	struct usnap_err err = {.code = -EINVAL};
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(err.text, sizeof(err.text), fmt, ap);
	va_end(ap);
	usnap_hint(&err, "try 'uffd-snap help%s%s'", cmd ? " " : "", cmd ? cmd->name : "");
	msg_failure(&err);
	return EXIT_USAGE;
}

static int run_help(int argc, char **argv)
{
	if (argc > 2)
		return cli_usage_error(&cmd_help, "cannot show help: more than one command given");
	if (argc == 1) {
		print_overview(stdout);
		return EXIT_DONE;
	}
	const struct cli_command *cmd = find_command(argv[1]);
	return cmd ? cli_help(cmd) : unknown_command(argv[1]);
}

/* Anywhere before "--", so that a command line half written can be asked about. */
static bool asks_for_help(int argc, char **argv)
{
	for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
		if (strcmp(argv[i], "--help") == 0)
			return true;
	}
	return false;
}

/*
 * Started with a standard descriptor closed, the next file opened would get
 * its number, and messages would be written into it. The gap is filled with
 * /dev/null, opened so that using it fails as the closed one would have.
 */
static void fill_standard_descriptors(void)
{
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
		if (fcntl(fd, F_GETFD) >= 0 || errno != EBADF)
			continue;
		if (open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) != fd)
			_exit(EXIT_FAILED);
	}
}

/* A full disk behind stdout shows only when the last buffer is written. */
static int finish_stdout(int code)
{
	struct usnap_err err = {0};
	int had_error = ferror(stdout), r = show_flush(stdout);

	if (r == 0 && !had_error)
		return code;
	usnap_fail_errno(&err, r < 0 ? r : -EIO, "cannot write 'standard output'");
	msg_failure(&err);
	return code == EXIT_DONE ? EXIT_FAILED : code;
}

static int run(int argc, char **argv)
{
	if (argc < 2) {
		cli_usage_error(NULL, "cannot start: no command given");
		return EXIT_USAGE;
	}
	const char *name = argv[1];
	if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0) {
		puts("uffd-snap " USNAP_VERSION);
		return EXIT_DONE;
	}
	if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
		print_overview(stdout);
		return EXIT_DONE;
	}
	if (name[0] == '-')
		return cli_usage_error(NULL, "cannot start: unknown option '%s'", name);

	const struct cli_command *cmd = find_command(name);
	if (!cmd)
		return unknown_command(name);
	if (!cmd->takes_command && asks_for_help(argc - 1, argv + 1))
		return cli_help(cmd);
	return cmd->run(argc - 1, argv + 1);
}

int main(int argc, char **argv)
{
	fill_standard_descriptors();
	return finish_stdout(run(argc, argv));
}

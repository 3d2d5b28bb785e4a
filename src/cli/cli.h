/*
 * The command: one const table drives dispatch, usage and completion; one
 * short file per subcommand (cmd_<name>.c).
 */
#ifndef USNAP_CLI_CLI_H
#define USNAP_CLI_CLI_H

#include <stdbool.h>

/* Exit codes: documented in uffd-snap(1), relied upon by scripts. */
enum cli_exit {
	EXIT_DONE = 0,
	EXIT_FAILED = 1,
	EXIT_USAGE = 2,
	EXIT_DAMAGED = 3,
};

struct cli_command {
	const char *name;
	const char *args; /* "PID -o FILE [OPTION]..." */
	const char *summary; /* one line, lower case, no full stop */
	const char *help; /* the options, one per line, as --help shows them */
	int (*run)(int argc, char **argv); /* argv[0] is the subcommand's name */
	bool takes_command; /* what follows may have a --help of its own */
};

extern const struct cli_command *const cli_commands[]; /* ends with NULL */

/* Each cmd_<name>.c defines its own. */
extern const struct cli_command cmd_diff, cmd_merge;
extern const struct cli_command cmd_snapshot, cmd_info, cmd_verify, cmd_read, cmd_core, cmd_restore,
	cmd_check, cmd_list, cmd_prune, cmd_rm, cmd_push, cmd_pull, cmd_ps, cmd_run;

/* The graver of two exit statuses. A function: its arguments are calls. */
static inline int cli_worse(int a, int b)
{
	return a > b ? a : b;
}

/* Prints usage and options of one command to stdout; returns EXIT_DONE. */
int cli_help(const struct cli_command *cmd);

/* "try 'uffd-snap help NAME'" to stderr; returns EXIT_USAGE. */
int cli_usage_error(const struct cli_command *cmd, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

#endif

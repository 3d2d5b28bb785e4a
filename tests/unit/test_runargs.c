#include <criterion/criterion.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/cmd_run.h"
#include "common/util.h"

static struct run_args args;

int cli_help(const struct cli_command *cmd)
{
	cr_assert_eq(cmd, &cmd_run);
	return EXIT_DONE;
}

/* Those of main.c print. */
int cli_usage_error(const struct cli_command *cmd, const char *fmt, ...)
{
	cr_assert_eq(cmd, &cmd_run);
	return EXIT_USAGE;
}

static void begin(void)
{
	static const char *const ours[] = {"UFFD_SNAP_EVERY", "UFFD_SNAP_KEEP", "UFFD_SNAP_NAME",
					   "UFFD_SNAP_STORE", "UFFD_SNAP_SIGNAL"};

	for (size_t i = 0; i < ARRAY_SIZE(ours); i++)
		unsetenv(ours[i]);
}

static void end(void)
{
	run_args_free(&args);
}

TestSuite(runargs, .init = begin, .fini = end);

/* Words with one blank between them. */
static int parse(const char *line)
{
	static char copy[1024], *argv[64];
	int argc = 0;
	char *save;

	snprintf(copy, sizeof(copy), "run %s", line);
	for (char *w = strtok_r(copy, " ", &save); w; w = strtok_r(NULL, " ", &save))
		argv[argc++] = w;
	argv[argc] = NULL;
	optind = 0;
	return run_args_parse(argc, argv, &args);
}

Test(runargs, leaves_the_options_of_the_command_to_it)
{
	cr_assert_eq(parse("--every 5m ls --every x -q"), -1);
	cr_assert_eq(args.every_s, 300);
	cr_assert_str_eq(args.command[0], "ls");
	cr_assert_str_eq(args.command[1], "--every");
	cr_assert_str_eq(args.name, "ls");
	cr_assert_not(args.quiet);
}

Test(runargs, tells_help_for_itself_from_help_for_the_command)
{
	cr_assert_eq(parse("--every 5m --help ls"), EXIT_DONE);
	run_args_free(&args);
	cr_assert_eq(parse("ls --help"), -1);
}

Test(runargs, names_after_the_last_part_of_the_command)
{
	cr_assert_eq(parse("-- /usr/bin/redis-server"), -1);
	cr_assert_str_eq(args.name, "redis-server");
}

Test(runargs, takes_from_the_environment_what_is_not_given)
{
	setenv("UFFD_SNAP_EVERY", "1h", 1);
	setenv("UFFD_SNAP_KEEP", " --keep-last 5\t--max-size=10G ", 1);
	setenv("UFFD_SNAP_NAME", "db", 1);
	setenv("UFFD_SNAP_STORE", "/s", 1);
	cr_assert_eq(parse("ls"), -1);
	cr_assert_eq(args.every_s, 3600);
	cr_assert_str_eq(args.name, "db");
	cr_assert_str_eq(args.store, "/s");
	cr_assert_eq(args.prune.nr, 2);
	cr_assert_str_eq(args.prune.arg[0], "--keep-last=5");
	cr_assert_str_eq(args.prune.arg[1], "--max-size=10G");
	run_args_free(&args);
	/* As the agent takes it, of a unit. */
	setenv("UFFD_SNAP_NAME", "db@my.\\x2d1", 1);
	cr_assert_eq(parse("ls"), -1);
	cr_assert_str_eq(args.name, "db-my.-x2d1");
	run_args_free(&args);
	cr_assert_eq(parse("--every 2s --keep-daily 3 --name x --store /t ls"), -1);
	cr_assert_eq(args.every_s, 2);
	cr_assert_str_eq(args.name, "x");
	cr_assert_str_eq(args.store, "/t");
	cr_assert_eq(args.prune.nr, 1);
	cr_assert_str_eq(args.prune.arg[0], "--keep-daily=3");
}

Test(runargs, bounds_chains_where_images_are_removed)
{
	cr_assert_eq(parse("--every 2s --keep-last 3 ls"), -1);
	cr_assert_eq(args.snapshot.nr, 1);
	cr_assert_str_eq(args.snapshot.arg[0], "--full-every=24");
	run_args_free(&args);
	cr_assert_eq(parse("--every 2s --keep-last 3 --full-every 5 ls"), -1);
	cr_assert_eq(args.snapshot.nr, 1);
	cr_assert_str_eq(args.snapshot.arg[0], "--full-every=5");
	run_args_free(&args);
	cr_assert_eq(parse("--every 2s ls"), -1);
	cr_assert_eq(args.snapshot.nr, 0);
}

Test(runargs, makes_the_store_absolute)
{
	cr_assert_eq(parse("--store here ls"), -1);
	cr_assert_eq(args.store[0], '/');
	cr_assert_str_eq(strrchr(args.store, '/'), "/here");
}

Test(runargs, refuses_what_makes_no_sense)
{
	static const char *const wrong[] = {
		"",
		"--every 0 ls",
		"--every x ls",
		"--keep-last 0 ls",
		"--keep-last -1 ls",
		"--keep-within x ls",
		"--max-size 10X ls",
		"--max-size 0 ls",
		"--name .x ls",
		"--name a/b ls",
		"--pid 0 --every 1s",
		"--pid 1x --every 1s",
		"--pid 1: --every 1s",
		"--pid 99999999999 --every 1s",
		"--pid 1",
		"--pid 1 --every 1s ls",
		"--pid 1 --every 1s --restart",
		"--background ls",
		"--nonsense ls",
		"--every",
	};

	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++)
		cr_expect_eq(parse(wrong[i]), EXIT_USAGE, "%s", wrong[i]);
}

Test(runargs, refuses_a_list_of_rules_that_is_none)
{
	static const char *const wrong[] = {"5",	   "--keep-last",  "--keep-last x",
					    "keep-last 5", "--keep-all 5", "--dry-run",
					    "--",	   "--store /x"};

	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		setenv("UFFD_SNAP_KEEP", wrong[i], 1);
		cr_expect_eq(parse("ls"), EXIT_USAGE, "%s", wrong[i]);
	}
}

Test(runargs, bounds_how_much_is_passed_on)
{
	char line[2048] = "";

	for (int i = 0; i < 30; i++)
		strcat(line, "--idle ");
	strcat(line, "ls");
	cr_assert_eq(parse(line), -1);
	cr_assert_eq(args.snapshot.nr, 30);
	run_args_free(&args);
	cr_assert_eq(parse("--pid 12:345 --every 1s"), -1);
	cr_assert_eq(args.pid, 12);
	cr_assert_eq(args.start_ticks, 345);
}

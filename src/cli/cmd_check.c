#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>

#include "cli/check.h"
#include "cli/cli.h"
#include "cli/msg.h"
#include "cli/show.h"
#include "common/util.h"

struct check *check_add(struct checks *cs, const char *name, bool required, const char *without)
{
	/* More than there is room for would be a mistake in this program. */
	struct check *c = &cs->c[MIN(cs->n, ARRAY_SIZE(cs->c) - 1)];

	if (cs->n < ARRAY_SIZE(cs->c))
		cs->n++;
	*c = (struct check){
		.name = name, .state = CHECK_UNKNOWN, .required = required, .without = without};
	return c;
}

/* Names in it come from other processes: nothing that moves a cursor, nothing
 * that is no UTF-8 is let through. */
static void make_plain(char *s)
{
	for (; *s; s++) {
		if (*s < 0x20 || *s > 0x7e)
			*s = '?';
	}
}

void check_settle(struct check *c, enum check_state state, const char *fmt, ...)
{
	va_list ap;

	c->state = state;
	va_start(ap, fmt);
	vsnprintf(c->detail, sizeof(c->detail), fmt, ap);
	va_end(ap);
	make_plain(c->detail);
}

void check_grant(struct check *c, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(c->grant, sizeof(c->grant), fmt, ap);
	va_end(ap);
	make_plain(c->grant);
}

bool checks_failed(const struct checks *cs)
{
	for (size_t i = 0; i < cs->n; i++) {
		if (cs->c[i].required && cs->c[i].state == CHECK_MISSING)
			return true;
	}
	return false;
}

static const char *state_name(const struct check *c)
{
	switch (c->state) {
	case CHECK_OK:
		return "ok";
	case CHECK_MISSING:
		return "missing";
	case CHECK_UNKNOWN:
		break;
	}
	return "unknown";
}

static void print_group(const struct checks *cs, bool required, const char *title)
{
	printf("%s:\n", title);
	for (size_t i = 0; i < cs->n; i++) {
		const struct check *c = &cs->c[i];

		if (c->required != required)
			continue;
		printf("  %-8s %s", state_name(c), c->name);
		printf("%s%s\n", c->detail[0] ? ": " : "", c->detail);
		if (c->state == CHECK_OK)
			continue;
		printf("           without it: %s\n", c->without);
		if (c->grant[0])
			printf("           to grant it: %s\n", c->grant);
	}
}

static void print_text(const struct checks *cs, const struct utsname *u, pid_t pid)
{
	printf("Linux %s, %s, pages of %ld bytes, uid %u\n\n", u->release, u->machine,
	       sysconf(_SC_PAGESIZE), (unsigned)geteuid());
	print_group(cs, true, "required");
	putchar('\n');
	print_group(cs, false, "optional");
	if (cs->other_features[0])
		printf("\nuserfaultfd has besides: %s (not needed)\n", cs->other_features);
	putchar('\n');
	if (checks_failed(cs))
		printf("a snapshot%s cannot work: see what is missing above\n",
		       pid ? " of this process" : "");
	else
		printf("a snapshot%s can work\n", pid ? " of this process" : "");
}

static int print_json(const struct checks *cs, const struct utsname *u, pid_t pid)
{
	json_t *list = json_array();

	for (size_t i = 0; i < cs->n; i++) {
		const struct check *c = &cs->c[i];

		json_array_append_new(list,
				      json_pack("{s:s, s:s, s:b, s:o, s:s, s:s}", "name", c->name,
						"state", state_name(c), "required", c->required,
						"detail", show_json_text(c->detail), "without",
						c->without, "grant", c->grant));
	}
	json_t *all = json_pack("{s:b, s:s, s:s, s:I, s:o, s:s}", "can_snapshot",
				!checks_failed(cs), "kernel", u->release, "arch", u->machine,
				"page_size", (json_int_t)sysconf(_SC_PAGESIZE), "checks", list,
				"other_features", cs->other_features);
	if (all && pid)
		json_object_set_new(all, "pid", json_integer(pid));
	char *text = all ? json_dumps(all, JSON_INDENT(2)) : NULL;
	if (text)
		puts(text);
	else
		msg_error("cannot print the result: out of memory");
	free(text);
	json_decref(all);
	return text ? EXIT_DONE : EXIT_FAILED;
}

static int parse_pid(const char *text, pid_t *ret)
{
	char *end;

	errno = 0;
	long v = strtol(text, &end, 10);
	if (errno || end == text || *end || v <= 0 || v > INT32_MAX)
		return -EINVAL;
	*ret = (pid_t)v;
	return 0;
}

static int run_check(int argc, char **argv)
{
	static const struct option options[] = {{"json", no_argument, NULL, 'j'}, {0}};
	bool json = false;
	pid_t pid = 0;

	opterr = 0;
	for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
		if (o != 'j')
			return cli_usage_error(&cmd_check, "cannot check: unknown option '%s'",
					       argv[optind - 1]);
		json = true;
	}
	if (argc - optind > 1)
		return cli_usage_error(&cmd_check, "cannot check: more than one PID given");
	if (argc > optind && parse_pid(argv[optind], &pid) < 0)
		return cli_usage_error(&cmd_check, "cannot check '%s': not a process id",
				       argv[optind]);

	struct checks cs = {0};
	struct utsname u;
	uname(&u);
	fflush(stdout);
	check_userfaultfd(&cs, pid == 0);
	check_kernel(&cs);
	check_permissions(&cs, pid == 0);
	check_filters(&cs);
	if (pid)
		check_target(&cs, pid);
	else
		check_restore(&cs);

	int r = EXIT_DONE;
	if (json)
		r = print_json(&cs, &u, pid);
	else
		print_text(&cs, &u, pid);
	return r == EXIT_DONE && checks_failed(&cs) ? EXIT_FAILED : r;
}

const struct cli_command cmd_check = {
	.name = "check",
	.args = "[--json] [PID]",
	.summary = "show what snapshots and restores need here, and what is there",
	.help = "      --json  print JSON\n"
		"\n"
		"With a PID, also whether that process can be taken. Exit status 1 when a\n"
		"snapshot cannot work.\n",
	.run = run_check,
};

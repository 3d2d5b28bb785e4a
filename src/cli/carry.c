#include "cli/carry.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "cli/msg.h"
#include "cli/show.h"
#include "cli/unattended.h"
#include "store/storetime.h"

int carry_options(struct carry *c, int argc, char **argv)
{
	static const struct option options[] = {{"store", required_argument, NULL, 's'},
						{"dry-run", no_argument, NULL, 'n'},
						{"quiet", no_argument, NULL, 'q'},
						{"json", no_argument, NULL, 'j'},
						{"skip-if-busy", no_argument, NULL, 'b'},
						{"check", no_argument, NULL, 'c'},
						{0}};
	const char *verb = c->command->name;

	opterr = 0;
	for (int o; (o = getopt_long(argc, argv, ":nq", options, NULL)) != -1;) {
		if (o == 's')
			c->store = optarg;
		else if (o == 'n')
			c->dry_run = true;
		else if (o == 'q')
			c->quiet = true;
		else if (o == 'j')
			c->json = true;
		else if (o == 'b')
			c->skip_if_busy = true;
		else if (o == 'c' && c->command == &cmd_push)
			c->check = true;
		else if (o == ':')
			return cli_usage_error(c->command, "cannot %s: '%s' takes a value", verb,
					       argv[optind - 1]);
		else
			return cli_usage_error(c->command, "cannot %s: unknown option '%s'", verb,
					       argv[optind - 1]);
	}
	return -1;
}

int carry_begin(struct carry *c)
{
	/* Arguments in the wrong order would make a directory here. */
	if (!strpbrk(c->remote, ":/"))
		return cli_usage_error(c->command,
				       "cannot use '%s' as a remote: REMOTE:PATH is wanted",
				       c->remote);
	c->interrupted = unattended_catch_signals();
	c->rows = json_array();
	return -1;
}

int carry_open(struct carry *c, struct usnap_err *err)
{
	int r;

	if ((r = rclone_find(&c->rclone, err)) < 0)
		return r == -ENOENT ? -ENODEV : r;
	c->rclone.cancel = c->interrupted;
	return rclone_list(&c->rclone, c->remote, &c->there, err);
}

void carry_tell(struct carry *c, const struct store_image *image, enum carry_state state)
{
	static const char *const words[] = {"pending", NULL, "present", "bad"};
	const char *word = state == CARRY_DONE ? c->past : words[state];
	char stamp[STORETIME_STAMP + 1], size[24];

	c->nr_done += state == CARRY_DONE;
	c->nr_present += state == CARRY_PRESENT;
	if (state == CARRY_DONE)
		c->bytes_done += image->bytes;
	json_array_append_new(c->rows,
			      json_pack("{s:s, s:s, s:I, s:s}", "file", image->file, "id",
					image->id, "file_bytes", (json_int_t)image->bytes, "result",
					state == CARRY_DONE && c->dry_run ? "wanted" : word));
	if (c->quiet || c->json || state != CARRY_DONE || storetime_stamp(image->t0_ms, stamp) < 0)
		return;
	progress_end(&c->progress);
	printf("%s%s ", c->dry_run ? "would " : "", c->dry_run ? c->command->name : word);
	show_text(c->name);
	printf("@%s  %s\n", stamp, show_size(size, image->bytes));
	show_flush(stdout);
}

enum carry_state carry_bad(struct carry *c, const struct store_image *image, int code,
			   const char *fmt, ...)
{
	struct usnap_err err = {.code = code};
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(err.text, sizeof(err.text), fmt, ap);
	va_end(ap);
	progress_end(&c->progress);
	c->worst = cli_worse(c->worst, msg_failure(&err));
	carry_tell(c, image, CARRY_BAD);
	return CARRY_BAD;
}

static void print_summary(const struct carry *c)
{
	char size[24];

	show_text(c->name);
	printf(": %s%s %zu image%s (%s), %zu %s there\n", c->dry_run ? "would " : "",
	       c->dry_run ? c->command->name : c->past, c->nr_done, c->nr_done == 1 ? "" : "s",
	       show_size(size, c->bytes_done), c->nr_present, c->nr_present == 1 ? "was" : "were");
	if (c->nr_leftovers)
		printf("%zu leftover%s of runs that were killed%s\n", c->nr_leftovers,
		       c->nr_leftovers == 1 ? "" : "s", c->dry_run ? "" : " removed");
}

int carry_finish(struct carry *c, int r, const struct usnap_err *err)
{
	progress_end(&c->progress);
	if (r == -EBUSY && c->skip_if_busy) {
		if (!c->quiet)
			msg_info("skipped: %s", err->text);
	} else if (r < 0) {
		c->worst = cli_worse(c->worst, msg_failure(err));
	}
	if (c->json)
		c->worst = cli_worse(
			c->worst,
			show_json(json_pack("{s:o?, s:o?, s:b, s:O, s:I, s:I, s:I, s:I}", "name",
					    show_json_text(c->name), "remote",
					    show_json_text(c->remote), "dry_run", c->dry_run,
					    "images", c->rows, c->past, (json_int_t)c->nr_done,
					    "present", (json_int_t)c->nr_present, "file_bytes",
					    (json_int_t)c->bytes_done, "leftovers",
					    (json_int_t)c->nr_leftovers)));
	else if (!c->quiet && r == 0)
		print_summary(c);
	rclone_files_free(&c->there);
	rclone_free(&c->rclone);
	json_decref(c->rows);
	if (c->interrupted && *c->interrupted) {
		signal(*c->interrupted, SIG_DFL);
		raise(*c->interrupted);
	}
	return c->worst;
}

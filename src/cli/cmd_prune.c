#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/msg.h"
#include "cli/names.h"
#include "cli/prune_plan.h"
#include "cli/refs.h"
#include "cli/show.h"
#include "cli/unattended.h"
#include "common/util.h"
#include "image/merge.h"
#include "store/store_commit.h"
#include "store/storelock.h"
#include "store/storetime.h"

struct prune {
	struct store *store;
	struct retention rules;
	char of_unit[STORE_NAME_MAX + 1]; /* "": of none */
	bool dry_run, quiet, skip_if_busy, strict;
	int worst;
	const volatile sig_atomic_t *interrupted;
};

static void print_each(const struct prune_plan *v, const char *name)
{
	char stamp[STORETIME_STAMP + 1], reasons[96];

	for (size_t i = 0; i < v->images.nr; i++) {
		if (storetime_stamp(v->images.image[i].t0_ms, stamp) < 0)
			continue;
		printf("%s ", v->keep[i] ? "keep  " : "remove");
		show_text(name);
		printf("@%s", stamp);
		if (v->keep[i] && v->why[i])
			printf("  %s%s", retention_reasons(v->why[i], reasons, sizeof(reasons)),
			       (long)i == v->merge ? ", merged" : "");
		else if (v->keep[i])
			printf("  %s", !v->links[i].readable	? "damaged"
				       : v->links[i].nr_missing ? "incomplete"
								: "needed by others");
		putchar('\n');
	}
}

struct tally {
	size_t nr;
	uint64_t bytes;
};

/* Of those that are marked, or of all. */
static struct tally count(const struct prune_plan *p, const bool *marked)
{
	struct tally t = {0};

	for (size_t i = 0; i < p->images.nr; i++)
		if (!marked || marked[i]) {
			t.nr++;
			t.bytes += p->images.image[i].bytes;
		}
	return t;
}

static void print_summary(const struct prune *p, const struct prune_plan *v, const char *name,
			  struct tally before, struct tally after)
{
	char a[24], b[24];

	show_text(name);
	printf(": %s %zu of %zu images (%s of %s)", p->dry_run ? "would keep" : "kept", after.nr,
	       before.nr, show_size(a, after.bytes), show_size(b, before.bytes));
	if (v->held)
		printf(", %zu of them because others refer to %s", v->held,
		       v->held == 1 ? "it" : "them");
	putchar('\n');
}

/* Whatever cannot be read is said each time, until somebody decides. */
static void warn(struct prune *p, const struct prune_plan *v, const char *name)
{
	for (size_t i = 0; i < v->images.nr; i++) {
		const struct store_link *l = &v->links[i];

		if (l->readable && !l->nr_missing)
			continue;
		if (l->readable)
			msg_error("cannot use '%s/%s': it needs image %s, which is missing; it is "
				  "kept, and what else it needs",
				  name, v->images.image[i].file, l->missing);
		else
			msg_error("%s; it is kept, and what is older", l->why);
		p->worst = cli_worse(p->worst, EXIT_DAMAGED);
	}
}

/* What the merged image takes at most, beside what there is until it is complete. */
static int hint_room(const struct prune_plan *p, struct usnap_err *err)
{
	const struct store_link *l = &p->links[p->merge];
	uint64_t bytes = p->images.image[p->merge].bytes;
	char size[24];

	for (size_t i = 0; i < l->nr_needs; i++)
		bytes += p->images.image[l->needs[i]].bytes;
	return usnap_hint(err, "merging needs up to %s; all images are as they were",
			  show_size(size, bytes));
}

/* An image takes the place of itself and all that it refers to. */
static int merge(const struct prune *p, const char *name, const struct prune_plan *plan,
		 struct store_lock *lock, struct usnap_err *err)
{
	const struct store_image *old = &plan->images.image[plan->merge];
	struct usnap_image *img = usnap_image_new();
	cleanup_free char *path = NULL, *from = NULL;
	struct output *out = NULL;
	struct merge_options mo = {.level = 1, .cancel = p->interrupted};
	struct image_writer_stats stats;
	char file[STORE_FILE_LEN + 1];
	int r = 0;

	if (!img || asprintf(&from, "%s/%s/%s", store_path(p->store), name, old->file) < 0)
		r = usnap_fail_errno(err, -ENOMEM, "cannot merge '%s'", old->file);
	if (r == 0 && (r = usnap_image_open(img, from)) < 0)
		usnap_fail(err, r, "%s", usnap_image_error(img));
	if (r == 0 && (r = store_new_path(p->store, name, &path, err)) == 0)
		r = output_open(&out, path, err);
	if (r == 0) {
		mo.fd = output_fd(out);
		r = image_merge(img, &mo, &stats, err);
	}
	if (r == 0)
		r = store_commit(out, file, err);
	output_close(out);
	usnap_image_free(img);
	if (r == -ENOSPC)
		return hint_room(plan, err);
	if (r < 0)
		return r;
	/* Killed here, there are two of this time: the next run removes the old one. */
	if ((size_t)plan->merge + 1 == plan->images.nr &&
	    (r = store_set_latest(store_lock_fd(lock), file)) < 0)
		return usnap_fail_errno(err, r, "cannot set 'latest' to '%s'", file);
	if (unlinkat(store_lock_fd(lock), old->file, 0) < 0)
		return usnap_fail_errno(err, -errno, "cannot remove '%s'", from);
	return 0;
}

/* First what can go as it is: merging needs room. */
static int carry_out(struct prune *p, const char *name, struct prune_plan *plan,
		     struct store_lock *lock, struct usnap_err *err)
{
	size_t removed;
	int r;

	for (;;) {
		r = store_links_remove(plan->links, &plan->images, plan->remove,
				       store_lock_fd(lock), &removed);
		if (r < 0)
			return usnap_fail_errno(err, r, "cannot remove from '%s/%s'",
						store_path(p->store), name);
		if (plan->merge < 0 || (p->interrupted && *p->interrupted))
			return 0;
		if ((r = merge(p, name, plan, lock, err)) < 0)
			return r;
		prune_plan_free(plan);
		if ((r = prune_plan_make(plan, p->store, name, &p->rules, p->strict, err)) < 0)
			return r;
	}
}

static int prune_name(struct prune *p, const char *name, struct usnap_err *err)
{
	const struct store_lock_options lo = {.no_wait = p->skip_if_busy, .cancel = p->interrupted};
	struct prune_plan plan;
	struct store_lock *lock;
	struct tally all = {0};
	int r = store_lock(&lock, p->store, name, p->dry_run ? STORE_READ : STORE_REMOVE, &lo, err);

	if (r < 0)
		return r;
	if (!p->dry_run)
		store_clean(store_lock_fd(lock));
	r = prune_plan_make(&plan, p->store, name, &p->rules, p->strict, err);
	if (r == 0 && !p->quiet && p->dry_run)
		print_each(&plan, name);
	if (r == 0)
		all = count(&plan, NULL);
	if (r == 0 && !p->dry_run)
		r = carry_out(p, name, &plan, lock, err);
	if (r == 0 && !p->quiet)
		print_summary(p, &plan, name, all, count(&plan, plan.keep));
	if (r == 0) {
		fflush(stdout);
		warn(p, &plan, name);
	}
	prune_plan_free(&plan);
	store_unlock(lock);
	return r;
}

static void prune_names(struct prune *p, char **names, size_t nr, bool given)
{
	for (size_t i = 0; i < nr && !*p->interrupted; i++) {
		struct usnap_err err = {0};
		int r = prune_name(p, names[i], &err);

		if (r == -ENOENT && !given)
			continue; /* removed meanwhile */
		if (r == -EBUSY && p->skip_if_busy) {
			if (!p->quiet)
				msg_info("skipped: %s", err.text);
			continue;
		}
		/* One name that fails does not fill the disk with the others. */
		if (r < 0)
			p->worst = cli_worse(p->worst, msg_failure(&err));
	}
}

static const struct {
	const char *name;
	size_t offset;
} counts[] = {
	{"keep-last", offsetof(struct retention, last)},
	{"keep-hourly", offsetof(struct retention, hourly)},
	{"keep-daily", offsetof(struct retention, daily)},
	{"keep-weekly", offsetof(struct retention, weekly)},
	{"keep-monthly", offsetof(struct retention, monthly)},
};

enum {
	OPT_COUNT = 256,
	OPT_WITHIN = OPT_COUNT + ARRAY_SIZE(counts),
	OPT_MAX_SIZE,
	OPT_UNIT,
	OPT_STORE,
	OPT_MERGE,
	OPT_SKIP
};

static const struct option options[] = {
	{"keep-last", required_argument, NULL, OPT_COUNT},
	{"keep-hourly", required_argument, NULL, OPT_COUNT + 1},
	{"keep-daily", required_argument, NULL, OPT_COUNT + 2},
	{"keep-weekly", required_argument, NULL, OPT_COUNT + 3},
	{"keep-monthly", required_argument, NULL, OPT_COUNT + 4},
	{"keep-within", required_argument, NULL, OPT_WITHIN},
	{"max-size", required_argument, NULL, OPT_MAX_SIZE},
	{"unit", required_argument, NULL, OPT_UNIT},
	{"store", required_argument, NULL, OPT_STORE},
	{"merge", no_argument, NULL, OPT_MERGE},
	{"skip-if-busy", no_argument, NULL, OPT_SKIP},
	{"dry-run", no_argument, NULL, 'n'},
	{"quiet", no_argument, NULL, 'q'},
	{0},
};

/* "10G". */
static bool parse_size(const char *text, uint64_t *ret)
{
	static const char units[] = "KMGT";
	size_t len = strlen(text);
	const char *u = len > 1 ? strchr(units, text[len - 1] & ~0x20) : NULL;
	char digits[24];
	uint64_t v;

	if (len >= sizeof(digits))
		return false;
	snprintf(digits, sizeof(digits), "%.*s", (int)(len - (u != NULL)), text);
	if (strchr(digits, 'x') || !show_parse_number(digits, &v) || !v ||
	    (u && v > UINT64_MAX >> 10 * (u - units + 1)))
		return false;
	*ret = u ? v << 10 * (u - units + 1) : v;
	return true;
}

/* -1, or the exit status. */
static int set(struct prune *p, int o, const char **store, char **argv)
{
	if (o >= OPT_COUNT && o < OPT_WITHIN) {
		uint64_t *count = (uint64_t *)((char *)&p->rules + counts[o - OPT_COUNT].offset);

		if (strchr(optarg, 'x') || !show_parse_number(optarg, count))
			return cli_usage_error(&cmd_prune,
					       "cannot use '%s' as --%s: a number is wanted",
					       optarg, counts[o - OPT_COUNT].name);
		return -1;
	}
	switch (o) {
	case OPT_WITHIN:
		if (storetime_duration(optarg, &p->rules.within_s) < 0)
			return cli_usage_error(&cmd_prune,
					       "cannot use '%s' as --keep-within: a time such as "
					       "36h, 7d or 1M is wanted",
					       optarg);
		return -1;
	case OPT_MAX_SIZE:
		if (!parse_size(optarg, &p->rules.max_bytes))
			return cli_usage_error(&cmd_prune,
					       "cannot use '%s' as --max-size: a size is wanted",
					       optarg);
		return -1;
	case OPT_UNIT:
		names_of_unit(optarg, p->of_unit);
		return -1;
	case OPT_STORE:
		*store = optarg;
		return -1;
	case OPT_MERGE:
		p->strict = true;
		return -1;
	case OPT_SKIP:
		p->skip_if_busy = true;
		return -1;
	case 'n':
		p->dry_run = true;
		return -1;
	case 'q':
		p->quiet = true;
		return -1;
	case ':':
		return cli_usage_error(&cmd_prune, "cannot prune: '%s' takes a value",
				       argv[optind - 1]);
	default:
		return cli_usage_error(&cmd_prune, "cannot prune: unknown option '%s'",
				       argv[optind - 1]);
	}
}

static int run_prune(int argc, char **argv)
{
	struct prune p = {.worst = EXIT_DONE};
	struct store_names all = {0};
	struct usnap_err err = {0};
	const char *store = NULL;
	char *unit = p.of_unit;
	int r;

	opterr = 0;
	for (int o; (o = getopt_long(argc, argv, ":nq", options, NULL)) != -1;)
		if ((r = set(&p, o, &store, argv)) >= 0)
			return r;
	if (retention_is_empty(&p.rules))
		return cli_usage_error(&cmd_prune, "cannot prune: no rule says what is to be kept");
	p.rules.now_ms = wall_ns() / 1000000;
	p.interrupted = unattended_catch_signals();
	if (refs_open_store(&p.store, store, &err) < 0)
		return msg_failure(&err);
	if (!*unit && optind == argc && store_list_names(p.store, &all, &err) < 0)
		p.worst = msg_failure(&err);
	if (*unit)
		prune_names(&p, &unit, 1, true);
	prune_names(&p, argv + optind, (size_t)(argc - optind), true);
	prune_names(&p, all.name, all.nr, false);
	store_names_free(&all);
	store_close(p.store);
	if (*p.interrupted) {
		signal(*p.interrupted, SIG_DFL);
		raise(*p.interrupted);
	}
	return p.worst;
}

const struct cli_command cmd_prune = {
	.name = "prune",
	.args = "[OPTION]... [NAME]...",
	.summary = "remove images that no rule keeps",
	.help = "      --keep-last N     keep the last N images\n"
		"      --keep-hourly N   keep the last image of each of the last N hours with any\n"
		"      --keep-daily N    the same of days\n"
		"      --keep-weekly N   the same of weeks\n"
		"      --keep-monthly N  the same of months\n"
		"      --keep-within TIME  keep what is at most so much older than the last: 36h,\n"
		"                        7d, 1M\n"
		"      --max-size SIZE   of each name, remove the oldest until it takes no more\n"
		"      --unit UNIT       the name that 'snapshot --unit UNIT' gives its images\n"
		"      --merge           merge images with those they refer to, wherever these\n"
		"                        would stay for no other reason\n"
		"      --store DIR       the store, if not the usual one\n"
		"      --skip-if-busy    pass over names that another run has\n"
		"  -n, --dry-run         show what would be kept and why, and remove nothing\n"
		"  -q, --quiet           print nothing but errors\n"
		"\n"
		"The last image always stays. What an image that stays refers to stays with\n"
		"it, until merging the two takes less room.\n",
	.run = run_prune,
};

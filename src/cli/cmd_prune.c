#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/msg.h"
#include "cli/names.h"
#include "cli/prune_carry.h"
#include "cli/refs.h"
#include "cli/show.h"
#include "cli/unattended.h"
#include "common/util.h"
#include "store/storelock.h"
#include "store/storetime.h"

struct prune {
	struct store *store;
	struct prune_rules rules;
	char of_unit[STORE_NAME_MAX + 1]; /* "": of none */
	bool dry_run, quiet, skip_if_busy, json;
	int worst;
	json_t *rows; /* with json */
	const volatile sig_atomic_t *interrupted;
};

static const char *why_else(const struct prune_plan *v, size_t i)
{
	return v->links[i].damaged	? "damaged"
	       : !v->links[i].readable	? "unknown"
	       : v->links[i].nr_missing ? "incomplete"
					: "needed by others";
}

static void print_each(const struct prune_plan *v, const char *name)
{
	char stamp[STORETIME_STAMP + 1], reasons[96];

	for (size_t i = 0; i < v->images.nr; i++) {
		if (storetime_stamp(v->images.image[i].t0_ms, stamp) < 0)
			continue;
		printf("%s ", v->stays[i] ? "keep  " : "remove");
		show_text(name);
		printf("@%s", stamp);
		if (v->stays[i] && v->why[i])
			printf("  %s%s", retention_reasons(v->why[i], reasons, sizeof(reasons)),
			       v->must[i] ? ", merged" : "");
		else if (v->stays[i])
			printf("  %s", why_else(v, i));
		putchar('\n');
	}
}

struct tally {
	size_t nr;
	uint64_t bytes;
};

static struct tally count(const struct prune_plan *p)
{
	struct tally t = {.nr = p->images.nr};

	for (size_t i = 0; i < p->images.nr; i++)
		t.bytes += p->images.image[i].bytes;
	return t;
}

static struct tally count_after(const struct prune_plan *p)
{
	struct tally t = {.bytes = p->bytes_after};

	for (size_t i = 0; i < p->images.nr; i++)
		t.nr += p->stays[i];
	return t;
}

static size_t count_merged(const struct prune_plan *p)
{
	size_t nr = 0;

	for (size_t i = 0; i < p->images.nr; i++)
		nr += p->must[i];
	return nr;
}

/* merged: so many were, or would be. */
static void print_summary(const struct prune *p, const struct prune_plan *v, const char *name,
			  struct tally before, size_t merged)
{
	struct tally after = count_after(v);
	char a[24], b[24];

	show_text(name);
	printf(": %s %zu of %zu images (%s%s of %s)", p->dry_run ? "would keep" : "kept", after.nr,
	       before.nr, v->merge < 0 ? "" : "about ", show_size(a, after.bytes),
	       show_size(b, before.bytes));
	if (merged)
		printf(", %zu of them merged", merged);
	if (v->held)
		printf(", %zu of them because others refer to %s", v->held,
		       v->held == 1 ? "it" : "them");
	if (v->mergeable)
		printf("; --merge removes %s",
		       v->mergeable == v->held ? v->held == 1 ? "it" : "them" : "some of them");
	putchar('\n');
}

static json_t *decision(const struct store_image *image, bool stays, bool merged, const char *why)
{
	return json_pack("{s:s, s:I, s:I, s:s, s:b, s:s}", "id", image->id, "t0_ms",
			 (json_int_t)image->t0_ms, "file_bytes", (json_int_t)image->bytes,
			 "decision", stays ? "keep" : "remove", "merged", stays && merged, "why",
			 stays ? why : "");
}

/* The images that there were, as the first plan has them. */
static json_t *decisions(const struct prune_plan *v)
{
	json_t *all = json_array();
	char reasons[96];

	for (size_t i = 0; i < v->images.nr; i++)
		json_array_append_new(
			all,
			decision(&v->images.image[i], v->stays[i], v->must[i],
				 v->why[i] ? retention_reasons(v->why[i], reasons, sizeof(reasons))
					   : why_else(v, i)));
	return all;
}

/* Which of them are there, in the end: limits of size depend on what merging gave. */
static void correct(json_t *images, const struct prune_plan *now)
{
	size_t i;
	json_t *j;

	json_array_foreach (images, i, j) {
		uint64_t t0_ms = (uint64_t)json_integer_value(json_object_get(j, "t0_ms"));
		bool stays = false;

		for (size_t k = 0; k < now->images.nr && !stays; k++)
			stays = now->stays[k] && now->images.image[k].t0_ms == t0_ms;
		if (!stays)
			json_object_set_new(j, "decision", json_string("remove"));
	}
}

static void add_json(struct prune *p, const struct prune_plan *v, const char *name,
		     struct tally before, size_t merged, json_t *images)
{
	struct tally after = count_after(v);

	correct(images, v);
	json_array_append_new(p->rows,
			      json_pack("{s:o, s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:o}", "name",
					show_json_text(name), "dry_run", p->dry_run, "kept",
					(json_int_t)after.nr, "removed",
					(json_int_t)(before.nr - after.nr), "merged",
					(json_int_t)merged, "held", (json_int_t)v->held,
					"file_bytes_before", (json_int_t)before.bytes, "file_bytes",
					(json_int_t)after.bytes, "images", images));
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
		p->worst =
			cli_worse(p->worst, l->readable || l->damaged ? EXIT_DAMAGED : EXIT_FAILED);
	}
}

static bool is_any_pinned(const struct prune_plan *v)
{
	for (size_t i = 0; i < v->images.nr; i++)
		if (v->pinned[i])
			return true;
	return false;
}

/* A limit that is not kept is a failure: somebody counts on it. */
static void check_size(struct prune *p, const struct prune_plan *v, const char *name)
{
	uint64_t limit = p->rules.keep.max_bytes;
	char a[24], b[24];
	struct usnap_err err = {0};

	if (!limit || v->bytes_after <= limit)
		return;
	usnap_fail(&err, -EFBIG, "cannot keep '%s' within %s: what stays takes %s%s", name,
		   show_size(a, limit), v->merge < 0 ? "" : "about ", show_size(b, v->bytes_after));
	usnap_hint(&err, "%s",
		   is_any_pinned(v)
			   ? "what is damaged stays, and what it holds: 'uffd-snap rm' "
			     "removes it"
			   : "the newest image always stays; a larger --max-size holds it");
	p->worst = cli_worse(p->worst, msg_failure(&err));
}

static void report(struct prune *p, const struct prune_plan *plan, const char *name,
		   struct tally before, size_t merged, json_t **images)
{
	if (p->json) {
		add_json(p, plan, name, before, merged, *images);
		*images = NULL;
	} else if (!p->quiet) {
		print_summary(p, plan, name, before, merged);
		show_flush(stdout);
	}
	warn(p, plan, name);
	check_size(p, plan, name);
}

static int prune_name(struct prune *p, const char *name, struct usnap_err *err)
{
	const struct store_lock_options lo = {.no_wait = p->skip_if_busy, .cancel = p->interrupted};
	struct prune_carry carry = {.store = p->store, .name = name, .interrupted = p->interrupted};
	struct prune_plan plan;
	struct tally before = {0};
	json_t *images = NULL;
	int r = store_lock(&carry.lock, p->store, name, p->dry_run ? STORE_READ : STORE_REMOVE, &lo,
			   err);

	if (r < 0)
		return r;
	if (!p->dry_run)
		store_clean(store_lock_fd(carry.lock));
	r = prune_plan_make(&plan, p->store, name, &p->rules, err);
	if (r == 0) {
		before = count(&plan);
		images = p->json ? decisions(&plan) : NULL;
		if (p->dry_run && !p->quiet && !p->json)
			print_each(&plan, name);
	}
	if (r == 0 && !p->dry_run)
		r = prune_carry_out(&carry, &plan, &p->rules, err);
	if (p->dry_run ? r == 0 : carry.is_through)
		report(p, &plan, name, before, p->dry_run ? count_merged(&plan) : carry.merged,
		       &images);
	json_decref(images);
	prune_plan_free(&plan);
	store_unlock(carry.lock);
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
	OPT_NEEDED,
	OPT_JSON,
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
	{"keep-needed", required_argument, NULL, OPT_NEEDED},
	{"merge", no_argument, NULL, OPT_MERGE},
	{"json", no_argument, NULL, OPT_JSON},
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

static int set_count(const char *name, uint64_t *count)
{
	if (!strchr(optarg, 'x') && show_parse_number(optarg, count))
		return -1;
	return cli_usage_error(&cmd_prune, "cannot use '%s' as --%s: a number is wanted", optarg,
			       name);
}

/* -1, or the exit status. */
static int set(struct prune *p, int o, const char **store, char **argv)
{
	if (o >= OPT_COUNT && o < OPT_WITHIN)
		return set_count(
			counts[o - OPT_COUNT].name,
			(uint64_t *)((char *)&p->rules.keep + counts[o - OPT_COUNT].offset));
	switch (o) {
	case OPT_NEEDED:
		return set_count("keep-needed", &p->rules.spare);
	case OPT_JSON:
		p->json = true;
		return -1;
	case OPT_WITHIN:
		if (storetime_duration(optarg, &p->rules.keep.within_s) < 0)
			return cli_usage_error(&cmd_prune,
					       "cannot use '%s' as --keep-within: a time such as "
					       "36h, 7d or 1M is wanted",
					       optarg);
		return -1;
	case OPT_MAX_SIZE:
		if (!parse_size(optarg, &p->rules.keep.max_bytes))
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
		p->rules.spare = 0;
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
	struct prune p = {.worst = EXIT_DONE, .rules.spare = PRUNE_SPARE};
	struct store_names all = {0};
	struct usnap_err err = {0};
	const char *store = NULL;
	char *unit = p.of_unit;
	int r;

	opterr = 0;
	for (int o; (o = getopt_long(argc, argv, ":nq", options, NULL)) != -1;)
		if ((r = set(&p, o, &store, argv)) >= 0)
			return r;
	if (retention_is_empty(&p.rules.keep))
		return cli_usage_error(&cmd_prune, "cannot prune: no rule says what is to be kept");
	p.rules.keep.now_ms = wall_ns() / 1000000;
	p.rows = json_array();
	p.interrupted = unattended_catch_signals();
	if (refs_open_store(&p.store, store, &err) < 0)
		return msg_failure(&err);
	if (!*unit && optind == argc && store_list_names(p.store, &all, &err) < 0)
		p.worst = msg_failure(&err);
	if (*unit)
		prune_names(&p, &unit, 1, true);
	prune_names(&p, argv + optind, (size_t)(argc - optind), true);
	prune_names(&p, all.name, all.nr, false);
	if (p.json)
		p.worst =
			cli_worse(p.worst, show_json(json_pack("{s:o, s:O}", "store",
							       show_json_text(store_path(p.store)),
							       "names", p.rows)));
	json_decref(p.rows);
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
		"      --keep-needed N   let up to N images stay that only others need, before\n"
		"                        all are merged that refer to such; 24 if not given\n"
		"      --merge           the same as --keep-needed 0: keep what the rules say\n"
		"                        and nothing else\n"
		"      --store DIR       the store, if not the usual one\n"
		"      --skip-if-busy    pass over names that another run has\n"
		"      --json            tell what was decided, in JSON\n"
		"  -n, --dry-run         show what would be kept and why, and remove nothing\n"
		"  -q, --quiet           print nothing but errors\n"
		"\n"
		"The last image always stays. Those that stay are merged with what they refer\n"
		"to, where no rule keeps that, once there is enough of it. With a --max-size\n"
		"that is too small even for the last image, the exit status is 1.\n",
	.run = run_prune,
};

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/msg.h"
#include "cli/refs.h"
#include "cli/show.h"
#include "common/util.h"
#include "store/links.h"
#include "store/retention.h"
#include "store/storetime.h"

struct prune {
	struct store *store;
	struct retention rules;
	bool dry_run, quiet, skip_if_busy;
	int worst;
};

/* What is decided about the images of a name. */
struct verdict {
	struct store_images images;
	struct store_link *links;
	struct retention_item *items; /* those that are readable, in order */
	bool *keep;
	unsigned *why; /* KEEP_..., 0: needed by others */
	size_t held; /* kept for others only */
};

static void verdict_free(struct verdict *v)
{
	store_links_free(v->links, v->images.nr);
	store_images_free(&v->images);
	free(v->items);
	free(v->keep);
	free(v->why);
}

static int judge(const struct prune *p, const char *name, struct verdict *v, struct usnap_err *err)
{
	size_t n = 0, k = 0;
	int r;

	if ((r = store_scan(p->store, name, &v->images, err)) < 0 ||
	    (r = store_links_load(p->store, name, &v->images, &v->links, err)) < 0)
		return r;
	v->items = calloc(v->images.nr + 1, sizeof(*v->items));
	v->keep = calloc(v->images.nr + 1, sizeof(*v->keep));
	v->why = calloc(v->images.nr + 1, sizeof(*v->why));
	if (!v->items || !v->keep || !v->why)
		return usnap_fail_errno(err, -ENOMEM, "cannot prune '%s'", name);
	/* A damaged image is no good as the one of its day. It is not removed behind
	 * anybody's back either. */
	for (size_t i = 0; i < v->images.nr; i++) {
		v->keep[i] = !v->links[i].readable;
		if (v->links[i].readable)
			v->items[n++] = (struct retention_item){.t0_ms = v->images.image[i].t0_ms,
								.bytes = v->images.image[i].bytes};
	}
	retention_apply(&p->rules, v->items, n);
	for (size_t i = 0; i < v->images.nr; i++)
		if (v->links[i].readable) {
			v->why[i] = v->items[k++].keep;
			v->keep[i] = v->why[i] != 0;
		}
	v->held = store_links_close(v->links, v->keep, v->images.nr);
	return 0;
}

static void print_each(const struct verdict *v, const char *name)
{
	char stamp[STORETIME_STAMP + 1], reasons[96];

	for (size_t i = 0; i < v->images.nr; i++) {
		if (storetime_stamp(v->images.image[i].t0_ms, stamp) < 0)
			continue;
		printf("%s ", v->keep[i] ? "keep  " : "remove");
		show_text(name);
		printf("@%s", stamp);
		if (v->keep[i] && v->why[i])
			printf("  %s", retention_reasons(v->why[i], reasons, sizeof(reasons)));
		else if (v->keep[i])
			fputs(v->links[i].readable ? "  needed by others" : "  damaged", stdout);
		putchar('\n');
	}
}

static void print_summary(const struct prune *p, const struct verdict *v, const char *name)
{
	size_t kept = 0, gone = 0;
	uint64_t kept_bytes = 0, gone_bytes = 0;
	char a[24], b[24];

	for (size_t i = 0; i < v->images.nr; i++) {
		uint64_t bytes = v->images.image[i].bytes;

		kept += v->keep[i];
		gone += !v->keep[i];
		kept_bytes += v->keep[i] ? bytes : 0;
		gone_bytes += v->keep[i] ? 0 : bytes;
	}
	show_text(name);
	printf(": %zu image%s %sremoved (%s), %zu kept (%s)", gone, gone == 1 ? "" : "s",
	       p->dry_run ? "would be " : "", show_size(a, gone_bytes), kept,
	       show_size(b, kept_bytes));
	if (v->held)
		printf(", %zu of them for others that refer to %s", v->held,
		       v->held == 1 ? "it" : "them");
	putchar('\n');
}

/* Whatever cannot be read is said each time, until somebody decides. */
static void warn(struct prune *p, const struct verdict *v)
{
	for (size_t i = 0; i < v->images.nr; i++)
		if (!v->links[i].readable) {
			msg_error("%s; it is kept, and what is older", v->links[i].why);
			p->worst = cli_worse(p->worst, EXIT_DAMAGED);
		}
}

static int prune_name(struct prune *p, const char *name, struct usnap_err *err)
{
	const struct store_lock_options lo = {.no_wait = p->skip_if_busy};
	struct verdict v = {0};
	struct store_lock *lock;
	size_t removed;
	int r = store_lock(&lock, p->store, name, p->dry_run ? STORE_READ : STORE_REMOVE, &lo, err);

	if (r < 0)
		return r;
	if (!p->dry_run)
		store_clean(store_lock_fd(lock));
	cleanup_free bool *remove = NULL;

	r = judge(p, name, &v, err);
	if (r == 0 && !p->dry_run) {
		remove = calloc(v.images.nr + 1, sizeof(*remove));
		for (size_t i = 0; remove && i < v.images.nr; i++)
			remove[i] = !v.keep[i];
		r = remove ? store_links_remove(v.links, &v.images, remove, store_lock_fd(lock),
						&removed)
			   : -ENOMEM;
		if (r < 0)
			usnap_fail_errno(err, r, "cannot remove from '%s/%s'", store_path(p->store),
					 name);
	}
	if (r == 0) {
		if (p->dry_run && !p->quiet)
			print_each(&v, name);
		if (!p->quiet)
			print_summary(p, &v, name);
		fflush(stdout);
		warn(p, &v);
	}
	verdict_free(&v);
	store_unlock(lock);
	return r;
}

static void prune_names(struct prune *p, char **names, size_t nr, bool given)
{
	for (size_t i = 0; i < nr; i++) {
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
	OPT_STORE,
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
	{"store", required_argument, NULL, OPT_STORE},
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
	case OPT_STORE:
		*store = optarg;
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
	int r;

	opterr = 0;
	for (int o; (o = getopt_long(argc, argv, ":nq", options, NULL)) != -1;)
		if ((r = set(&p, o, &store, argv)) >= 0)
			return r;
	if (retention_is_empty(&p.rules))
		return cli_usage_error(&cmd_prune, "cannot prune: no rule says what is to be kept");
	if (refs_open_store(&p.store, store, &err) < 0)
		return msg_failure(&err);
	if (optind < argc)
		prune_names(&p, argv + optind, (size_t)(argc - optind), true);
	else if (store_list_names(p.store, &all, &err) < 0)
		p.worst = msg_failure(&err);
	else
		prune_names(&p, all.name, all.nr, false);
	store_names_free(&all);
	store_close(p.store);
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
		"      --store DIR       the store, if not the usual one\n"
		"      --skip-if-busy    pass over names that another run has\n"
		"  -n, --dry-run         show what would be kept and why, and remove nothing\n"
		"  -q, --quiet           print nothing but errors\n"
		"\n"
		"The last image always stays, and so does what an image that stays refers to.\n",
	.run = run_prune,
};

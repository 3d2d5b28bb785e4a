#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/cli.h"
#include "cli/msg.h"
#include "cli/refs.h"
#include "cli/show.h"
#include "common/util.h"
#include "store/links.h"
#include "store/storetime.h"

struct removal {
	struct store *store;
	bool all, dry_run, quiet;
};

/* Refuses what is older than an image that cannot be read at the moment: nobody knows what it needs.
 * With a damaged one it makes no difference. */
static int check_unknown(const char *name, const struct store_images *images,
			 const struct store_link *links, const bool *remove, struct usnap_err *err)
{
	bool any = false;

	for (size_t i = 0; i < images->nr; i++) {
		any |= remove[i];
		if (any && !remove[i] && !links[i].readable && !links[i].damaged) {
			usnap_fail(err, -EBUSY,
				   "cannot remove from '%s': what '%s' refers to is not known; "
				   "%.300s",
				   name, images->image[i].file, links[i].why);
			return usnap_hint(err, "remove that one as well, or first");
		}
	}
	return 0;
}

/* Refuses what an image that stays needs. */
static int check_needed(const char *name, const struct store_images *images,
			const struct store_link *links, const bool *remove, struct usnap_err *err)
{
	cleanup_free bool *keep = malloc(images->nr + 1), *closed = malloc(images->nr + 1);

	if (!keep || !closed)
		return usnap_fail_errno(err, -ENOMEM, "cannot remove from '%s'", name);
	for (size_t i = 0; i < images->nr; i++)
		/* One that is damaged needs what it needs; it does not hold back others here. */
		closed[i] = keep[i] = !remove[i] && links[i].readable;
	store_links_close(links, closed, images->nr);
	for (size_t i = 0; i < images->nr; i++)
		for (size_t k = images->nr; closed[i] && remove[i] && k-- > 0;)
			for (size_t n = 0; keep[k] && n < links[k].nr_needs; n++)
				if (links[k].needs[n] == i) {
					usnap_fail(err, -EBUSY,
						   "cannot remove '%s/%s': image %.8s refers to it",
						   name, images->image[i].file,
						   images->image[k].id);
					return usnap_hint(err, "remove that one as well, or first");
				}
	return 0;
}

/* "The last one before" is good enough to look at, not to remove: what was named must be there. How long
 * ago says no more than that, and means the one that other commands take. */
static int check_meant(const char *name, const char *when, const struct store_image *found,
		       int64_t now_s, struct usnap_err *err)
{
	char time[STORETIME_LOCAL + 1];
	uint64_t from_ms, until_ms;

	if (*when == '-' || storetime_parse_span(when, now_s, &from_ms, &until_ms) < 0 ||
	    found->t0_ms >= from_ms)
		return 0;
	storetime_local(found->t0_ms, time);
	usnap_fail(err, -ENOENT, "cannot remove '%s@%s': there is no image of that time", name,
		   when);
	return usnap_hint(err, "the last one before is %s@%s", name, time);
}

static int mark(const struct removal *rm, const char *name, char **whens, size_t nr,
		const struct store_images *images, bool *remove, struct usnap_err *err)
{
	const struct store_image *found;
	const int64_t now_s = time(NULL);
	int r;

	if (rm->all)
		memset(remove, true, images->nr);
	for (size_t i = 0; !rm->all && i < nr; i++) {
		if ((r = store_find(images, name, whens[i], now_s, &found, err)) < 0 ||
		    (r = check_meant(name, whens[i], found, now_s, err)) < 0)
			return r;
		remove[found - images->image] = true;
	}
	return 0;
}

static void tell(const struct removal *rm, const char *name, const struct store_images *images,
		 const bool *remove)
{
	char stamp[STORETIME_STAMP + 1];

	for (size_t i = 0; !rm->quiet && i < images->nr; i++) {
		if (!remove[i] || storetime_stamp(images->image[i].t0_ms, stamp) < 0)
			continue;
		printf("%s ", rm->dry_run ? "would remove" : "removed");
		show_text(name);
		printf("@%s\n", stamp);
	}
}

static int remove_from(const struct removal *rm, const char *name, char **whens, size_t nr,
		       struct usnap_err *err)
{
	struct store_images images = {0};
	struct store_link *links = NULL;
	struct store_lock *lock;
	cleanup_free bool *remove = NULL;
	size_t removed;
	int r = store_lock(&lock, rm->store, name, rm->dry_run ? STORE_READ : STORE_REMOVE, NULL,
			   err);

	if (r < 0)
		return r;
	if (!rm->dry_run)
		store_clean(store_lock_fd(lock));
	if ((r = store_scan(rm->store, name, &images, err)) < 0 ||
	    (r = store_links_load(rm->store, name, &images, &links, err)) < 0)
		goto out;
	if (!(remove = calloc(images.nr + 1, sizeof(*remove)))) {
		r = usnap_fail_errno(err, -ENOMEM, "cannot remove from '%s'", name);
		goto out;
	}
	if ((r = mark(rm, name, whens, nr, &images, remove, err)) < 0 ||
	    (r = check_unknown(name, &images, links, remove, err)) < 0 ||
	    (r = check_needed(name, &images, links, remove, err)) < 0)
		goto out;
	if (!rm->dry_run &&
	    (r = store_links_remove(links, &images, remove, store_lock_fd(lock), &removed)) < 0)
		usnap_fail_errno(err, r, "cannot remove from '%s/%s'", store_path(rm->store), name);
	else
		tell(rm, name, &images, remove);
out:
	store_links_free(links, images.nr);
	store_images_free(&images);
	if (rm->dry_run)
		store_unlock(lock);
	else
		store_unlock_empty(lock);
	return r;
}

/* Arguments of one name go together: what refers to each other can be removed at once. */
static int remove_all(const struct removal *rm, char **args, size_t nr, struct usnap_err *err)
{
	cleanup_free char **whens = calloc(nr + 1, sizeof(*whens));
	cleanup_free bool *done = calloc(nr + 1, sizeof(*done));
	char name[STORE_NAME_MAX + 1], other[STORE_NAME_MAX + 1];
	const char *when;
	int r = 0;

	if (!whens || !done)
		return usnap_fail_errno(err, -ENOMEM, "cannot remove images");
	for (size_t i = 0; r == 0 && i < nr; i++) {
		size_t n = 0;

		if (done[i])
			continue;
		refs_split(args[i], name, &when);
		for (size_t k = i; k < nr; k++) {
			refs_split(args[k], other, &when);
			if (strcmp(name, other) != 0)
				continue;
			whens[n++] = (char *)when;
			done[k] = true;
		}
		r = remove_from(rm, name, whens, n, err);
	}
	return r;
}

static int run_rm(int argc, char **argv)
{
	static const struct option options[] = {{"store", required_argument, NULL, 's'},
						{"all", no_argument, NULL, 'a'},
						{"dry-run", no_argument, NULL, 'n'},
						{"quiet", no_argument, NULL, 'q'},
						{0}};
	struct removal rm = {0};
	struct usnap_err err = {0};
	const char *store = NULL, *when;
	char name[STORE_NAME_MAX + 1];
	int r;

	opterr = 0;
	for (int o; (o = getopt_long(argc, argv, ":nq", options, NULL)) != -1;) {
		if (o == 's')
			store = optarg;
		else if (o == 'a')
			rm.all = true;
		else if (o == 'n')
			rm.dry_run = true;
		else if (o == 'q')
			rm.quiet = true;
		else
			return cli_usage_error(&cmd_rm,
					       o == ':' ? "cannot remove: '%s' takes a value"
							: "cannot remove: unknown option '%s'",
					       argv[optind - 1]);
	}
	if (optind == argc)
		return cli_usage_error(&cmd_rm, "cannot remove: no image given");
	for (int i = optind; i < argc; i++) {
		if (!refs_split(argv[i], name, &when))
			return cli_usage_error(
				&cmd_rm, "cannot remove '%s': not a name in the store", argv[i]);
		/* Elsewhere a name means its newest image: here that would surprise somebody. */
		if (!when != rm.all)
			return cli_usage_error(
				&cmd_rm,
				when ? "cannot remove '%s' with --all, which takes names"
				     : "cannot remove '%s': which image? "
				       "NAME@TIME, or --all",
				argv[i]);
	}
	if (refs_open_store(&rm.store, store, &err) < 0)
		return msg_failure(&err);
	r = remove_all(&rm, argv + optind, (size_t)(argc - optind), &err);
	store_close(rm.store);
	return r < 0 ? msg_failure(&err) : EXIT_DONE;
}

const struct cli_command cmd_rm = {
	.name = "rm",
	.args = "[OPTION]... NAME@TIME...",
	.summary = "remove images from the store",
	.help = "      --store DIR  the store, if not the usual one\n"
		"      --all        all images of each NAME, and the name itself\n"
		"  -n, --dry-run    say what would be removed, and remove nothing\n"
		"  -q, --quiet      print nothing but errors\n",
	.run = run_rm,
};

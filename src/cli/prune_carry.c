#include "cli/prune_carry.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cli/show.h"
#include "common/util.h"
#include "image/merge.h"
#include "store/store_commit.h"

/* What merging takes at most, beside what there is until all is done. */
static int hint_room(const struct prune_plan *p, struct usnap_err *err)
{
	uint64_t bytes = 0;
	char size[24];

	for (size_t i = 0; i < p->images.nr; i++)
		if (p->keep[i])
			bytes += p->images.image[i].bytes;
	return usnap_hint(err, "merging needs up to %s; all images are as they were",
			  show_size(size, bytes));
}

static int open_image(const struct prune_carry *c, const struct prune_plan *p, long at,
		      struct usnap_image **ret, struct usnap_err *err)
{
	cleanup_free char *path = NULL;
	int r;

	if (!(*ret = usnap_image_new()) || asprintf(&path, "%s/%s/%s", store_path(c->store),
						    c->name, p->images.image[at].file) < 0)
		return usnap_fail_errno(err, -ENOMEM, "cannot merge '%s'",
					p->images.image[at].file);
	r = usnap_image_open(*ret, path);
	return r < 0 ? usnap_fail(err, r, "%s", usnap_image_error(*ret)) : 0;
}

static int write_merged(const struct prune_carry *c, struct merge_options *o,
			struct usnap_image *img, char file[STORE_FILE_LEN + 1],
			struct usnap_err *err)
{
	cleanup_free char *path = NULL;
	struct output *out = NULL;
	int r = store_new_path(c->store, c->name, &path, err);

	if (r == 0)
		r = output_open(&out, path, err);
	if (r == 0) {
		o->fd = output_fd(out);
		r = image_merge(img, o, NULL, err);
	}
	if (r == 0)
		r = store_commit(out, file, err);
	output_close(out);
	return r;
}

/* The merged image is there beside its original, which goes when nothing refers to it: killed
 * here, the next run sees to that. */
static int merge(const struct prune_carry *c, const struct prune_plan *plan,
		 char file[STORE_FILE_LEN + 1], struct usnap_err *err)
{
	struct merge_options o = {.level = 1, .cancel = c->interrupted};
	struct usnap_image *img = NULL;
	int r = open_image(c, plan, plan->merge, &img, err);

	if (r == 0 && plan->parent >= 0)
		r = open_image(c, plan, plan->parent, &o.parent, err);
	if (r == 0)
		r = write_merged(c, &o, img, file, err);
	if ((r == -ESTALE || r == -EBADMSG) && o.parent && !(c->interrupted && *c->interrupted)) {
		/* It has another secret, say, or is damaged: without it, all is copied. */
		usnap_image_free(o.parent);
		o.parent = NULL;
		*err = (struct usnap_err){0};
		r = write_merged(c, &o, img, file, err);
	}
	usnap_image_free(img);
	usnap_image_free(o.parent);
	if (r < 0)
		return r;
	if (&plan->images.image[plan->merge] ==
		    store_newest(&plan->images, NULL, wall_ns() / 1000000) &&
	    (r = store_set_latest(store_lock_fd(c->lock), file)) < 0)
		return usnap_fail_errno(err, r, "cannot set 'latest' to '%s'", file);
	return 0;
}

/* Merged images beside their originals are of use to the next run only if that gets further: with a
 * full disk it would not. */
static void roll_back(const struct prune_carry *c)
{
	struct store_images images = {0};
	struct store_link *links = NULL;
	cleanup_free size_t *lowest = NULL;
	cleanup_free bool *keep = NULL;
	size_t removed;

	if (store_scan(c->store, c->name, &images, NULL) < 0 ||
	    store_links_load(c->store, c->name, &images, &links, NULL) < 0)
		goto out;
	keep = calloc(images.nr + 1, sizeof(*keep));
	lowest = calloc(images.nr + 1, sizeof(*lowest)); /* by first_version: where it is, + 1 */
	if (!keep || !lowest)
		goto out;
	for (size_t i = 0; i < images.nr; i++) {
		size_t *l = &lowest[links[i].first_version];

		if (store_links_is_complete(links, i) &&
		    (!*l || links[i].times_merged < links[*l - 1].times_merged))
			*l = i + 1;
	}
	for (size_t i = 0; i < images.nr; i++) {
		size_t l = lowest[links[i].first_version];

		keep[i] = !l || links[i].times_merged <= links[l - 1].times_merged;
	}
	store_links_close(links, keep, images.nr);
	for (size_t i = 0; i < images.nr; i++)
		keep[i] = !keep[i];
	store_links_remove(links, &images, keep, store_lock_fd(c->lock), &removed);
out:
	store_links_free(links, images.nr);
	store_images_free(&images);
}

/* What was given up for its size is not wanted again when merging has made room: it may have lost
 * what it needs to be worth it. */
static void note_given_up(const struct prune_plan *p, struct prune_rules *rules)
{
	size_t i = 0;

	while (i < p->images.nr && !p->why[i])
		i++;
	if (rules->keep.max_bytes && i < p->images.nr)
		rules->since_ms = MAX(rules->since_ms, p->images.image[i].t0_ms);
}

/* Merged images take the place of the last plan's; the rules as they have become are those to go on
 * with. */
struct carrying {
	struct prune_rules rules;
	char (*unfit)[STORE_ID_LEN + 1];
	struct usnap_err first; /* what went wrong with one image, not with others */
};

static int plan_again(const struct prune_carry *c, struct carrying *k, struct prune_plan *plan,
		      struct usnap_err *err)
{
	prune_plan_free(plan);
	return prune_plan_make(plan, c->store, c->name, &k->rules, err);
}

/* It stays as it is, and the others are gone on with. */
static int pass_over(struct carrying *k, const char *id, const struct usnap_err *why,
		     struct usnap_err *err)
{
	char(*unfit)[STORE_ID_LEN + 1] =
		realloc(k->unfit, (k->rules.nr_unfit + 1) * sizeof(*k->unfit));

	if (!unfit)
		return usnap_fail_errno(err, -ENOMEM, "cannot merge image %s", id);
	memcpy(unfit[k->rules.nr_unfit++], id, sizeof(*unfit));
	k->rules.unfit = (const char(*)[STORE_ID_LEN + 1])(k->unfit = unfit);
	if (!k->first.code)
		k->first = *why;
	return 0;
}

static long find_image(const struct prune_plan *p, const char *id)
{
	for (size_t i = 0; i < p->images.nr; i++)
		if (!strcmp(p->images.image[i].id, id))
			return (long)i;
	return -1;
}

/* Whatever is the reason: what is not replaced by what was made of it would be merged again and
 * again. plan: with what was made of it, which goes. */
static int check_replaced(const struct prune_carry *c, const struct prune_plan *plan,
			  const char *id, const char *file, struct usnap_err *err)
{
	long old = find_image(plan, id);
	cleanup_free bool *remove = calloc(plan->images.nr + 1, sizeof(*remove));
	size_t removed;
	int r = remove ? 0 : -ENOMEM;

	if (old < 0 || plan->links[old].replaced)
		return 0;
	for (size_t i = 0; remove && i < plan->images.nr; i++)
		remove[i] = (long)i != old && !strcmp(plan->images.image[i].file, file);
	if (r == 0)
		r = store_links_remove(plan->links, &plan->images, remove, store_lock_fd(c->lock),
				       &removed);
	if (r < 0)
		return usnap_fail_errno(err, r, "cannot remove from '%s/%s'", store_path(c->store),
					c->name);
	return usnap_fail(err, -EBADMSG, "cannot merge '%s/%s': the result does not replace it",
			  c->name, plan->images.image[old].file);
}

/* One image, or the finding that it cannot be. */
static int carry_on(struct prune_carry *c, struct carrying *k, struct prune_plan *plan,
		    struct usnap_err *err)
{
	struct usnap_err why = {0};
	char id[STORE_ID_LEN + 1], file[STORE_FILE_LEN + 1];
	int r, m;

	memcpy(id, plan->images.image[plan->merge].id, sizeof(id));
	m = merge(c, plan, file, &why);
	if (m == 0) {
		if ((r = plan_again(c, k, plan, err)) < 0)
			return r;
		m = check_replaced(c, plan, id, file, &why);
		c->merged += m == 0;
	}
	if (m == 0)
		return 0;
	if (m != -EBADMSG && m != -ESTALE) {
		*err = why;
		return m;
	}
	r = pass_over(k, id, &why, err);
	return r < 0 ? r : plan_again(c, k, plan, err);
}

int prune_carry_out(struct prune_carry *c, struct prune_plan *plan, const struct prune_rules *rules,
		    struct usnap_err *err)
{
	struct carrying k = {.rules = *rules};
	size_t removed;
	int r;

	/* First what can go as it is: merging needs room. */
	for (;;) {
		r = store_links_remove(plan->links, &plan->images, plan->remove,
				       store_lock_fd(c->lock), &removed);
		if (r < 0) {
			usnap_fail_errno(err, r, "cannot remove from '%s/%s'", store_path(c->store),
					 c->name);
			break;
		}
		if (plan->merge < 0 || (c->interrupted && *c->interrupted)) {
			c->is_through = true;
			break;
		}
		note_given_up(plan, &k.rules);
		/* What is begun is brought to its end: with fewer held than may be there would be
		 * both, what is merged and what it was merged of. */
		k.rules.spare = 0;
		if ((r = carry_on(c, &k, plan, err)) < 0) {
			if (r != -ECANCELED)
				roll_back(c);
			if (r == -ENOSPC || r == -EDQUOT)
				r = hint_room(plan, err);
			break;
		}
	}
	free(k.unfit);
	if (r == 0 && k.first.code) {
		*err = k.first;
		r = k.first.code;
	}
	return r;
}

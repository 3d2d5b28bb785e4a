#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "cli/carry.h"
#include "cli/msg.h"
#include "cli/refs.h"
#include "cli/show.h"
#include "common/util.h"
#include "store/links.h"
#include "store/storelock.h"

struct push {
	struct carry carry;
	const char *when; /* of NAME@TIME, or NULL */
	char *dir; /* of the name, absolute: rclone takes "a:b/c" for a remote */
	struct store_images images;
	struct store_link *links;
	enum carry_state *state; /* one for each image */
	bool *wanted;
	char type[RCLONE_TYPE_LEN + 1]; /* of hashes that the remote knows, or "" */
	bool has_type;
};

/* ---- one image --------------------------------------------------------------------------------- */

/* Its own bytes: what it refers to is looked at when it is pushed itself. */
static int verify_local(const char *path, char *why, size_t room)
{
	const struct usnap_verify_options o = {.size = sizeof(o), .no_chain = 1};
	struct usnap_image *img = usnap_image_new();
	int r = img ? usnap_image_open(img, path) : -ENOMEM;

	if (r == 0)
		r = usnap_image_verify(img, &o);
	if (r < 0)
		snprintf(why, room, "%s", usnap_image_error(img));
	usnap_image_free(img);
	return r;
}

/* Is what lies at path the file local? 1 or 0. By the remote's own hash if it has one of the file,
 * else by reading it. */
static int compare(struct push *p, const char *local, const char *path, struct usnap_err *err)
{
	char here[RCLONE_HASH_LEN + 1], there[RCLONE_HASH_LEN + 1] = "";
	const struct rclone *rc = &p->carry.rclone;
	const char *type;
	int r = 0;

	if (!p->has_type)
		r = rclone_hash_type(rc, p->carry.remote, p->type, err);
	if (r < 0)
		return r;
	p->has_type = true;
	type = *p->type ? p->type : "md5";
	if (*p->type)
		r = rclone_hash(rc, path, type, false, there, err);
	if (r == 0 && !*there)
		r = rclone_hash(rc, path, type, true, there, err);
	if (r < 0 || (r = rclone_hash(rc, local, type, true, here, err)) < 0)
		return r;
	return strcmp(here, there) == 0;
}

static int hint_room(const struct push *p, int r, struct usnap_err *err)
{
	uint64_t bytes = p->carry.bytes_wanted - p->carry.bytes_done;
	char size[24];

	return r == -ENOSPC
		       ? usnap_hint(err, "what is missing there needs %s", show_size(size, bytes))
		       : r;
}

/* Under another name until it is known to be whole: what has the name of an image is one. */
static int upload(struct push *p, const struct store_image *image, const char *local,
		  struct usnap_err *err)
{
	const struct rclone *rc = &p->carry.rclone;
	char part[STORE_FILE_LEN + 24];
	cleanup_free char *temporary = NULL, *path = rclone_join(p->carry.remote, image->file);
	uint32_t random = 0;
	int r;

	if (getrandom(&random, sizeof(random), 0) != sizeof(random))
		return usnap_fail_errno(err, -EIO, "cannot push '%s'", image->file);
	snprintf(part, sizeof(part), ".%s.%08" PRIx32 ".part", image->file, random);
	temporary = rclone_join(p->carry.remote, part);
	if (!path || !temporary)
		return usnap_fail_errno(err, -ENOMEM, "cannot push '%s'", image->file);
	if ((r = rclone_put(rc, local, temporary, err)) == 0) {
		r = compare(p, local, temporary, err);
		if (r == 0)
			r = usnap_fail(err, -EIO,
				       "cannot push '%s': what arrived at '%s' differs from it",
				       image->file, p->carry.remote);
		else if (r > 0)
			r = rclone_rename(rc, temporary, path, err);
	}
	/* Whoever has ended us does not wait for another request: the next run removes it. */
	if (r < 0 && !*p->carry.interrupted)
		rclone_remove(rc, temporary, NULL);
	return hint_room(p, r, err);
}

static int check_there(struct push *p, const struct store_image *image, const char *local,
		       const struct rclone_file *there, enum carry_state *ret,
		       struct usnap_err *err)
{
	cleanup_free char *path = rclone_join(p->carry.remote, image->file);
	int r = 1;

	if (!path)
		return usnap_fail_errno(err, -ENOMEM, "cannot check '%s'", image->file);
	if (there->bytes != image->bytes) {
		*ret = carry_bad(&p->carry, image, -EBADMSG,
				 "cannot use '%s': it has %" PRIu64 " bytes instead of %" PRIu64
				 " as in the store",
				 path, there->bytes, image->bytes);
		return 0;
	}
	if (p->carry.check && (r = compare(p, local, path, err)) < 0)
		return r;
	if (r == 0) {
		*ret = carry_bad(&p->carry, image, -EBADMSG,
				 "cannot use '%s': it differs from the image in the store", path);
		return 0;
	}
	*ret = CARRY_PRESENT;
	carry_tell(&p->carry, image, CARRY_PRESENT);
	return 0;
}

/* What it needs is there, or bad. */
static int push_image(struct push *p, size_t i, struct usnap_err *err)
{
	const struct store_image *image = &p->images.image[i];
	const struct store_link *l = &p->links[i];
	const struct rclone_file *there = rclone_files_find(&p->carry.there, image->file);
	cleanup_free char *local = NULL;
	char why[512];
	int r;

	if (asprintf(&local, "%s/%s", p->dir, image->file) < 0) {
		local = NULL;
		return usnap_fail_errno(err, -ENOMEM, "cannot push '%s'", image->file);
	}
	p->state[i] = CARRY_BAD;
	if (!l->readable)
		return carry_bad(&p->carry, image, l->damaged ? -EBADMSG : -EIO, "%s", l->why), 0;
	if (l->nr_missing)
		return carry_bad(&p->carry, image, -EBADMSG,
				 "cannot push '%s': the image %s, which it refers to, is missing",
				 local, l->missing),
		       0;
	for (size_t k = 0; k < l->nr_needs; k++)
		if (p->state[l->needs[k]] == CARRY_BAD)
			return carry_bad(&p->carry, image, -EBADMSG,
					 "cannot push '%s': '%s', which it refers to, is not there",
					 local, p->images.image[l->needs[k]].file),
			       0;
	if (there)
		return check_there(p, image, local, there, &p->state[i], err);
	if (!p->carry.dry_run) {
		progress_update(&p->carry.progress, "pushing", p->carry.bytes_done,
				p->carry.bytes_wanted);
		r = verify_local(local, why, sizeof(why));
		if (r == -EBADMSG)
			return carry_bad(&p->carry, image, r, "%s", why), 0;
		if (r < 0)
			return usnap_fail(err, r, "%s", why);
		if ((r = upload(p, image, local, err)) < 0)
			return r;
	}
	p->state[i] = CARRY_DONE;
	carry_tell(&p->carry, image, CARRY_DONE);
	return 0;
}

/* ---- all of them ------------------------------------------------------------------------------- */

static bool is_ready(const struct push *p, size_t i)
{
	for (size_t k = 0; k < p->links[i].nr_needs; k++)
		if (p->state[p->links[i].needs[k]] == CARRY_PENDING)
			return false;
	return true;
}

/* What others refer to first. One round, unless clocks went back. */
static int push_images(struct push *p, struct usnap_err *err)
{
	bool any = true;
	int r;

	while (any) {
		any = false;
		for (size_t i = 0; i < p->images.nr; i++) {
			if (!p->wanted[i] || p->state[i] != CARRY_PENDING || !is_ready(p, i))
				continue;
			if ((r = push_image(p, i, err)) < 0)
				return r;
			any = true;
		}
	}
	return 0;
}

/* ".FILE.XXXXXXXX.part", and what newer versions of rclone make of it while they write. */
static bool is_leftover(const char *name)
{
	struct store_image image;
	char file[STORE_FILE_LEN + 1];
	size_t len = strlen(name);

	if (*name != '.' || len < 1 + STORE_FILE_LEN + 6 || name[1 + STORE_FILE_LEN] != '.')
		return false;
	snprintf(file, sizeof(file), "%s", name + 1);
	return store_file_parse(file, &image) &&
	       (strcmp(name + len - 5, ".part") == 0 || strcmp(name + len - 8, ".partial") == 0);
}

static int remove_leftovers(struct push *p, struct usnap_err *err)
{
	for (size_t i = 0; i < p->carry.there.nr; i++) {
		cleanup_free char *path = NULL;
		struct usnap_err why = {0};
		int r = 0;

		if (!is_leftover(p->carry.there.file[i].name))
			continue;
		if (!(path = rclone_join(p->carry.remote, p->carry.there.file[i].name)))
			return usnap_fail_errno(err, -ENOMEM, "cannot remove leftovers");
		if (!p->carry.dry_run)
			r = rclone_remove(&p->carry.rclone, path, &why);
		if (r < 0 && r != -ENOENT) {
			*err = why;
			return r;
		}
		p->carry.nr_leftovers++;
	}
	return 0;
}

/* What the remote tells now is what counts. */
static int check_all(struct push *p, struct usnap_err *err)
{
	struct rclone_files now;
	int r = rclone_list(&p->carry.rclone, p->carry.remote, &now, err);

	if (r < 0)
		return r;
	for (size_t i = 0; r == 0 && i < p->images.nr; i++) {
		const struct store_image *image = &p->images.image[i];
		const struct rclone_file *f = rclone_files_find(&now, image->file);

		if (p->state[i] != CARRY_DONE && p->state[i] != CARRY_PRESENT)
			continue;
		if (!f || f->bytes != image->bytes)
			r = usnap_fail(err, -EIO, "cannot push to '%s': '%s' is not there %s",
				       p->carry.remote, image->file,
				       f ? "in its size" : "afterwards");
	}
	rclone_files_free(&now);
	return r;
}

static int choose(struct push *p, struct usnap_err *err)
{
	size_t nr = p->images.nr;
	const struct store_image *one;
	int r;

	p->state = calloc(nr + 1, sizeof(*p->state));
	p->wanted = calloc(nr + 1, sizeof(*p->wanted));
	if (!p->state || !p->wanted)
		return usnap_fail_errno(err, -ENOMEM, "cannot push '%s'", p->carry.name);
	if (p->when) {
		if ((r = store_find(&p->images, p->carry.name, p->when, time(NULL), &one, err)) < 0)
			return r;
		p->wanted[one - p->images.image] = true;
		/* Not older ones that nobody can read: they would be named for nothing. */
		if (p->links[one - p->images.image].readable)
			store_links_close(p->links, p->wanted, nr);
	} else {
		memset(p->wanted, true, nr);
	}
	for (size_t i = 0; i < nr; i++)
		if (p->wanted[i] && !rclone_files_find(&p->carry.there, p->images.image[i].file))
			p->carry.bytes_wanted += p->images.image[i].bytes;
	return 0;
}

static int push_locked(struct push *p, struct store *s, struct usnap_err *err)
{
	cleanup_free char *store = realpath(store_path(s), NULL);
	int r;

	if (!store || asprintf(&p->dir, "%s/%s", store, p->carry.name) < 0) {
		p->dir = NULL;
		return usnap_fail_errno(err, store ? -ENOMEM : -errno, "cannot push '%s'",
					p->carry.name);
	}
	if ((r = store_scan(s, p->carry.name, &p->images, err)) < 0 ||
	    (r = store_links_load(s, p->carry.name, &p->images, &p->links, err)) < 0)
		return r;
	r = carry_open(&p->carry, err);
	if (r == -ENOENT) {
		*err = (struct usnap_err){0}; /* the first push makes it */
		r = 0;
	}
	if (r < 0 || (r = choose(p, err)) < 0 || (r = remove_leftovers(p, err)) < 0)
		return r;
	progress_start(&p->carry.progress, p->carry.quiet || p->carry.json);
	r = push_images(p, err);
	progress_end(&p->carry.progress);
	return r == 0 && p->carry.nr_done && !p->carry.dry_run ? check_all(p, err) : r;
}

static int push(struct push *p, struct usnap_err *err)
{
	const struct store_lock_options lo = {.no_wait = p->carry.skip_if_busy,
					      .cancel = p->carry.interrupted};
	struct store_lock *lock = NULL;
	struct store *s = NULL;
	int r = refs_open_store(&s, p->carry.store, err);

	if (r == 0)
		r = store_lock(&lock, s, p->carry.name, p->carry.dry_run ? STORE_READ : STORE_PUSH,
			       &lo, err);
	if (r == 0)
		r = push_locked(p, s, err);
	store_links_free(p->links, p->images.nr);
	store_images_free(&p->images);
	free(p->state);
	free(p->wanted);
	free(p->dir);
	store_unlock(lock);
	store_close(s);
	return r;
}

static int run_push(int argc, char **argv)
{
	struct push p = {.carry = {.command = &cmd_push, .past = "pushed"}};
	struct usnap_err err = {0};
	int r = carry_options(&p.carry, argc, argv);

	if (r >= 0)
		return r;
	if (argc - optind != 2)
		return cli_usage_error(&cmd_push, "cannot push: a name and a remote are wanted");
	if (!refs_split(argv[optind], p.carry.name, &p.when))
		return cli_usage_error(&cmd_push, "cannot push '%s': not a name in the store",
				       argv[optind]);
	p.carry.remote = argv[optind + 1];
	if ((r = carry_begin(&p.carry)) >= 0)
		return r;
	r = push(&p, &err);
	return carry_finish(&p.carry, r, &err);
}

const struct cli_command cmd_push = {
	.name = "push",
	.args = "[OPTION]... NAME[@TIME] REMOTE:PATH",
	.summary = "carry images to another place, with rclone",
	.help = "      --check         compare what is there already by its hash, too\n"
		"      --store DIR     the store, if not the usual one\n"
		"      --skip-if-busy  end well when another push of the name is under way\n"
		"  -n, --dry-run       say what would be carried, and change nothing\n"
		"  -q, --quiet         print nothing but errors\n"
		"      --json          print JSON\n"
		"\n"
		"Carries the images of a name, or one and what it refers to, as far as PATH\n"
		"lacks them. REMOTE:PATH is a directory for this name alone, in what rclone\n"
		"knows as REMOTE. Images get their names there when they are complete and\n"
		"have been compared.\n",
	.run = run_push,
};

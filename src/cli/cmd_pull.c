#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/carry.h"
#include "cli/msg.h"
#include "cli/show.h"
#include "common/util.h"
#include "image/imgrefers.h"
#include "store/store_commit.h"
#include "store/storelock.h"

/* An image on the other side. */
struct pulled {
	struct store_image image;
	enum carry_state state;
};

struct pull {
	struct carry carry;
	struct store *store;
	struct store_images here; /* before anything was pulled */
	struct pulled *there; /* oldest first */
	size_t nr_there;
	char *dir; /* of the name in the store */
};

/* The first thing that is wrong with an image. */
struct finding {
	bool any;
	uint64_t offset;
	char what[256];
};

static void on_finding(void *ctx, uint64_t offset, const char *what)
{
	struct finding *f = ctx;

	if (f->any)
		return;
	f->any = true;
	f->offset = offset;
	snprintf(f->what, sizeof(f->what), "%s", what);
}

static const struct pulled *find_id(const struct pull *p, const unsigned char *bytes)
{
	char id[STORE_ID_LEN + 1];

	for (size_t k = 0; k < STORE_ID_LEN / 2; k++)
		snprintf(id + 2 * k, 3, "%02x", bytes[k]);
	for (size_t i = 0; i < p->nr_there; i++)
		if (strcmp(p->there[i].image.id, id) == 0)
			return &p->there[i];
	return NULL;
}

/* Does it refer to what is not pulled yet? Only where clocks went back. */
static int must_wait(const struct pull *p, struct usnap_image *img)
{
	cleanup_free unsigned char *refers = NULL;
	size_t nr;
	int r = img_read_refers(img, &refers, &nr);

	for (size_t i = 0; r == 0 && i < nr; i++) {
		const struct pulled *other = find_id(p, refers + i * STORE_ID_LEN / 2);

		if (other && other->state == CARRY_PENDING)
			return 1;
	}
	return r;
}

/* Is it what its name says? The name is the other side's word. */
static bool is_named_rightly(struct usnap_image *img, const struct store_image *image)
{
	char file[STORE_FILE_LEN + 1];
	struct usnap_info info;

	return usnap_image_get_info(img, &info, sizeof(info)) == 0 &&
	       store_file_name(info.t0_realtime_ns / 1000000, info.id, file) == 0 &&
	       strcmp(file, image->file) == 0;
}

/* Every byte of what arrived, and that all it refers to is in the store. Sets the state if it is
 * bad; 1: later. */
static int examine(struct pull *p, struct pulled *i, const char *path, int fd,
		   struct usnap_err *err)
{
	struct usnap_image *img = usnap_image_new();
	struct finding f = {0};
	const struct usnap_verify_options o = {.size = sizeof(o), .ctx = &f, .finding = on_finding};
	int r = img ? usnap_image_open_fd(img, fd, path) : -ENOMEM;

	if (r == 0)
		r = usnap_image_add_ancestors(img, p->dir);
	if (r == 0 && !is_named_rightly(img, &i->image)) {
		i->state =
			carry_bad(&p->carry, &i->image, -EBADMSG,
				  "cannot use '%s': it is another image than its name says", path);
		goto out;
	}
	if (r == 0)
		r = must_wait(p, img);
	if (r == 0)
		r = usnap_image_verify(img, &o);
	if (r == -EBADMSG && f.any) {
		i->state = carry_bad(&p->carry, &i->image, r,
				     "cannot use '%s': offset %" PRIu64 ": %s", path, f.offset,
				     f.what);
		r = 0;
	} else if (r == -EBADMSG || r == -EINVAL || r == -EPROTONOSUPPORT || r == -ESTALE) {
		i->state = carry_bad(&p->carry, &i->image, r, "%s", usnap_image_error(img));
		r = 0;
	} else if (r < 0) {
		usnap_fail(err, r, "%s", usnap_image_error(img));
	}
out:
	usnap_image_free(img);
	return r;
}

static int fetch(struct pull *p, struct pulled *i, const char *path, int fd, struct usnap_err *err)
{
	struct stat st;
	char size[24];
	int r = rclone_get(&p->carry.rclone, path, fd, i->image.bytes, err);

	if (r == -ENOSPC)
		return usnap_hint(err, "what is missing in the store needs %s",
				  show_size(size, p->carry.bytes_wanted - p->carry.bytes_done));
	if (r < 0)
		return r;
	if (fstat(fd, &st) < 0)
		return usnap_fail_errno(err, -errno, "cannot pull '%s'", path);
	if ((uint64_t)st.st_size != i->image.bytes)
		return usnap_fail(err, -EIO,
				  "cannot pull '%s': %" PRIu64 " of %" PRIu64 " bytes arrived",
				  path, (uint64_t)st.st_size, i->image.bytes);
	return 0;
}

/* Returns 1 when it has to wait for another. */
static int pull_image(struct pull *p, struct pulled *i, struct usnap_err *err)
{
	cleanup_free char *path = rclone_join(p->carry.remote, i->image.file), *new_path = NULL;
	char file[STORE_FILE_LEN + 1];
	struct output *out = NULL;
	int r;

	if (!path)
		return usnap_fail_errno(err, -ENOMEM, "cannot pull '%s'", i->image.file);
	progress_update(&p->carry.progress, "pulling", p->carry.bytes_done, p->carry.bytes_wanted);
	if ((r = store_new_path(p->store, p->carry.name, &new_path, err)) == 0 &&
	    (r = output_open(&out, new_path, err)) == 0 &&
	    (r = fetch(p, i, path, output_fd(out), err)) == 0)
		r = examine(p, i, path, output_fd(out), err);
	if (r == 0 && i->state == CARRY_PENDING && (r = store_commit(out, file, err)) == 0) {
		i->state = CARRY_DONE;
		carry_tell(&p->carry, &i->image, CARRY_DONE);
	}
	output_close(out);
	return r;
}

/* What others refer to is older, and comes first. */
static int pull_images(struct pull *p, struct usnap_err *err)
{
	bool any = true, waits = true;

	while (any && waits) {
		any = waits = false;
		for (size_t i = 0; i < p->nr_there; i++) {
			int r;

			if (p->there[i].state != CARRY_PENDING)
				continue;
			if ((r = pull_image(p, &p->there[i], err)) < 0)
				return r;
			any |= r == 0;
			waits |= r > 0;
		}
	}
	for (size_t i = 0; waits && i < p->nr_there; i++)
		if (p->there[i].state == CARRY_PENDING)
			p->there[i].state = carry_bad(&p->carry, &p->there[i].image, -EBADMSG,
						      "cannot use '%s': images refer to each other",
						      p->there[i].image.file);
	return 0;
}

static const struct store_image *find_here(const struct pull *p, const char *file)
{
	for (size_t i = 0; i < p->here.nr; i++)
		if (strcmp(p->here.image[i].file, file) == 0)
			return &p->here.image[i];
	return NULL;
}

/* What of the list are images, and which of them are wanted. */
static int choose(struct pull *p, struct usnap_err *err)
{
	p->there = calloc(p->carry.there.nr + 1, sizeof(*p->there));
	if (!p->there)
		return usnap_fail_errno(err, -ENOMEM, "cannot pull '%s'", p->carry.name);
	for (size_t k = 0; k < p->carry.there.nr; k++) {
		struct pulled *i = &p->there[p->nr_there];
		const struct store_image *here;

		if (!store_file_parse(p->carry.there.file[k].name, &i->image))
			continue;
		i->image.bytes = p->carry.there.file[k].bytes;
		p->nr_there++;
		here = find_here(p, i->image.file);
		if (!here) {
			p->carry.bytes_wanted += i->image.bytes;
		} else if (here->bytes == i->image.bytes) {
			i->state = CARRY_PRESENT;
			carry_tell(&p->carry, &i->image, CARRY_PRESENT);
		} else {
			i->state = carry_bad(&p->carry, &i->image, -EBADMSG,
					     "cannot use '%s/%s': it has %" PRIu64
					     " bytes, and %" PRIu64 " in the store",
					     p->carry.remote, i->image.file, i->image.bytes,
					     here->bytes);
		}
	}
	if (!p->nr_there)
		return usnap_fail(err, -ENOENT, "cannot pull '%s': there is no image in it",
				  p->carry.remote);
	return 0;
}

static int set_latest(struct pull *p, int fd, struct usnap_err *err)
{
	const struct store_image *newest;
	struct store_images images;
	int r = store_scan(p->store, p->carry.name, &images, err);

	if (r < 0)
		return r;
	newest = store_newest(&images, NULL, wall_ns() / 1000000);
	if (newest && (r = store_set_latest(fd, newest->file)) < 0)
		usnap_fail_errno(err, r, "cannot set 'latest' in '%s'", p->dir);
	store_images_free(&images);
	return r;
}

static int pull_locked(struct pull *p, int fd, struct usnap_err *err)
{
	int r, later;

	store_clean(fd);
	if (asprintf(&p->dir, "%s/%s", store_path(p->store), p->carry.name) < 0) {
		p->dir = NULL;
		return usnap_fail_errno(err, -ENOMEM, "cannot pull '%s'", p->carry.name);
	}
	if ((r = store_scan(p->store, p->carry.name, &p->here, err)) < 0 ||
	    (r = choose(p, err)) < 0)
		return r;
	progress_start(&p->carry.progress, p->carry.quiet || p->carry.json);
	r = pull_images(p, err);
	progress_end(&p->carry.progress);
	/* Whatever ended it, what came is there. */
	later = p->carry.nr_done ? set_latest(p, fd, r < 0 ? NULL : err) : 0;
	return r < 0 ? r : later;
}

/* Makes neither a store nor a name. */
static int pull_dry(struct pull *p, const char *store, struct usnap_err *err)
{
	struct usnap_err why = {0};
	int r = store_open(&p->store, store, false, &why);

	if (r == 0)
		r = store_scan(p->store, p->carry.name, &p->here, &why);
	if (r < 0 && r != -ENOENT) {
		*err = why;
		return r;
	}
	if ((r = choose(p, err)) < 0)
		return r;
	for (size_t i = 0; i < p->nr_there; i++)
		if (p->there[i].state == CARRY_PENDING)
			carry_tell(&p->carry, &p->there[i].image, CARRY_DONE);
	return 0;
}

static int pull(struct pull *p, struct usnap_err *err)
{
	const struct store_lock_options lo = {.no_wait = p->carry.skip_if_busy,
					      .cancel = p->carry.interrupted};
	cleanup_free char *usual = NULL;
	const char *store = p->carry.store;
	struct store_lock *lock = NULL;
	int r = store_name_check(p->carry.name, err);

	if (r == 0 && !store && (r = store_default_path(&usual, err)) == 0)
		store = usual;
	if (r == 0)
		r = carry_open(&p->carry, err);
	if (r < 0)
		return r;
	if (p->carry.dry_run) {
		r = pull_dry(p, store, err);
	} else if ((r = store_open(&p->store, store, true, err)) == 0 &&
		   (r = store_lock(&lock, p->store, p->carry.name, STORE_ADD, &lo, err)) == 0) {
		r = pull_locked(p, store_lock_fd(lock), err);
	}
	store_images_free(&p->here);
	free(p->there);
	free(p->dir);
	store_unlock(lock);
	store_close(p->store);
	return r;
}

/* The last part of the path. */
static void name_from(const char *remote, char name[STORE_NAME_MAX + 1])
{
	size_t end = strlen(remote), start;

	while (end && remote[end - 1] == '/')
		end--;
	for (start = end; start && remote[start - 1] != '/' && remote[start - 1] != ':'; start--)
		;
	snprintf(name, STORE_NAME_MAX + 1, "%.*s", (int)MIN(end - start, (size_t)STORE_NAME_MAX),
		 remote + start);
}

static int run_pull(int argc, char **argv)
{
	struct pull p = {.carry = {.command = &cmd_pull, .past = "pulled"}};
	struct usnap_err err = {0};
	int r = carry_options(&p.carry, argc, argv), nr = argc - optind;

	if (r >= 0)
		return r;
	if (nr < 1 || nr > 2)
		return cli_usage_error(&cmd_pull, "cannot pull: a remote is wanted, and a name");
	p.carry.remote = argv[optind];
	if ((r = carry_begin(&p.carry)) >= 0)
		return r;
	if (nr == 2 && strlen(argv[optind + 1]) <= STORE_NAME_MAX)
		snprintf(p.carry.name, sizeof(p.carry.name), "%s", argv[optind + 1]);
	else if (nr == 1)
		name_from(p.carry.remote, p.carry.name);
	if (!store_name_valid(p.carry.name))
		return cli_usage_error(&cmd_pull,
				       "cannot pull '%s': no name in a store comes of it",
				       nr == 2 ? argv[optind + 1] : p.carry.remote);
	r = pull(&p, &err);
	return carry_finish(&p.carry, r, &err);
}

const struct cli_command cmd_pull = {
	.name = "pull",
	.args = "[OPTION]... REMOTE:PATH [NAME]",
	.summary = "carry images from another place into the store, with rclone",
	.help = "      --store DIR     the store, if not the usual one; it is made\n"
		"      --skip-if-busy  end well when another run adds images of the name\n"
		"  -n, --dry-run       say what would be carried, and change nothing\n"
		"  -q, --quiet         print nothing but errors\n"
		"      --json          print JSON\n"
		"\n"
		"Carries the images at PATH that the store lacks. Each is verified before it\n"
		"gets its name there. NAME is the last part of PATH if not given.\n",
	.run = run_pull,
};

#include "store/storelock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>

#include "common/io.h"
#include "common/util.h"
#include "image/image.h"

struct store_lock {
	struct store *store;
	char name[STORE_NAME_MAX + 1];
	int dir, lock, in_use; /* or -1 */
};

struct wanted {
	const char *file;
	int op; /* LOCK_SH, LOCK_EX */
	bool no_wait;
};

static int flock_until(int fd, int op, bool no_wait, const volatile sig_atomic_t *cancel)
{
	while (flock(fd, op | (no_wait ? LOCK_NB : 0)) < 0) {
		if (errno == EWOULDBLOCK)
			return -EBUSY;
		if (errno != EINTR)
			return -errno;
		if (cancel && *cancel)
			return -ECANCELED;
	}
	return 0;
}

/* Is what was locked still what the name leads to? A remover may have taken it away
 * while we waited. */
static bool is_current(int dir, const char *file, int fd)
{
	struct stat a, b;

	return fstat(fd, &a) == 0 && fstatat(dir, file, &b, AT_SYMLINK_NOFOLLOW) == 0 &&
	       a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/* A descriptor that holds the lock. -ESTALE: start again with the directory. */
static int lock_file(int dir, const struct wanted *w, const volatile sig_atomic_t *cancel)
{
	int fd = openat(dir, w->file, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600), r;

	if (fd < 0)
		return errno == ENOENT ? -ESTALE : -errno; /* the directory is removed */
	r = flock_until(fd, w->op, w->no_wait, cancel);
	if (r == 0 && !is_current(dir, w->file, fd))
		r = -ESTALE;
	if (r < 0) {
		close(fd);
		return r;
	}
	return fd;
}

/* "process 4711 (uffd-snap snapshot)" of whoever has the lock, as far as it can be told. */
static void holder(int dir, char *buf, size_t room)
{
	cleanup_free char *text = NULL;
	size_t len;

	snprintf(buf, room, "another run");
	if (io_read_file_at(dir, IMG_STORE_LOCK, 64, &text, &len) < 0)
		return;
	len = strspn(text, "0123456789");
	if (len && len < 11 && text[len] == '\n')
		snprintf(buf, room, "process %.*s", (int)len, text);
}

static void sign(int fd)
{
	char text[16];

	snprintf(text, sizeof(text), "%d\n", (int)getpid());
	if (ftruncate(fd, 0) == 0)
		io_write_full(fd, text, strlen(text));
}

static int take_read(struct store_lock *l, const struct store_lock_options *o)
{
	const struct wanted w = {".in-use", LOCK_SH, o->no_wait};
	int fd = lock_file(l->dir, &w, o->cancel);

	if (fd == -EROFS || fd == -EACCES || fd == -EPERM)
		return 0;
	return fd < 0 ? fd : (l->in_use = fd, 0);
}

static int take_lock(struct store_lock *l, const struct store_lock_options *o)
{
	const struct wanted w = {IMG_STORE_LOCK, LOCK_EX, o->no_wait};
	int fd = lock_file(l->dir, &w, o->cancel);

	if (fd < 0)
		return fd;
	l->lock = fd;
	sign(fd);
	return 0;
}

/* Waits until nobody has .in-use alone. 1: somebody had it. */
static int await_remover(struct store_lock *l, const struct store_lock_options *o)
{
	struct wanted w = {".in-use", LOCK_SH, true};
	int fd = lock_file(l->dir, &w, o->cancel), r = 0;

	if (fd == -EBUSY) {
		w.no_wait = false;
		fd = lock_file(l->dir, &w, o->cancel);
		r = 1;
	}
	if (fd >= 0)
		close(fd);
	return fd < 0 ? fd : r;
}

/* Another snapshot makes this one unnecessary; a removal that began in the same minute does not: it is
 * waited for. It is told by .in-use, which a remover takes a moment after .lock: hence more than
 * one look. */
static int take_add(struct store_lock *l, const struct store_lock_options *o)
{
	const struct timespec moment = {.tv_nsec = 20 * 1000 * 1000};
	int r = take_lock(l, o), removers;

	for (int looks = 0; r == -EBUSY && looks < 10; looks++) {
		removers = await_remover(l, o);
		if (removers < 0)
			return removers;
		if (removers)
			looks = 0;
		else
			nanosleep(&moment, NULL);
		if (o->cancel && *o->cancel)
			return -ECANCELED;
		r = take_lock(l, o);
	}
	return r;
}

/* The directory itself is what two pushes meet at. Where directories cannot be locked, as on NFS,
 * they are in each other's way at worst: one of them fails, and the next one puts it right. */
static int take_push(struct store_lock *l, const struct store_lock_options *o)
{
	cleanup_fd int fd = openat(l->dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int r = fd < 0 ? -errno : flock_until(fd, LOCK_EX, o->no_wait, o->cancel);

	if (r == -EBUSY || r == -ECANCELED)
		return r;
	if (r == 0)
		l->lock = take_fd(&fd);
	return take_read(l, o);
}

static int take_remove(struct store_lock *l, const struct store_lock_options *o)
{
	struct wanted w = {".in-use", LOCK_EX, true};

	for (;;) {
		int r = take_lock(l, o), fd;

		if (r < 0)
			return r;
		w.no_wait = true;
		fd = lock_file(l->dir, &w, o->cancel);
		if (fd >= 0) {
			l->in_use = fd;
			return 0;
		}
		close(take_fd(&l->lock));
		if (fd != -EBUSY || o->no_wait)
			return fd;
		/* Until the readers of this moment are through. */
		w.no_wait = false;
		fd = lock_file(l->dir, &w, o->cancel);
		if (fd < 0)
			return fd;
		close(fd);
	}
}

static int fail(struct store_lock *l, int r, enum store_lock_kind kind, struct usnap_err *err)
{
	char who[64];

	if (r == -EBUSY) {
		holder(l->dir, who, sizeof(who));
		/* A push that has its own lock waits as a reader. */
		if (kind == STORE_READ || (kind == STORE_PUSH && l->lock >= 0))
			snprintf(who, sizeof(who), "a run that removes images");
		else if (kind == STORE_PUSH)
			snprintf(who, sizeof(who), "another push");
		usnap_fail(err, r, "cannot lock '%s' of store '%s': %s has it", l->name,
			   store_path(l->store), who);
	} else if (r == -ECANCELED) {
		usnap_fail(err, r, "cannot lock '%s' of store '%s': interrupted", l->name,
			   store_path(l->store));
	} else {
		usnap_fail_errno(err, r, "cannot lock '%s' of store '%s'", l->name,
				 store_path(l->store));
	}
	store_unlock(l);
	return r;
}

int store_lock(struct store_lock **ret, struct store *s, const char *name,
	       enum store_lock_kind kind, const struct store_lock_options *options,
	       struct usnap_err *err)
{
	static const struct store_lock_options none;
	struct store_lock *l = malloc(sizeof(*l));
	int r;

	if (!l)
		return usnap_fail_errno(err, -ENOMEM, "cannot lock '%s'", name);
	*l = (struct store_lock){.store = s, .dir = -1, .lock = -1, .in_use = -1};
	snprintf(l->name, sizeof(l->name), "%s", name);
	if (!options)
		options = &none;
	do {
		if (l->dir >= 0)
			close(take_fd(&l->dir));
		if (l->lock >= 0)
			close(take_fd(&l->lock));
		r = store_open_name(s, name, kind == STORE_ADD, err);
		if (r < 0) {
			store_unlock(l);
			return r;
		}
		l->dir = r;
		if (kind == STORE_READ)
			r = take_read(l, options);
		else if (kind == STORE_PUSH)
			r = take_push(l, options);
		else
			r = kind == STORE_ADD ? take_add(l, options) : take_remove(l, options);
	} while (r == -ESTALE);
	if (r < 0)
		return fail(l, r, kind, err);
	*ret = l;
	return 0;
}

int store_lock_fd(const struct store_lock *l)
{
	return l->dir;
}

void store_unlock(struct store_lock *l)
{
	if (!l)
		return;
	/* A restored process may have been forked from us meanwhile: with a close alone the
	 * lock would be held as long as it lives. .lock last: whoever waits for both comes through
	 * at once. */
	if (l->in_use >= 0) {
		flock(l->in_use, LOCK_UN);
		close(l->in_use);
	}
	if (l->lock >= 0) {
		flock(l->lock, LOCK_UN);
		close(l->lock);
	}
	if (l->dir >= 0)
		close(l->dir);
	free(l);
}

static bool only_extras(int dir)
{
	int fd = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cleanup_dir DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;

	while (d && (e = readdir(d)))
		if (strcmp(e->d_name, ".") && strcmp(e->d_name, "..") &&
		    strcmp(e->d_name, IMG_STORE_LOCK) && strcmp(e->d_name, ".in-use") &&
		    strcmp(e->d_name, ".command"))
			return false;
	return d;
}

void store_unlock_empty(struct store_lock *l)
{
	if (only_extras(l->dir)) {
		unlinkat(l->dir, ".command", 0);
		/* Who waits for them finds them gone and starts again. */
		unlinkat(l->dir, ".in-use", 0);
		unlinkat(l->dir, IMG_STORE_LOCK, 0);
		unlinkat(store_fd(l->store), l->name, AT_REMOVEDIR);
	}
	store_unlock(l);
}

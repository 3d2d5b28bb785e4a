#include "store/store.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "common/io.h"
#include "common/util.h"

struct store {
	char *path;
	int fd;
};

int store_default_path(char **ret, struct usnap_err *err)
{
	const char *given = getenv("UFFD_SNAP_STORE"), *state = getenv("XDG_STATE_HOME"),
		   *home = getenv("HOME");
	char *path = NULL;
	int r = 0;

	if (given && *given)
		path = strdup(given);
	else if (geteuid() == 0)
		path = strdup("/var/lib/uffd-snap");
	/* The XDG specification has relative paths ignored. */
	else if (state && *state == '/')
		r = asprintf(&path, "%s/uffd-snap", state);
	else if (home && *home == '/')
		r = asprintf(&path, "%s/.local/state/uffd-snap", home);
	else {
		usnap_fail(err, -ENOENT,
			   "cannot find a store: neither UFFD_SNAP_STORE nor HOME is set");
		return usnap_hint(err, "name one with --store DIR");
	}
	if (!path || r < 0)
		return usnap_fail_errno(err, -ENOMEM, "cannot find a store");
	*ret = path;
	return 0;
}

static int make_directories(const char *path)
{
	cleanup_free char *p = strdup(path);

	if (!p)
		return -ENOMEM;
	for (char *s = p + 1; (s = strchr(s, '/')); s++) {
		*s = '\0';
		if (mkdir(p, 0700) < 0 && errno != EEXIST)
			return -errno;
		*s = '/';
	}
	return mkdir(p, 0700) < 0 && errno != EEXIST ? -errno : 0;
}

int store_open(struct store **ret, const char *path, bool create, struct usnap_err *err)
{
	struct store *s;
	struct stat st;
	int fd, r;

	if (!*path)
		return usnap_fail(err, -EINVAL, "cannot open store '': the name is empty");
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT && create) {
		if ((r = make_directories(path)) < 0)
			return usnap_fail_errno(err, r, "cannot create store '%s'", path);
		fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	}
	if (fd < 0)
		return usnap_fail_errno(err, -errno, "cannot open store '%s'", path);
	/* Whoever can put a file into it could choose what is restored. */
	if (fstat(fd, &st) == 0 && st.st_mode & S_IWOTH) {
		close(fd);
		usnap_fail(err, -EPERM, "cannot use store '%s': anybody may write in it", path);
		return usnap_hint(err, "chmod 700 '%s'", path);
	}
	s = malloc(sizeof(*s));
	if (s)
		*s = (struct store){.path = strdup(path), .fd = fd};
	if (!s || !s->path) {
		free(s);
		close(fd);
		return usnap_fail_errno(err, -ENOMEM, "cannot open store '%s'", path);
	}
	*ret = s;
	return 0;
}

void store_close(struct store *s)
{
	if (!s)
		return;
	close(s->fd);
	free(s->path);
	free(s);
}

const char *store_path(const struct store *s)
{
	return s->path;
}

int store_fd(const struct store *s)
{
	return s->fd;
}

/* ---- secret ------------------------------------------------------------------------------------ */

static int secret_read(int dir, uint64_t *ret)
{
	cleanup_free char *text = NULL;
	size_t len;
	char *end;
	int r = io_read_file_at(dir, "secret", 64, &text, &len);

	if (r < 0)
		return r;
	if (len != 17 || strspn(text, "0123456789abcdef") != 16 || text[16] != '\n')
		return -EBADMSG;
	*ret = strtoull(text, &end, 16);
	return *ret ? 0 : -EBADMSG;
}

static int secret_make(int dir)
{
	static const char part[] = ".secret.part";
	cleanup_fd int fd = -1;
	uint64_t secret = 0;
	char text[24];

	while (!secret)
		if (getrandom(&secret, sizeof(secret), 0) != sizeof(secret))
			return -EIO;
	snprintf(text, sizeof(text), "%016" PRIx64 "\n", secret);
	/* The directory is locked: an older one is what a killed run left. */
	if (unlinkat(dir, part, 0) < 0 && errno != ENOENT)
		return -errno;
	fd = openat(dir, part, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return -errno;
	int r = io_write_full(fd, text, strlen(text));

	if (r == 0 && (fsync(fd) < 0 || renameat(dir, part, dir, "secret") < 0 || fsync(dir) < 0))
		r = -errno;
	if (r < 0)
		unlinkat(dir, part, 0);
	return r;
}

int store_secret(struct store *s, uint64_t *ret, struct usnap_err *err)
{
	int r = secret_read(s->fd, ret);

	if (r == -ENOENT) {
		cleanup_fd int lock = openat(s->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

		while (lock >= 0 && flock(lock, LOCK_EX) < 0 && errno == EINTR)
			;
		r = secret_read(s->fd, ret); /* somebody was quicker */
		if (r == -ENOENT && (r = secret_make(s->fd)) == 0)
			r = secret_read(s->fd, ret);
	}
	if (r == -EBADMSG)
		return usnap_fail(err, -EINVAL,
				  "cannot use '%s/secret': it is not 16 hexadecimal digits",
				  s->path);
	if (r < 0)
		return usnap_fail_errno(err, r, "cannot use '%s/secret'", s->path);
	return 0;
}

/* ---- names ------------------------------------------------------------------------------------- */

static bool name_char(unsigned char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
	       c >= 0x80 || (c && strchr(".-_+:", c));
}

bool store_name_valid(const char *name)
{
	size_t len = strlen(name);

	if (!len || len > STORE_NAME_MAX || *name == '.' || *name == '-' || !strcmp(name, "secret"))
		return false;
	for (size_t i = 0; i < len; i++)
		if (!name_char((unsigned char)name[i]))
			return false;
	return true;
}

int store_name_check(const char *name, struct usnap_err *err)
{
	if (store_name_valid(name))
		return 0;
	usnap_fail(err, -EINVAL, "cannot use '%s' as a name", name);
	return usnap_hint(err,
			  "a name has letters, digits and . - _ + :, begins with none of . -, "
			  "and has %d bytes at most",
			  STORE_NAME_MAX);
}

void store_name_from(const char *text, char ret[STORE_NAME_MAX + 1])
{
	size_t n = 0;

	/* Of "(sd-pam)" or "[x]" the brackets go; what is inside becomes a dash. */
	for (; *text && n < STORE_NAME_MAX; text++) {
		if (name_char((unsigned char)*text) && (n || (*text != '.' && *text != '-')))
			ret[n++] = *text;
		else if (n && ret[n - 1] != '-')
			ret[n++] = '-';
	}
	while (n && ret[n - 1] == '-')
		n--;
	ret[n] = '\0';
	if (!store_name_valid(ret))
		snprintf(ret, STORE_NAME_MAX + 1, "process");
}

static int by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

int store_list_names(struct store *s, struct store_names *ret, struct usnap_err *err)
{
	struct store_names names = {0};
	int fd = openat(s->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cleanup_dir DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;
	struct stat st;
	size_t room = 0;

	if (!d)
		return usnap_fail_errno(err, -errno, "cannot list store '%s'", s->path);
	while ((e = readdir(d))) {
		if (!store_name_valid(e->d_name) ||
		    fstatat(s->fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISDIR(st.st_mode))
			continue;
		if (names.nr == room) {
			char **more = realloc(names.name, (room = room * 2 + 16) * sizeof(*more));

			if (!more)
				goto no_memory;
			names.name = more;
		}
		if (!(names.name[names.nr] = strdup(e->d_name)))
			goto no_memory;
		names.nr++;
	}
	if (names.nr)
		qsort(names.name, names.nr, sizeof(*names.name), by_name);
	*ret = names;
	return 0;

no_memory:
	store_names_free(&names);
	return usnap_fail_errno(err, -ENOMEM, "cannot list store '%s'", s->path);
}

void store_names_free(struct store_names *n)
{
	for (size_t i = 0; i < n->nr; i++)
		free(n->name[i]);
	free(n->name);
	*n = (struct store_names){0};
}

int store_open_name(struct store *s, const char *name, bool create, struct usnap_err *err)
{
	int r = store_name_check(name, err), fd;

	if (r < 0)
		return r;
	/* The second round: another run removed the last image of this name, and the directory. */
	for (int tries = 0;; tries++) {
		if (create && mkdirat(s->fd, name, 0700) == 0)
			fsync(s->fd);
		else if (create && errno != EEXIST)
			return usnap_fail_errno(err, -errno, "cannot create '%s/%s'", s->path,
						name);
		fd = openat(s->fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
		if (fd >= 0)
			return fd;
		if (!create && errno == ENOENT)
			return usnap_fail(err, -ENOENT,
					  "cannot find '%s': store '%s' has no such name", name,
					  s->path);
		if (errno != ENOENT || tries == 100)
			return usnap_fail_errno(err, -errno, "cannot open '%s/%s'", s->path, name);
	}
}

#include "store/registry.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "common/io.h"
#include "common/procstat.h"
#include "common/util.h"

enum {
	MAX_FILES = 65536, /* looked at in one directory */
	MAX_DIRS = 4096,
};

/* ---- directories --------------------------------------------------------------------------- */

/* Belongs to uid, who alone can write in it. */
static int open_dir(const char *path, uid_t uid)
{
	cleanup_fd int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0 || st.st_uid != uid || st.st_mode & 022)
		return -1;
	return take_fd(&fd);
}

/* The candidates of rundir.h, in order; false: there is none of this number. */
static bool own_path(unsigned nr, char path[PATH_MAX])
{
	const char *xdg = getenv("XDG_RUNTIME_DIR");

	path[0] = '\0';
	if (nr == 0 && geteuid() == 0)
		snprintf(path, PATH_MAX, "%s", RUNDIR_ROOT);
	else if (nr == 1 && xdg && *xdg == '/' && strlen(xdg) < PATH_MAX - 32)
		snprintf(path, PATH_MAX, "%s%s", xdg, RUNDIR_IN_XDG);
	else if (nr == 2)
		snprintf(path, PATH_MAX, "%s%u", RUNDIR_TMP, (unsigned)geteuid());
	return nr < 3;
}

/* The first that can be written in; made when it is not there. */
static int open_own(void)
{
	char path[PATH_MAX];

	for (unsigned nr = 0; own_path(nr, path); nr++) {
		if (!*path)
			continue;
		/* As the agent makes it: known names can be asked for, and not listed. */
		mkdir(path, nr == 0 ? 0711 : 0700);
		int fd = open_dir(path, geteuid());
		if (fd >= 0 && faccessat(fd, ".", W_OK, AT_EACCESS) == 0)
			return fd;
		if (fd >= 0)
			close(fd);
	}
	return -1;
}

/* Each as each(fd, uid, arg), until one says no. Those of one's own, and for root everybody's. */
static void for_each_dir(bool (*each)(int fd, uid_t uid, void *arg), void *arg)
{
	static const struct {
		const char *in, *prefix, *suffix;
	} all[] = {{"/run/user", "", RUNDIR_IN_XDG}, {"/tmp", "uffd-snap-", ""}};
	char path[PATH_MAX];
	bool more = true;
	size_t nr_dirs = 0;

	for (unsigned nr = 0; more && own_path(nr, path); nr++) {
		cleanup_fd int fd = *path ? open_dir(path, geteuid()) : -1;

		if (fd >= 0)
			more = each(fd, geteuid(), arg);
	}
	for (size_t i = 0; more && geteuid() == 0 && i < ARRAY_SIZE(all); i++) {
		cleanup_dir DIR *d = opendir(all[i].in);
		size_t skip = strlen(all[i].prefix);
		struct dirent *e;

		while (more && d && (e = readdir(d)) && nr_dirs < MAX_DIRS) {
			const char *digits = e->d_name + skip;

			if (strncmp(e->d_name, all[i].prefix, skip) != 0 || !*digits ||
			    strlen(digits) > 10 || digits[strspn(digits, "0123456789")])
				continue;
			uid_t uid = (uid_t)strtoul(digits, NULL, 10);

			snprintf(path, sizeof(path), "%s/%s%s", all[i].in, e->d_name,
				 all[i].suffix);
			cleanup_fd int fd = uid ? open_dir(path, uid) : -1;

			if (fd >= 0) {
				more = each(fd, uid, arg);
				nr_dirs++;
			}
		}
	}
}

/* ---- files --------------------------------------------------------------------------------- */

/* "PID-START" */
static bool parse_which(const char *s, pid_t *pid, uint64_t *start)
{
	char *end;

	if (!isdigit((unsigned char)*s))
		return false;
	errno = 0;
	unsigned long long v = strtoull(s, &end, 10);
	if (errno || !v || v > INT32_MAX || *end != '-' || !isdigit((unsigned char)end[1]))
		return false;
	*pid = (pid_t)v;
	*start = strtoull(end + 1, &end, 10);
	return !errno && !*end;
}

/* Not a pipe on which one would wait, nor anything that a link leads to. */
static bool read_small(int fd, char text[RUNDIR_FILE_MAX + 1])
{
	struct stat st;
	ssize_t n;

	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) ||
	    (n = pread(fd, text, RUNDIR_FILE_MAX, 0)) < 0)
		return false;
	text[n] = '\0';
	return true;
}

static bool read_at(int dir, const char *file, char text[RUNDIR_FILE_MAX + 1])
{
	cleanup_fd int fd =
		openat(dir, file, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);

	return read_small(fd, text);
}

/* What follows the key, to the end of its nth line, in ret; or "". */
static bool nth_value_of(const char *text, const char *key, unsigned nth, char *ret, size_t room)
{
	size_t len = strlen(key);

	for (const char *s = text; s; s = strchr(s, '\n') ? strchr(s, '\n') + 1 : NULL) {
		if (strncmp(s, key, len) != 0 || nth--)
			continue;
		size_t n = strcspn(s + len, "\n");
		if (n >= room)
			break;
		memcpy(ret, s + len, n);
		ret[n] = '\0';
		return true;
	}
	*ret = '\0';
	return false;
}

static bool value_of(const char *text, const char *key, char *ret, size_t room)
{
	return nth_value_of(text, key, 0, ret, room);
}

static bool runs_as(pid_t pid, uid_t uid)
{
	cleanup_free char *text = NULL;
	char path[32];

	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	if (io_read_file_at(AT_FDCWD, path, KIB(256), &text, NULL) < 0)
		return false;
	const char *s = strstr(text, "\nUid:\t");
	return s && strtoul(s + 6, NULL, 10) == uid;
}

/* ---- who is ready -------------------------------------------------------------------------- */

struct load {
	struct registry *r;
	size_t room;
	bool failed;
};

bool registry_knows(const struct registry *r, pid_t pid)
{
	for (size_t i = 0; i < r->nr; i++)
		if (r->entry[i].pid == pid)
			return true;
	return false;
}

static void parse_entry(const char *text, struct registry_entry *e)
{
	char value[64];

	value_of(text, RUNDIR_KEY_NAME, e->name, sizeof(e->name));
	value_of(text, RUNDIR_KEY_BEACON, value, sizeof(value));
	e->beacon = strtoull(value, NULL, 16);
	e->counts = true;
	for (unsigned i = 0; i < RUNDIR_FOLLOWS_MAX; i++) {
		if (!nth_value_of(text, RUNDIR_KEY_FOLLOWS, i, value, sizeof(value)) ||
		    !parse_which(value, &e->follows[i].pid, &e->follows[i].start_ticks))
			e->follows[i].pid = 0;
		else if (procstat_is(e->follows[i].pid, e->follows[i].start_ticks))
			e->counts = false;
	}
}

static bool load_file(struct load *l, int dir, uid_t uid, const char *file)
{
	struct registry_entry e = {0};
	char text[RUNDIR_FILE_MAX + 1];
	bool ready = !strncmp(file, RUNDIR_READY, strlen(RUNDIR_READY));

	if (!ready && strncmp(file, RUNDIR_TAKEN, strlen(RUNDIR_TAKEN)) != 0 &&
	    strncmp(file, RUNDIR_SERVED, strlen(RUNDIR_SERVED)) != 0)
		return true;
	if (!parse_which(strchr(file, '-') + 1, &e.pid, &e.start_ticks))
		return true;
	if (!procstat_is(e.pid, e.start_ticks)) {
		/* No other will have this name. */
		unlinkat(dir, file, 0);
		return true;
	}
	if (!ready || registry_knows(l->r, e.pid) || (uid && !runs_as(e.pid, uid)) ||
	    !read_at(dir, file, text))
		return true;
	parse_entry(text, &e);
	if (l->r->nr == l->room) {
		size_t room = l->room * 2 + 64;
		struct registry_entry *more = realloc(l->r->entry, room * sizeof(*more));

		if (!more) {
			l->failed = true;
			return false;
		}
		l->r->entry = more;
		l->room = room;
	}
	l->r->entry[l->r->nr++] = e;
	return true;
}

static bool load_dir(int fd, uid_t uid, void *arg)
{
	int again = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cleanup_dir DIR *d = again < 0 ? NULL : fdopendir(again);
	struct dirent *e;
	size_t nr = 0;

	if (!d && again >= 0)
		close(again);
	while (d && (e = readdir(d)) && nr++ < MAX_FILES)
		if (!load_file(arg, fd, uid, e->d_name))
			return false;
	return true;
}

int registry_load(struct registry *ret)
{
	struct load l = {.r = ret};

	*ret = (struct registry){0};
	for_each_dir(load_dir, &l);
	if (l.failed)
		registry_free(ret);
	return l.failed ? -ENOMEM : 0;
}

void registry_free(struct registry *r)
{
	free(r->entry);
	*r = (struct registry){0};
}

const struct registry_entry *registry_of(const struct registry *r, pid_t pid)
{
	for (size_t i = 0; i < r->nr; i++)
		if (r->entry[i].pid == pid && r->entry[i].counts)
			return &r->entry[i];
	return NULL;
}

static bool follows(const struct registry_entry *e, pid_t pid, uint64_t start)
{
	for (unsigned i = 0; i < RUNDIR_FOLLOWS_MAX; i++)
		if (e->follows[i].pid == pid && e->follows[i].start_ticks == start)
			return true;
	return false;
}

const struct registry_entry *registry_heir(const struct registry *r, pid_t pid, uint64_t start)
{
	for (size_t i = 0; i < r->nr; i++)
		if (r->entry[i].counts && follows(&r->entry[i], pid, start))
			return &r->entry[i];
	return NULL;
}

int registry_add(const struct registry_entry *e, struct usnap_err *err)
{
	cleanup_fd int dir = open_own(), fd = -1;
	char file[64], part[80], text[256];
	int r;

	if (dir < 0)
		return usnap_fail(err, -ENOENT, "cannot name process %d: there is no run directory",
				  (int)e->pid);
	snprintf(file, sizeof(file), RUNDIR_READY "%d-%" PRIu64, (int)e->pid, e->start_ticks);
	snprintf(part, sizeof(part), ".%s", file);
	int n = snprintf(text, sizeof(text),
			 RUNDIR_KEY_NAME "%s\n" RUNDIR_KEY_BEACON "%" PRIx64 "\n", e->name,
			 e->beacon);
	unlinkat(dir, part, 0);
	fd = openat(dir, part, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	r = fd < 0 ? -errno : io_write_full(fd, text, (size_t)n);
	if (r == 0 && renameat(dir, part, dir, file) < 0)
		r = -errno;
	if (r < 0) {
		unlinkat(dir, part, 0);
		return usnap_fail_errno(err, r, "cannot name process %d", (int)e->pid);
	}
	return 0;
}

/* ---- who is taken -------------------------------------------------------------------------- */

struct look {
	pid_t pid;
	char file[64];
	struct registry_taken *ret;
	bool found;
};

/* Looked at only: whoever wants the lock at this moment gets it. */
static bool is_locked(int fd)
{
	struct flock l = {.l_type = F_RDLCK, .l_whence = SEEK_SET};

	return fcntl(fd, F_OFD_GETLK, &l) == 0 && l.l_type != F_UNLCK;
}

static bool look_into(int dir, uid_t uid, void *arg)
{
	struct look *l = arg;
	cleanup_fd int fd =
		openat(dir, l->file, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	char text[RUNDIR_FILE_MAX + 1], value[32];

	if ((uid && fd >= 0 && !runs_as(l->pid, uid)) || !read_small(fd, text))
		return true;
	*l->ret = (struct registry_taken){0};
	l->found = true;
	value_of(text, RUNDIR_KEY_T0, value, sizeof(value));
	l->ret->t0_ms = strtoull(value, NULL, 10);
	value_of(text, RUNDIR_KEY_FILE, l->ret->file, sizeof(l->ret->file));
	if (is_locked(fd)) {
		value_of(text, RUNDIR_KEY_BY, value, sizeof(value));
		l->ret->by = (pid_t)strtol(value, NULL, 10);
		return false;
	}
	return !l->ret->t0_ms;
}

bool registry_taken(pid_t pid, uint64_t start_ticks, struct registry_taken *ret)
{
	struct look l = {.pid = pid, .ret = ret};

	snprintf(l.file, sizeof(l.file), RUNDIR_TAKEN "%d-%" PRIu64, (int)pid, start_ticks);
	for_each_dir(look_into, &l);
	return l.found;
}

/* A file longer than what is in it now ends with zeros, for the moment of one call. */
static void write_taken(int fd, pid_t by, uint64_t t0_ms, const char *file)
{
	char text[RUNDIR_FILE_MAX];
	int n = snprintf(text, sizeof(text),
			 RUNDIR_KEY_BY "%d\n" RUNDIR_KEY_T0 "%" PRIu64 "\n" RUNDIR_KEY_FILE "%s\n",
			 (int)by, t0_ms, strchr(file, '\n') ? "" : file);

	if (n > 0 && n < (int)sizeof(text) && pwrite(fd, text, (size_t)n, 0) == n &&
	    ftruncate(fd, n) < 0)
		return;
}

/* A locked file. -EBUSY, -ENOENT. */
static int lock_file(const char *file)
{
	cleanup_fd int dir = open_own(), fd = -1;

	if (dir >= 0)
		fd = openat(dir, file, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC,
			    0600);
	if (fd < 0)
		return -ENOENT;

	struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	if (fcntl(fd, F_OFD_SETLK, &l) < 0)
		return errno == EAGAIN || errno == EACCES ? -EBUSY : -ENOENT;
	return take_fd(&fd);
}

static int lock_process(const char *prefix, pid_t pid, uint64_t start_ticks)
{
	char file[64];

	snprintf(file, sizeof(file), "%s%d-%" PRIu64, prefix, (int)pid, start_ticks);
	return lock_file(file);
}

int registry_serve(pid_t pid, uint64_t start_ticks)
{
	return lock_process(RUNDIR_SERVED, pid, start_ticks);
}

int registry_begin(pid_t pid, uint64_t start_ticks)
{
	struct registry_taken last = {0};

	/* In a directory of another user too. */
	if (registry_taken(pid, start_ticks, &last) && last.by > 0)
		return -EBUSY;
	cleanup_fd int fd = lock_process(RUNDIR_TAKEN, pid, start_ticks);
	if (fd < 0)
		return fd;
	registry_taken(pid, start_ticks, &last);
	write_taken(fd, getpid(), last.t0_ms, last.file);
	return take_fd(&fd);
}

void registry_end(int fd, uint64_t t0_ms, const char *file)
{
	char path[PATH_MAX];

	if (fd < 0)
		return;
	if (file)
		write_taken(fd, 0, t0_ms, realpath(file, path) ? path : file);
	close(fd);
}

/* ---- who runs ------------------------------------------------------------------------------ */

/* The path that it will have once it is made: the first snapshot does that, while a run has the name
 * already. The caller frees; NULL: none. */
static char *real_store(const char *store)
{
	cleanup_free char *parent = strdup(store), *above = NULL;
	char *path = realpath(store, NULL), *slash;

	if (path || errno != ENOENT || !parent)
		return path;
	for (size_t len = strlen(parent); len && parent[len - 1] == '/'; len--)
		parent[len - 1] = '\0';
	slash = strrchr(parent, '/');
	if (!slash)
		return NULL;
	*slash = '\0';
	if (!strcmp(slash + 1, "."))
		return real_store(parent);
	above = *parent ? real_store(parent) : strdup("");
	if (!above || asprintf(&path, "%s/%s", strcmp(above, "/") ? above : "", slash + 1) < 0)
		return NULL;
	return path;
}

static void run_file(const char *store, const char *name, char file[NAME_MAX + 1])
{
	cleanup_free char *path = real_store(store);

	if (path)
		store = path;
	snprintf(file, NAME_MAX + 1, RUNDIR_RUN "%016llx-%s",
		 (unsigned long long)XXH3_64bits(store, strlen(store)), name);
}

int registry_begin_run(const char *store, const char *name)
{
	char file[NAME_MAX + 1];

	run_file(store, name, file);
	return lock_file(file);
}

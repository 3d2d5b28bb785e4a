/*
 * Unix sockets that have a name in the file system.
 *
 * A process that was killed leaves its socket files behind. Such a file gives
 * way when nobody listens on it, and lends its mode and owner to the new one;
 * when the restore fails, a socket file of the same mode and owner, which
 * nobody listens on either, takes its place again: there is no more to one
 * than that.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "common/util.h"
#include "restore/rsockets_internal.h"

/* ---- where the process is ------------------------------------------------- */

static bool needs_place(const struct rsockets *s, const struct rsock_address *a)
{
	const struct sockaddr_un *un = (const void *)&a->ss;

	if (a->len <= offsetof(struct sockaddr_un, sun_path) || !un->sun_path[0])
		return false;
	return s->root || un->sun_path[0] != '/';
}

int rsock_enter(const struct rsockets *s, const struct rsock_address *a, struct rsock_place *ret)
{
	*ret = (struct rsock_place){-1, -1};
	if (!needs_place(s, a))
		return 0;
	cleanup_fd int cwd = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	cleanup_fd int root = s->root ? open("/", O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
	if (cwd < 0 || (s->root && root < 0) || chdir(s->cwd) < 0)
		return -errno;
	if (s->root && chroot(s->root) < 0) {
		int r = -errno;

		return fchdir(cwd) < 0 ? -errno : r;
	}
	ret->root = take_fd(&root);
	ret->cwd = take_fd(&cwd);
	return 0;
}

void rsock_leave(struct rsock_place *p)
{
	/* Where one has been is always a place to go back to. */
	if (p->root >= 0 && (fchdir(p->root) < 0 || chroot(".") < 0))
		_exit(1);
	if (p->cwd >= 0 && fchdir(p->cwd) < 0)
		_exit(1);
	if (p->root >= 0)
		close(p->root);
	if (p->cwd >= 0)
		close(p->cwd);
	*p = (struct rsock_place){-1, -1};
}

/* ---- whether somebody listens --------------------------------------------- */

static bool names_inode(const struct nlmsghdr *h, const struct stat *st)
{
	const struct unix_diag_msg *m = NLMSG_DATA(h);

	if (h->nlmsg_len < NLMSG_LENGTH(sizeof(*m)))
		return false;
	size_t left = h->nlmsg_len - NLMSG_LENGTH(sizeof(*m));
	const struct nlattr *a = (const struct nlattr *)(m + 1);
	while (left >= sizeof(*a) && a->nla_len >= sizeof(*a) && a->nla_len <= left) {
		struct unix_diag_vfs vfs;
		size_t step = NLA_ALIGN(a->nla_len);

		if (a->nla_type == UNIX_DIAG_VFS && a->nla_len >= sizeof(*a) + sizeof(vfs)) {
			memcpy(&vfs, a + 1, sizeof(vfs));
			/* dev_t inside the kernel: 12 bits and 20 bits; inodes: their low half. */
			return vfs.udiag_vfs_ino == (uint32_t)st->st_ino &&
			       vfs.udiag_vfs_dev >> 20 == major(st->st_dev) &&
			       (vfs.udiag_vfs_dev & 0xfffff) == minor(st->st_dev);
		}
		if (step >= left)
			break;
		left -= step;
		a = (const struct nlattr *)((const char *)a + step);
	}
	return false;
}

/* Whether the kernel's list has a socket with this name: asked first, since it
 * disturbs nobody. */
static bool listed(const struct stat *st)
{
	_Alignas(struct nlmsghdr) char buf[32768];
	struct timeval timeout = {.tv_sec = 2};
	struct {
		struct nlmsghdr h;
		struct unix_diag_req r;
	} req = {{.nlmsg_len = sizeof(req),
		  .nlmsg_type = SOCK_DIAG_BY_FAMILY,
		  .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP},
		 {.sdiag_family = AF_UNIX, .udiag_states = ~0u, .udiag_show = UDIAG_SHOW_VFS}};

	cleanup_fd int nl = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
	if (nl < 0 || setsockopt(nl, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)) < 0 ||
	    send(nl, &req, sizeof(req), 0) < 0)
		return false;
	for (;;) {
		ssize_t n = recv(nl, buf, sizeof(buf), 0);
		if (n <= 0)
			return false;
		unsigned left = (unsigned)n;
		for (struct nlmsghdr *h = (struct nlmsghdr *)buf; NLMSG_OK(h, left);
		     h = NLMSG_NEXT(h, left)) {
			if (h->nlmsg_type == NLMSG_DONE || h->nlmsg_type == NLMSG_ERROR)
				return false;
			if (names_inode(h, st))
				return true;
		}
	}
}

/* A socket of another network namespace, which the list leaves out, is found
 * by connecting. 0: nobody is there. */
static int probe(const struct rsocket *x)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	cleanup_fd int dir = -1;
	const char *name = strrchr(x->path, '/');

	cleanup_fd int fd = socket(AF_UNIX, x->type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (strlen(x->path) < sizeof(un.sun_path)) {
		strcpy(un.sun_path, x->path);
	} else {
		/* Longer than an address can be: by way of its directory. */
		cleanup_free char *parent =
			name ? strndup(x->path, (size_t)(name - x->path) + 1) : NULL;
		dir = parent ? open(parent, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
		if (dir < 0)
			return -errno;
		if ((size_t)snprintf(un.sun_path, sizeof(un.sun_path), "/proc/self/fd/%d%s", dir,
				     name) >= sizeof(un.sun_path))
			return -ENAMETOOLONG;
	}
	if (connect(fd, (const struct sockaddr *)&un, sizeof(un)) < 0)
		return errno == ECONNREFUSED || errno == ENOENT ? 0
		       : errno == EPROTOTYPE || errno == EAGAIN ? -EADDRINUSE
								: -errno;
	return -EADDRINUSE;
}

/* 1: there is a socket file that nobody listens on; 0: there is no file. */
static int look(const struct rsocket *x, struct stat *st)
{
	if (lstat(x->path, st) < 0)
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISSOCK(st->st_mode))
		return -EEXIST;
	if (listed(st))
		return -EADDRINUSE;
	int r = probe(x);
	return r < 0 ? r : 1;
}

static int look_failed(const struct rsocket *x, int code, struct usnap_err *err)
{
	if (code != -EEXIST)
		return rsock_bind_failed(x, code, err);
	usnap_fail(err, code, "cannot bind '%s': there is a file that is no socket", x->text);
	return usnap_hint(err, "move it away");
}

int rsock_path_check(const struct rsocket *x, struct usnap_err *err)
{
	struct stat st;

	if (x->nameless)
		return 0;
	int r = look(x, &st);
	if (r < 0)
		return look_failed(x, r, err);
	cleanup_free char *parent = strdup(x->path);
	char *slash = parent ? strrchr(parent, '/') : NULL;
	if (!slash)
		return 0;
	slash[slash == parent] = '\0';
	return access(parent, W_OK | X_OK) < 0 ? rsock_bind_failed(x, -errno, err) : 0;
}

/* ---- a name ---------------------------------------------------------------- */

/* Of the socket file itself: whoever may write to its directory may have put something else in its
 * place, a link to what is not theirs. */
static int set_owner_and_mode(const struct rsocket *x, uid_t uid, gid_t gid, mode_t mode)
{
	const struct rsock_undo *u = x->undo;
	char link[40];
	struct stat now;

	cleanup_fd int fd = open(x->path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &now) < 0)
		return -errno;
	if (!S_ISSOCK(now.st_mode) || now.st_dev != u->dev || now.st_ino != u->inode)
		return -ESTALE;
	if ((now.st_uid != uid || now.st_gid != gid) &&
	    fchownat(fd, "", uid, gid, AT_EMPTY_PATH) < 0)
		return -errno;
	/* fchmod(2) takes no such descriptor. */
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	return chmod(link, mode & 07777) < 0 ? -errno : 0;
}

static int give_away(const struct rsocket *x, const struct stat *st, bool known)
{
	if (known)
		return set_owner_and_mode(x, st->st_uid, st->st_gid, st->st_mode);
	return x->has_file ? set_owner_and_mode(x, x->uid, x->gid, x->mode) : 0;
}

static bool note_own(const struct rsocket *x)
{
	struct stat own;

	if (lstat(x->path, &own) < 0 || !S_ISSOCK(own.st_mode))
		return false;
	x->undo->dev = own.st_dev;
	x->undo->inode = own.st_ino;
	return true;
}

static int bind_in_place(const struct rsockets *s, const struct rsocket *x, int fd)
{
	struct rsock_place place;
	int r = rsock_enter(s, &x->local, &place);

	if (r < 0)
		return r;
	/* What it is until its mode is set: for nobody but the owner. */
	mode_t mask = umask(x->has_file || x->undo->replaced ? 0177 : s->umask);
	r = bind(fd, (const struct sockaddr *)&x->local.ss, x->local.len) < 0 ? -errno : 0;
	umask(mask);
	rsock_leave(&place);
	return r;
}

/* Its name is gone, or somebody else's: it gets one that the kernel chooses,
 * for without any it could not listen. */
static int bind_nameless(int fd)
{
	sa_family_t family = AF_UNIX;

	return bind(fd, (const struct sockaddr *)&family, sizeof(family)) < 0 ? -errno : 0;
}

int rsock_path_bind(const struct rsockets *s, struct rsocket *x, int fd, struct usnap_err *err)
{
	struct stat st = {0};

	if (x->nameless) {
		int r = bind_nameless(fd);
		return r < 0 ? rsock_bind_failed(x, r, err) : 0;
	}
	int there = look(x, &st);
	if (there < 0)
		return look_failed(x, there, err);
	if (there) {
		x->undo->mode = st.st_mode & 07777;
		x->undo->uid = st.st_uid;
		x->undo->gid = st.st_gid;
		x->undo->replaced = true;
		if (unlink(x->path) < 0) {
			int r = -errno;

			x->undo->replaced = false;
			return rsock_bind_failed(x, r, err);
		}
	}
	int r = bind_in_place(s, x, fd);
	if (r < 0)
		return rsock_bind_failed(x, r, err);
	x->undo->bound = note_own(x);
	r = give_away(x, &st, there);
	if (r < 0) {
		usnap_fail_errno(err, r, "cannot give '%s' its owner and mode", x->path);
		return usnap_hint(err, "restore as the user that owned it, or as root");
	}
	return 0;
}

void rsock_path_undo(const struct rsocket *x)
{
	struct rsock_undo *u = x->undo;
	struct stat st;

	if (u->bound && lstat(x->path, &st) == 0 && st.st_dev == u->dev && st.st_ino == u->inode)
		unlink(x->path);
	u->bound = false;
	if (u->replaced && mknod(x->path, S_IFSOCK | 0600, 0) == 0 && note_own(x))
		(void)!set_owner_and_mode(x, u->uid, u->gid, u->mode);
	u->replaced = false;
}

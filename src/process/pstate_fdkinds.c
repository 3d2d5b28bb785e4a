/*
 * What is particular to each kind of descriptor.
 *
 * A duplicate of a descriptor of the target exists for moments of the freeze
 * only: outside it would delay a close, and an epoll set would go on to
 * report a file that its owner has given up.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "common/compat.h"
#include "common/util.h"
#include "process/pstate_internal.h"

static const char *const kind_names[] = {
	[FD_REGULAR] = "file",	  [FD_DIRECTORY] = "dir",     [FD_PIPE] = "pipe",
	[FD_FIFO] = "fifo",	  [FD_CHAR] = "chr",	      [FD_BLOCK] = "blk",
	[FD_SOCKET] = "socket",	  [FD_MEMFD] = "memfd",	      [FD_EVENTFD] = "eventfd",
	[FD_EPOLL] = "epoll",	  [FD_TIMERFD] = "timerfd",   [FD_SIGNALFD] = "signalfd",
	[FD_INOTIFY] = "inotify", [FD_FANOTIFY] = "fanotify", [FD_PIDFD] = "pidfd",
	[FD_UFFD] = "uffd",	  [FD_IO_URING] = "io_uring", [FD_BPF] = "bpf",
	[FD_PERF] = "perf",	  [FD_KVM] = "kvm",	      [FD_NAMESPACE] = "namespace",
	[FD_MQUEUE] = "mqueue",	  [FD_SYMLINK] = "symlink",   [FD_OTHER] = "other",
};

const char *fd_kind_name(enum fd_kind kind)
{
	return (size_t)kind < ARRAY_SIZE(kind_names) ? kind_names[kind] : "other";
}

static bool has_prefix(const char *s, const char *prefix)
{
	return !strncmp(s, prefix, strlen(prefix));
}

static enum fd_kind classify_anonymous(const char *name)
{
	static const struct {
		const char *prefix;
		enum fd_kind kind;
	} known[] = {
		{"[eventfd]", FD_EVENTFD},
		{"[eventpoll]", FD_EPOLL},
		{"[timerfd]", FD_TIMERFD},
		{"[signalfd]", FD_SIGNALFD},
		{"inotify", FD_INOTIFY},
		{"[fanotify]", FD_FANOTIFY},
		{"[pidfd]", FD_PIDFD},
		{"[userfaultfd]", FD_UFFD},
		{"[io_uring]", FD_IO_URING},
		{"bpf", FD_BPF},
		{"[perf_event]", FD_PERF},
		{"kvm", FD_KVM},
		{"[kvm", FD_KVM},
	};

	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		if (has_prefix(name, known[i].prefix))
			return known[i].kind;
	return FD_OTHER;
}

bool path_says_deleted(const char *path)
{
	static const char suffix[] = " (deleted)";
	size_t len = strlen(path);

	return len >= sizeof(suffix) && !strcmp(path + len - (sizeof(suffix) - 1), suffix);
}

enum fd_kind fd_classify(const char *link, const struct stat *st)
{
	if (has_prefix(link, "anon_inode:"))
		return classify_anonymous(link + 11);
	/* pidfs (Linux 6.9) and nsfs */
	if (has_prefix(link, "pidfd:"))
		return FD_PIDFD;
	if (!st)
		return FD_OTHER;
	switch (st->st_mode & S_IFMT) {
	case S_IFDIR:
		return FD_DIRECTORY;
	case S_IFIFO:
		return has_prefix(link, "pipe:[") ? FD_PIPE : FD_FIFO;
	case S_IFCHR:
		return FD_CHAR;
	case S_IFBLK:
		return FD_BLOCK;
	case S_IFSOCK:
		return has_prefix(link, "socket:[") ? FD_SOCKET : FD_OTHER;
	case S_IFLNK:
		return link[0] == '/' && st->st_nlink && !path_says_deleted(link) ? FD_SYMLINK
										  : FD_OTHER;
	case S_IFREG:
		if (has_prefix(link, "/memfd:") && st->st_nlink == 0)
			return FD_MEMFD;
		if (link[0] != '/' && strstr(link, ":["))
			return FD_NAMESPACE;
		return link[0] == '/' ? FD_REGULAR : FD_OTHER;
	}
	return FD_OTHER;
}

bool fd_is_deleted(const struct fd_state *f)
{
	return f->has_stat &&
	       (f->kind == FD_REGULAR || f->kind == FD_DIRECTORY || f->kind == FD_FIFO) &&
	       (f->st.st_nlink == 0 || (path_says_deleted(f->link) && !f->ends_so));
}

/* ---- in the freeze ------------------------------------------------------- */

/* tee(2) leaves the content where it is and costs no copy; what it brought is
 * read out of our own pipe when the target runs again. */
static void collect_pipe(struct fd_state *f, int fd)
{
	struct pollfd p = {.fd = fd};
	int ends[2];

	f->pipe_size = fcntl(fd, F_GETPIPE_SZ);
	f->pipe_closed = poll(&p, 1, 0) == 1 && p.revents & (POLLHUP | POLLERR);
	if (ioctl(fd, FIONREAD, &f->pipe_queued) < 0)
		f->pipe_queued = -1;
	if (f->pipe_queued <= 0 || (f->flags & O_ACCMODE) == O_WRONLY ||
	    pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0)
		return;
	fcntl(ends[1], F_SETPIPE_SZ, f->pipe_size);
	tee(fd, ends[1], PIPE_DATA_MAX, SPLICE_F_NONBLOCK);
	close(ends[1]);
	f->pipe_copy = ends[0];
}

static bool is_terminal_number(dev_t rdev)
{
	unsigned m = major(rdev);

	return (m >= 136 && m <= 143) || m == 4 || (m == 5 && minor(rdev) != 3);
}

/* The kernel's struct termios, which glibc's is not. */
static void collect_terminal(struct fd_state *f, int fd)
{
	unsigned char termios[64] = {0};
	struct winsize ws;

	/* TCGETS of the libc header is the kernel's number, and ioctl() no wrapper. */
	f->has_termios = ioctl(fd, TCGETS, termios) == 0;
	memcpy(f->termios, termios, sizeof(f->termios));
	f->has_winsize = ioctl(fd, TIOCGWINSZ, &ws) == 0;
	if (f->has_winsize)
		memcpy(f->winsize, &ws, sizeof(f->winsize));
	f->tty_packet = f->tty_exclusive = f->tty_discipline = f->tty_queued = -1;
	if (ioctl(fd, TIOCGPKT, &f->tty_packet) < 0)
		f->tty_packet = -1;
	if (ioctl(fd, TIOCGEXCL, &f->tty_exclusive) < 0)
		f->tty_exclusive = -1;
	if (ioctl(fd, TIOCGETD, &f->tty_discipline) < 0)
		f->tty_discipline = -1;
	if (ioctl(fd, FIONREAD, &f->tty_queued) < 0)
		f->tty_queued = -1;
	f->has_pty = ioctl(fd, TIOCGPTN, &f->pty_number) == 0;
	if (f->has_pty && ioctl(fd, TIOCGPTLCK, &f->pty_locked) < 0)
		f->pty_locked = 0;
}

static void collect_owner(struct fd_state *f, int fd)
{
	struct f_owner_ex owner;

	if (fcntl(fd, F_GETOWN_EX, &owner) < 0)
		return;
	f->has_owner = true;
	f->owner_type = owner.type;
	f->owner_pid = owner.pid;
	f->owner_sig = fcntl(fd, F_GETSIG);
}

/* Periodic, and it has gone off since it was read: the kernel has stopped it, and shows no time. */
static bool timer_waits_for_reader(const struct fd_state *f)
{
	const char *value = text_line(span_text(f->info), "it_value");
	const char *interval = text_line(span_text(f->info), "it_interval");

	return value && interval && has_prefix(value, "(0, 0)") && !has_prefix(interval, "(0, 0)");
}

/* Asked for the time that is left, the kernel counts the periods that have passed and starts the
 * timer again, as it does at a read, but leaves the count to be read: the target sees no
 * difference. */
static void collect_timer(struct pstate *ps, struct fd_state *f, int fd)
{
	struct itimerspec now;
	char name[16];

	snprintf(name, sizeof(name), "%d", f->fd);
	if (timerfd_gettime(fd, &now) == 0)
		arena_read_at(&ps->arena, ps->fdinfo_dir, name, &f->info);
}

static bool needs_duplicate(const struct fd_state *f)
{
	if (f->flags & O_PATH)
		return false;
	if (f->flags & O_ASYNC)
		return true;
	switch (f->kind) {
	case FD_PIPE:
	case FD_FIFO:
		return f->first;
	case FD_SOCKET:
		return socket_needs_query(f);
	case FD_CHAR:
		return f->has_stat && is_terminal_number(f->st.st_rdev);
	case FD_TIMERFD:
		return timer_waits_for_reader(f);
	case FD_MEMFD:
	case FD_INOTIFY:
		return true;
	default:
		return false;
	}
}

void fd_collect_kind(struct pstate *ps, struct fd_state *f)
{
	if (!needs_duplicate(f))
		return;
	cleanup_fd int fd = (int)syscall(SYS_pidfd_getfd, ps->t->pidfd, f->fd, 0);
	if (fd < 0)
		return;
	if (f->flags & O_ASYNC)
		collect_owner(f, fd);
	switch (f->kind) {
	case FD_PIPE:
	case FD_FIFO:
		collect_pipe(f, fd);
		break;
	case FD_SOCKET:
		if (socket_needs_query(f))
			socket_query(f, fd);
		break;
	case FD_CHAR:
		collect_terminal(f, fd);
		break;
	case FD_MEMFD:
		f->seals = fcntl(fd, F_GET_SEALS);
		f->has_seals = f->seals >= 0;
		break;
	case FD_TIMERFD:
		if (timer_waits_for_reader(f))
			collect_timer(ps, f, fd);
		break;
	case FD_INOTIFY:
		if (ioctl(fd, FIONREAD, &f->pipe_queued) < 0)
			f->pipe_queued = -1;
		break;
	default:
		break;
	}
}

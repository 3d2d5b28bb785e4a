/*
 * What a restart could not bring back, by name: {"what", "detail",
 * "severity"}. "note": it comes back changed, as said; "refuse": a restore
 * refuses unless told to ignore it; "consistency": the image itself may hold
 * bytes newer than T0, because a device can write past the protection.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>

#include "common/io.h"
#include "common/util.h"
#include "process/pstate_internal.h"

void limit_add(json_t *list, const char *what, const char *severity, const char *fmt, ...)
{
	char *text = NULL;
	va_list ap;

	va_start(ap, fmt);
	int n = vasprintf(&text, fmt, ap);
	va_end(ap);
	if (n < 0)
		return;
	json_t *o = json_pack("{s:s,s:s}", "what", what, "severity", severity);
	json_set_text(o, "detail", text);
	json_array_append_new(list, o);
	free(text);
}

static bool is_harmless_device(dev_t rdev)
{
	static const unsigned mem[] = {3, 5, 7, 8, 9}; /* null zero full random urandom */
	unsigned m = major(rdev);

	if (m == 1)
		for (size_t i = 0; i < ARRAY_SIZE(mem); i++)
			if (minor(rdev) == mem[i])
				return true;
	return m == 4 || m == 5 || (m >= 136 && m <= 143); /* terminals */
}

static bool pipe_has_other_end(const struct pstate *ps, const struct fd_state *f)
{
	if ((f->flags & O_ACCMODE) == O_RDWR)
		return true;
	for (size_t i = 0; i < ps->files.n; i++) {
		const struct fd_state *g = &ps->files.v[i];

		if (g->kind == f->kind && g->ino == f->ino && g != f &&
		    (g->flags & O_ACCMODE) != (f->flags & O_ACCMODE))
			return true;
	}
	return false;
}

/* A restore gives those to its own. */
static bool is_standard(const struct pstate *ps, const struct fd_state *f)
{
	for (size_t i = 0; i < ps->files.n; i++) {
		const struct fd_state *g = &ps->files.v[i];

		if (g->fd <= STDERR_FILENO && g->kind == f->kind && g->has_stat && f->has_stat &&
		    g->st.st_ino == f->st.st_ino)
			return true;
	}
	return false;
}

static void limit_socket(const struct pstate *ps, json_t *l, const struct fd_state *f)
{
	char text[320];
	bool connected;

	socket_describe(f, text, sizeof(text), &connected);
	if (!connected && f->sock && f->sock->has_filter)
		limit_add(l, "socket-filter", "refuse",
			  "fd %d: %s: its filter (SO_ATTACH_FILTER, SO_ATTACH_BPF) is not in the "
			  "image",
			  f->fd, text);
	if (connected)
		limit_add(
			l, "connected-socket", "note", "fd %d: %s; will come back %s", f->fd, text,
			is_standard(ps, f) ? "as what a restore has there" : "closed by the peer");
	else if (f->sock && f->sock->has_rights)
		limit_add(l, "descriptors-in-flight", "refuse",
			  "fd %d: descriptors sent to the socket and not received yet", f->fd);
	else if (socket_queue_lost(f))
		limit_add(l, "socket-queue", "note", "fd %d: %s; what waits in it is lost%s", f->fd,
			  text, f->sock->data_len ? " in part" : "");
	else if (f->sock && f->sock->domain != AF_UNIX && f->sock->domain != AF_INET &&
		 f->sock->domain != AF_INET6 && f->sock->domain != AF_NETLINK)
		limit_add(l, "socket-family", "refuse", "fd %d: socket of family %d", f->fd,
			  f->sock->domain);
	else if (!f->sock && !f->diag)
		limit_add(l, "socket-unknown", "refuse", "fd %d: %s could not be looked at", f->fd,
			  f->link);
}

static bool is_own_pidfd(const struct pstate *ps, const struct fd_state *f)
{
	uint64_t pid;

	/* -1: of a process that has ended. */
	return text_number(span_text(f->info), "Pid", 0, 10, &pid) &&
	       (pid == (uint64_t)ps->t->pid || (int32_t)pid == -1);
}

static void limit_file(const struct pstate *ps, json_t *l, const struct fd_state *f)
{
	static const struct {
		enum fd_kind kind;
		const char *what, *detail;
	} refused[] = {
		{FD_IO_URING, "io_uring",
		 "an io_uring: its rings and requests belong to the kernel"},
		{FD_BPF, "bpf", "an eBPF object"},
		{FD_PERF, "perf-event", "a performance counter"},
		{FD_KVM, "kvm", "a virtual machine"},
		{FD_UFFD, "userfaultfd", "a userfaultfd"},
		{FD_FANOTIFY, "fanotify", "a fanotify group"},
		{FD_BLOCK, "block-device", "a block device held open"},
		{FD_MQUEUE, "message-queue", "a POSIX message queue"},
		{FD_OTHER, "unknown-descriptor", "of a kind that is not known"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(refused); i++)
		if (f->kind == refused[i].kind)
			limit_add(l, refused[i].what, "refuse", "fd %d: %s (%s)", f->fd,
				  refused[i].detail, f->link);
	if (f->kind == FD_CHAR && f->has_stat && !is_harmless_device(f->st.st_rdev) &&
	    !(f->flags & O_PATH))
		limit_add(l, "device", "refuse", "fd %d: %s: what the device knows of it is lost",
			  f->fd, f->link);
	if (f->kind == FD_PIDFD && !is_own_pidfd(ps, f))
		limit_add(l, "pidfd", "refuse", "fd %d: refers to a process", f->fd);
	if (f->kind == FD_NAMESPACE)
		limit_add(l, "namespace", "note", "fd %d: %s", f->fd, f->link);
	if (f->kind == FD_SOCKET)
		limit_socket(ps, l, f);
	if (fd_is_deleted(f) && f->kind == FD_REGULAR && f->st.st_nlink)
		limit_add(l, "deleted-file", "refuse",
			  "fd %d: %s: the file has another name, which is not known", f->fd,
			  f->link);
	/* One that was removed is empty. */
	if (fd_is_deleted(f) && f->kind == FD_DIRECTORY && f->st.st_nlink)
		limit_add(l, "deleted-directory", "refuse", "fd %d: %s", f->fd, f->link);
	if (f->kind == FD_PIPE && !f->pipe_closed && !pipe_has_other_end(ps, f))
		limit_add(l, "pipe-outside", "note",
			  "fd %d: the other end of %s is held by somebody else", f->fd, f->link);
	if (f->kind == FD_CHAR && f->has_termios && f->tty_queued > 0)
		limit_add(l, "terminal-queue", "note",
			  "fd %d: %s: %d bytes that wait to be read are lost", f->fd, f->link,
			  f->tty_queued);
	if (f->kind == FD_INOTIFY && f->pipe_queued > 0)
		limit_add(l, "inotify-queue", "note",
			  "fd %d: %d bytes of events that wait are lost", f->fd, f->pipe_queued);
	if (f->kind == FD_REGULAR && f->flags & O_DIRECT)
		limit_add(
			l, "direct-io", "consistency",
			"fd %d: %s is open with O_DIRECT: a read underway at T0 may write past the "
			"protection",
			f->fd, f->link);
	if (f->kind == FD_IO_URING)
		limit_add(l, "io_uring-buffers", "consistency",
			  "fd %d: fixed buffers of an io_uring are written past the protection",
			  f->fd);
	if (f->kind == FD_CHAR && strstr(f->link, "/infiniband/"))
		limit_add(l, "rdma", "consistency", "fd %d: RDMA writes past the protection",
			  f->fd);
}

static void limit_maps(const struct pstate *ps, json_t *l)
{
	for (size_t i = 0; i < ps->maps->n; i++) {
		const struct vma *v = &ps->maps->v[i];
		unsigned long long at = v->start;

		if (!strncmp(v->path, "/[aio]", 6))
			limit_add(l, "aio", "refuse",
				  "0x%llx: a ring of asynchronous I/O (io_setup)", at);
		else if (!strncmp(v->path, "/secretmem", 10))
			limit_add(l, "secret-memory", "refuse",
				  "0x%llx: memory that nobody else can read", at);
		else if (v->kind == VMA_DEVICE && strncmp(v->path, "anon_inode:", 11) != 0)
			limit_add(l, "device-memory", "refuse", "0x%llx: %s", at,
				  v->path[0] ? v->path : "memory of a device");
		if (v->flags >> VMF_SS & 1)
			limit_add(l, "shadow-stack", "refuse", "0x%llx: a shadow stack", at);
		if (!strncmp(v->path, "/SYSV", 5) && v->shared && v->dev_major == 0)
			limit_add(l, "sysv-shm", "note",
				  "0x%llx: %s: its content comes back, its key and its other users "
				  "do "
				  "not",
				  at, v->path);
	}
}

static void limit_threads(const struct pstate *ps, json_t *l)
{
	size_t unknown = 0, filtered = 0;
	pid_t first = 0;

	for (size_t i = 0; i < ps->nr_threads; i++) {
		const struct thread_state *th = &ps->threads[i];
		uint64_t v = 0;

		if (!th->has_altstack && !unknown++)
			first = th->tid;
		text_number(span_text(th->status), "Seccomp", 0, 10, &v);
		filtered += v == 2;
		if (v == 1)
			limit_add(l, "seccomp-strict", "refuse", "thread %d: strict seccomp mode",
				  (int)th->tid);
		const char *features = text_line(span_text(th->status), "x86_Thread_features");
		if (features && !strncmp(features, "shstk", 5))
			limit_add(l, "shadow-stack", "refuse", "thread %d: uses a shadow stack",
				  (int)th->tid);
	}
	bool whole = seccomp_complete(ps);
	/* Whatever restores it where this command runs is under them, and so is what it restores. */
	bool ours = !whole && ps->gadgets.seccomp_harmless;
	if (filtered)
		limit_add(l, "seccomp-filter", whole || ours ? "note" : "refuse",
			  "%zu threads run under seccomp filters%s", filtered,
			  whole	 ? ""
			  : ours ? ", those of the container that the snapshot was taken in: they "
				   "are not in the image"
				 : ", which could not be read");
	if (unknown)
		limit_add(l, "thread-details", "refuse",
			  "%zu threads (the first is %d) could not be asked for their alternate "
			  "signal "
			  "stack",
			  unknown, (int)first);
	if (!ps->signals_known)
		limit_add(l, "signal-actions", "refuse",
			  "no thread could be asked for signal actions and "
			  "timers");
}

static void limit_namespaces(const struct pstate *ps, json_t *l)
{
	const char *name;
	json_t *theirs;

	json_object_foreach (ps->namespaces, name, theirs) {
		char path[64];
		cleanup_free char *own = NULL;

		snprintf(path, sizeof(path), "/proc/self/ns/%s", name);
		if (io_readlink_at(AT_FDCWD, path, &own) == 0 && json_is_string(theirs) &&
		    strcmp(own, json_string_value(theirs)) != 0)
			limit_add(l, "namespace", "note", "%s: %s is not the snapshotter's", name,
				  json_string_value(theirs));
	}
}

/* The first process of a PID namespace ends with all others in it, which it has to take over. */
static void limit_init(const struct pstate *ps, json_t *l)
{
	uint64_t pid = 0, v;

	for (unsigned n = 0; text_number(span_text(ps->threads[0].status), "NStgid", n, 10, &v);
	     n++)
		pid = v;
	if (pid == 1)
		limit_add(l, "pid-namespace-init", "refuse",
			  "it is the first process of its PID namespace");
}

/* CLOCK_THREAD_CPUTIME_ID as the kernel keeps it: the thread that made the timer, and /proc does not
 * say which that was. */
#define OWN_CPU_TIME (-2)

static void limit_timers(const struct pstate *ps, json_t *l)
{
	size_t unknown = 0, whose = 0;

	for (size_t i = 0; i < ps->signals.nr_timers; i++) {
		unknown += !ps->signals.timers[i].has_time;
		whose += ps->signals.timers[i].clock == OWN_CPU_TIME;
	}
	if (unknown)
		limit_add(l, "posix-timers", "refuse",
			  "%zu timers could not be asked for the time that is left", unknown);
	/* One thread can only have made it itself. */
	if (whose && ps->nr_threads > 1)
		limit_add(l, "posix-timers", "refuse",
			  "%zu timers count the CPU time of a thread that cannot be told "
			  "(ignored: of the main thread)",
			  whose);
}

static void limit_process(const struct pstate *ps, json_t *l)
{
	limit_namespaces(ps, l);
	limit_init(ps, l);
	if (cwd_is_deleted(ps))
		limit_add(l, "deleted-directory", "refuse", "its working directory %s", ps->cwd);
	if (ps->children && strspn(ps->children, " ") != strlen(ps->children)) {
		size_t len = strlen(ps->children);

		while (ps->children[len - 1] == ' ')
			len--;
		limit_add(l, "children", "refuse", "it has children: %.*s", (int)len, ps->children);
	}
	limit_timers(ps, l);
	if (!ps->files.has_kcmp)
		limit_add(l, "shared-offsets", "note",
			  "the kernel has no kcmp, or does not let us: descriptors that share an "
			  "offset, and threads that have descriptors of their own, cannot be told");
}

/* SysV semaphore adjustments and the like leave no trace in /proc; those that
 * map or hold something do. */
json_t *limits_of_restore_json(const struct pstate *ps)
{
	json_t *l = json_array();

	limit_process(ps, l);
	limit_threads(ps, l);
	limit_apart(ps, l);
	limit_maps(ps, l);
	limit_unlinked(ps, l);
	limit_hidden(ps, l);
	for (size_t i = 0; i < ps->files.n; i++)
		limit_file(ps, l, &ps->files.v[i]);
	return l;
}

/* Descriptors in JSON; pstate.c has the format. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "common/compat.h"
#include "common/util.h"
#include "process/pstate_internal.h"

/* A read ends with a packet where there are packets, and with the content where there are none. */
static void read_pipe_copy(struct fd_state *f)
{
	size_t want = MIN((size_t)f->pipe_queued, PIPE_DATA_MAX), room = 0;

	f->data = malloc(MAX(want, (size_t)1));
	while (f->data && f->data_len < want) {
		ssize_t n = read(f->pipe_copy, f->data + f->data_len, want - f->data_len);

		if (n <= 0)
			break;
		if (f->nr_packets == room) {
			room = room ? room * 2 : 16;
			uint32_t *bigger = realloc(f->packets, room * sizeof(*bigger));
			if (!bigger)
				break;
			f->packets = bigger;
		}
		f->packets[f->nr_packets++] = (uint32_t)n;
		f->data_len += (size_t)n;
	}
}

static bool in_packet_mode(const struct pstate *ps, const struct fd_state *f)
{
	for (size_t i = 0; i < ps->files.n; i++) {
		const struct fd_state *g = &ps->files.v[i];

		if (g->kind == f->kind && g->ino == f->ino && g->flags & O_DIRECT)
			return true;
	}
	return f->nr_packets > 1;
}

static json_t *pipe_json(const struct pstate *ps, struct fd_state *f)
{
	json_t *o = json_object();

	if (f->pipe_size >= 0)
		json_object_set_new(o, "size", json_integer(f->pipe_size));
	if (f->pipe_queued >= 0)
		json_object_set_new(o, "queued", json_integer(f->pipe_queued));
	if (f->pipe_closed)
		json_object_set_new(o, "closed", json_true());
	if (f->pipe_copy < 0)
		return o;
	if (!f->data)
		read_pipe_copy(f);
	json_object_set_new(o, "data", json_hex(f->data, f->data_len));
	if (in_packet_mode(ps, f)) {
		json_t *a = json_array();

		for (size_t i = 0; i < f->nr_packets; i++)
			json_array_append_new(a, json_integer(f->packets[i]));
		json_object_set_new(o, "packets", a);
	}
	return o;
}

/* The kernel prints a timespec as "(seconds, nanoseconds)". */
static json_t *timespec_json(const char *text, const char *key)
{
	const char *s = text_line(text, key);
	long long sec, nsec;

	if (!s || sscanf(s, "(%lld, %lld)", &sec, &nsec) != 2)
		return json_null();
	return json_integer(sec * 1000000000 + nsec);
}

static void set_number(json_t *o, const char *name, const char *text, const char *key, int base)
{
	uint64_t v;

	if (text_number(text, key, 0, base, &v))
		json_object_set_new(o, name, json_integer((json_int_t)v));
}

/* "flags" occurs twice in a timerfd's text: the file's and, as "settime
 * flags", the timer's. */
static json_t *timerfd_json(const char *text)
{
	json_t *o = json_object();

	set_number(o, "clock", text, "clockid", 10);
	set_number(o, "ticks", text, "ticks", 10);
	set_number(o, "settime_flags", text, "settime flags", 8);
	json_object_set_new(o, "value_ns", timespec_json(text, "it_value"));
	json_object_set_new(o, "interval_ns", timespec_json(text, "it_interval"));
	return o;
}

static json_t *eventfd_json(const char *text)
{
	json_t *o = json_object();
	uint64_t v;

	if (text_number(text, "eventfd-count", 0, 16, &v))
		json_object_set_new(o, "count", json_address(v));
	set_number(o, "semaphore", text, "eventfd-semaphore", 10);
	return o;
}

static json_t *terminal_json(const struct fd_state *f)
{
	json_t *o = json_pack("{s:o}", "termios", json_hex(f->termios, sizeof(f->termios)));

	if (f->has_winsize)
		json_object_set_new(o, "winsize",
				    json_pack("[i,i,i,i]", f->winsize[0], f->winsize[1],
					      f->winsize[2], f->winsize[3]));
	if (f->tty_packet >= 0)
		json_object_set_new(o, "packet", json_boolean(f->tty_packet));
	if (f->tty_exclusive >= 0)
		json_object_set_new(o, "exclusive", json_boolean(f->tty_exclusive));
	if (f->tty_discipline >= 0)
		json_object_set_new(o, "discipline", json_integer(f->tty_discipline));
	if (f->tty_queued >= 0)
		json_object_set_new(o, "queued", json_integer(f->tty_queued));
	if (f->has_pty) {
		json_object_set_new(o, "pty", json_integer(f->pty_number));
		json_object_set_new(o, "locked", json_boolean(f->pty_locked));
	}
	return o;
}

/* "lock:	1: FLOCK  ADVISORY  WRITE 123 fe:00:247134 0 EOF" */
static json_t *locks_json(const char *text)
{
	json_t *a = NULL;

	for (const char *s = text; s && *s;) {
		char kind[16], mode[16], type[16], end[24];
		int pid;
		long long from;

		if (sscanf(s, "lock: %*d: %15s %15s %15s %d %*s %lld %23s", kind, mode, type, &pid,
			   &from, end) == 6) {
			json_t *o = json_pack("{s:s,s:s,s:s,s:i,s:I}", "kind", kind, "mode", mode,
					      "type", type, "pid", pid, "start", (json_int_t)from);

			if (strcmp(end, "EOF") != 0)
				json_object_set_new(o, "end", json_integer(strtoll(end, NULL, 10)));
			if (!a)
				a = json_array();
			json_array_append_new(a, o);
		}
		s = strchr(s, '\n');
		if (s)
			s++;
	}
	return a;
}

static json_t *kind_json(const struct pstate *ps, struct fd_state *f, const char *text)
{
	json_t *o;
	uint64_t v;

	switch (f->kind) {
	case FD_PIPE:
	case FD_FIFO:
		return pipe_json(ps, f);
	case FD_EVENTFD:
		return eventfd_json(text);
	case FD_EPOLL:
		return epoll_json(ps, f, text);
	case FD_TIMERFD:
		return timerfd_json(text);
	case FD_SIGNALFD:
		o = json_object();
		if (text_number(text, "sigmask", 0, 16, &v))
			json_object_set_new(o, "mask", json_address(v));
		return o;
	case FD_INOTIFY:
		return inotify_json(ps, f, text);
	case FD_PIDFD:
		o = json_object();
		set_number(o, "pid", text, "Pid", 10);
		return o;
	case FD_MEMFD:
		o = json_object();
		if (f->has_seals)
			json_object_set_new(o, "seals", json_integer(f->seals));
		return o;
	case FD_SOCKET:
		return socket_json(f);
	case FD_CHAR:
		return f->has_termios || f->has_pty ? terminal_json(f) : NULL;
	default:
		return NULL;
	}
}

static void stat_json(const struct fd_state *f, json_t *o)
{
	char dev[32];

	snprintf(dev, sizeof(dev), "%02x:%02x", major(f->st.st_dev), minor(f->st.st_dev));
	json_object_set_new(o, "dev", json_string(dev));
	json_object_set_new(o, "inode", json_integer((json_int_t)f->st.st_ino));
	json_object_set_new(o, "mode", json_sprintf("0o%o", f->st.st_mode));
	if (f->kind == FD_REGULAR || f->kind == FD_MEMFD || f->kind == FD_SYMLINK) {
		json_object_set_new(o, "size", json_integer(f->st.st_size));
		json_object_set_new(
			o, "mtime_ns",
			json_integer(f->st.st_mtim.tv_sec * 1000000000ll + f->st.st_mtim.tv_nsec));
	}
	if (f->kind == FD_CHAR || f->kind == FD_BLOCK) {
		snprintf(dev, sizeof(dev), "%u:%u", major(f->st.st_rdev), minor(f->st.st_rdev));
		json_object_set_new(o, "rdev", json_string(dev));
	}
	if (fd_is_deleted(f))
		json_object_set_new(o, "deleted", json_true());
}

json_t *fd_json(struct pstate *ps, struct fd_state *f)
{
	const char *text = span_text(f->info);
	json_t *o = json_pack("{s:i,s:s}", "fd", f->fd, "type", fd_kind_name(f->kind)), *more;

	json_set_text(o, "path", f->link);
	json_object_set_new(
		o, "flags",
		json_sprintf("0o%llo", (unsigned long long)(f->flags & ~(uint64_t)O_CLOEXEC)));
	json_object_set_new(o, "cloexec", json_boolean(f->flags & O_CLOEXEC));
	set_number(o, "offset", text, "pos", 10);
	json_object_set_new(o, "description", json_integer(f->description));
	if (f->has_stat)
		stat_json(f, o);
	if (f->has_owner)
		json_object_set_new(o, "owner",
				    json_pack("{s:i,s:i,s:i}", "type", f->owner_type, "pid",
					      f->owner_pid, "signo", f->owner_sig));
	more = locks_json(text);
	if (more)
		json_object_set_new(o, "locks", more);
	more = kind_json(ps, f, text);
	if (more)
		json_object_set_new(o, f->kind == FD_CHAR ? "terminal" : fd_kind_name(f->kind),
				    more);
	return o;
}

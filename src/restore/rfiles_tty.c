/*
 * Terminals, and the other character devices.
 *
 * A pty whose master the process had is made anew: the number of its slave,
 * and with it its path, is the kernel's choice. Any other terminal is the
 * restorer's. The modes that the process had set are set again, on the
 * restorer's terminal only by a restore in the foreground, and last.
 */
#include <asm/termbits.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/util.h"
#include "restore/rfiles_internal.h"
#include "restore/rjson.h"

/* Documentation/admin-guide/devices.txt */
enum {
	MAJOR_TTY = 4,
	MAJOR_TTYAUX = 5,
	MAJOR_PTS_FIRST = 136,
	MAJOR_PTS_LAST = 143,
	FIRST_SERIAL = 64, /* minor of MAJOR_TTY */
	PTYS_PER_MAJOR = 256,
	MAX_PTYS = 1 << 20,
};

/* The kernel's struct termios: glibc's is another one. */
struct rtty {
	bool master, locked, packet, exclusive, has_termios, has_winsize;
	int64_t number;
	struct termios termios;
	struct winsize winsize;
};

void rtty_find_own(struct rfiles *f, bool detach)
{
	for (int fd = 0; fd <= 2 && f->tty < 0; fd++)
		if (isatty(fd))
			f->tty = fd;
	if (f->tty < 0 && !detach) {
		f->tty = open("/dev/tty", O_RDWR | O_NOCTTY | O_CLOEXEC);
		f->own_tty = f->tty >= 0;
	}
	f->foreground = !detach && f->tty >= 0 && tcgetpgrp(f->tty) == getpgrp();
}

static bool is_slave(const struct rdesc *d)
{
	return d->rdev_major >= MAJOR_PTS_FIRST && d->rdev_major <= MAJOR_PTS_LAST;
}

static int64_t slave_number(const struct rdesc *d)
{
	return (int64_t)(d->rdev_major - MAJOR_PTS_FIRST) * PTYS_PER_MAJOR + d->rdev_minor;
}

static bool is_master_of(const struct rdesc *d, int64_t number)
{
	const json_t *pty = d->kind == RFILE_CHAR ? json_object_get(d->more, "pty") : NULL;

	return json_is_integer(pty) && json_integer_value(pty) == number && d->how == RFILE_MADE &&
	       !(d->flags & O_PATH);
}

static struct rdesc *find_master(const struct rfiles *f, int64_t number)
{
	for (size_t i = 0; i < f->nr_descs; i++)
		if (is_master_of(&f->descs[i], number))
			return &f->descs[i];
	return NULL;
}

bool rtty_lies_outside(const struct rfiles *f, const struct rdesc *d)
{
	if (d->kind != RFILE_CHAR || d->flags & O_PATH)
		return false;
	if (is_slave(d))
		return !find_master(f, slave_number(d));
	return (d->rdev_major == MAJOR_TTYAUX && d->rdev_minor <= 1) ||
	       (d->rdev_major == MAJOR_TTY && d->rdev_minor < FIRST_SERIAL);
}

static int parse_winsize(const json_t *o, struct rtty *t, struct usnap_err *err)
{
	unsigned short v[4];
	json_t *a;
	int r = rjson_array(o, "winsize", 4, &a, err);

	if (r < 0 || json_array_size(a) != ARRAY_SIZE(v))
		return r;
	for (size_t i = 0; i < ARRAY_SIZE(v); i++)
		v[i] = (unsigned short)json_integer_value(json_array_get(a, i));
	t->has_winsize = true;
	t->winsize = (struct winsize){v[0], v[1], v[2], v[3]};
	return 0;
}

static int parse(struct rdesc *d, struct rtty *t, struct usnap_err *err)
{
	cleanup_free unsigned char *raw = NULL;
	size_t len;
	int r;

	if ((r = rjson_hex(d->more, "termios", sizeof(t->termios), &raw, &len, err)) < 0 ||
	    (r = parse_winsize(d->more, t, err)) < 0 ||
	    (r = rjson_int_or(d->more, "pty", 0, MAX_PTYS, -1, &t->number, err)) < 0 ||
	    (r = rjson_bool_or(d->more, "locked", false, &t->locked, err)) < 0 ||
	    (r = rjson_bool_or(d->more, "packet", false, &t->packet, err)) < 0 ||
	    (r = rjson_bool_or(d->more, "exclusive", false, &t->exclusive, err)) < 0)
		return r;
	t->master = t->number >= 0;
	t->has_termios = raw && len == sizeof(t->termios);
	if (t->has_termios)
		memcpy(&t->termios, raw, len);
	return 0;
}

int rtty_plan(struct restore *r, struct rdesc *d, struct usnap_err *err)
{
	if (d->flags & O_PATH)
		return rpath_plan(r, d, err);
	struct rtty *t = d->state = calloc(1, sizeof(*t));
	if (!t)
		return usnap_fail_errno(err, -ENOMEM, "cannot restore the descriptors");
	int ret = parse(d, t, err);
	if (ret < 0)
		return ret;
	if (t->master)
		return rfile_problem(r, err, RESTORE_NOTE, "pty-number",
				     "fd %d: the terminal /dev/pts/%d gets another number", d->fd,
				     (int)t->number);
	return is_slave(d) ? 0 : rpath_plan(r, d, err);
}

/* ---- in the builder ------------------------------------------------------------- */

static void set_modes(const struct rtty *t, int fd)
{
	if (t->has_termios)
		ioctl(fd, TCSETS, &t->termios);
	if (t->has_winsize)
		ioctl(fd, TIOCSWINSZ, &t->winsize);
}

static int make_master(const struct rdesc *d, int *ret_fd, struct usnap_err *err)
{
	const struct rtty *t = d->state;
	int unlocked = 0;
	cleanup_fd int fd =
		open("/dev/ptmx", (d->flags & (O_ACCMODE | O_NONBLOCK)) | O_NOCTTY | O_CLOEXEC);

	if (fd < 0 || ioctl(fd, TIOCSPTLCK, &unlocked) < 0)
		return rfile_fail(err, -errno, d, "make");
	/* On the master they are the slave's, which need not be open. */
	set_modes(t, fd);
	*ret_fd = take_fd(&fd);
	return 0;
}

static int make_slave(struct restore *r, const struct rdesc *d, int *ret_fd, struct usnap_err *err)
{
	struct rdesc *m = find_master(r->files, slave_number(d));
	int ret;

	if (!m)
		return rfile_fail(err, -ENXIO, d, "make");
	if (m->parked < 0) {
		int master;

		if ((ret = make_master(m, &master, err)) < 0)
			return ret;
		if ((ret = rfiles_park_description(r->files, m, master)) < 0)
			return rfile_fail(err, ret, d, "make");
	}
	int fd = ioctl(m->parked, TIOCGPTPEER,
		       (d->flags & (O_ACCMODE | O_NONBLOCK)) | O_NOCTTY | O_CLOEXEC);
	if (fd < 0)
		return rfile_fail(err, -errno, d, "make");
	*ret_fd = fd;
	return 0;
}

int rtty_make(struct restore *r, struct rdesc *d, int *ret_fd, struct usnap_err *err)
{
	const struct rtty *t = d->state;

	if (t && t->master)
		return make_master(d, ret_fd, err);
	if (t && is_slave(d))
		return make_slave(r, d, ret_fd, err);
	int ret = rpath_make(r, d, ret_fd, err);
	if (ret == 0 && t)
		set_modes(t, *ret_fd);
	return ret;
}

static pid_t tcgetsid_of(int fd)
{
	pid_t sid;

	return ioctl(fd, TIOCGSID, &sid) < 0 ? -1 : sid;
}

/* A terminal of the process's own controls it again. */
static int take_control(const struct restore *r, const struct rdesc *d, struct usnap_err *err)
{
	const json_t *tty = json_object_get(r->process, "tty");
	uint32_t maj, min;
	int ret = rfile_parse_dev(tty, "rdev", 10, &maj, &min, err);

	if (ret < 0 || !tty || maj != d->rdev_major || min != d->rdev_minor ||
	    getsid(0) != getpid() || tcgetsid_of(d->fd) == getpid())
		return ret;
	if (ioctl(d->fd, TIOCSCTTY, 0) < 0)
		return rfile_fail(err, -errno, d, "take control of");
	return 0;
}

int rtty_settle(struct restore *r, struct rdesc *d, struct usnap_err *err)
{
	const struct rtty *t = d->state;
	int on = 1;

	if (!t)
		return 0;
	if (t->master && t->packet && ioctl(d->fd, TIOCPKT, &on) < 0)
		return rfile_fail(err, -errno, d, "set the packet mode of");
	if (t->master && t->locked && ioctl(d->fd, TIOCSPTLCK, &on) < 0)
		return rfile_fail(err, -errno, d, "lock");
	if (t->exclusive && ioctl(d->fd, TIOCEXCL) < 0)
		return rfile_fail(err, -errno, d, "keep to itself");
	return is_slave(d) ? take_control(r, d, err) : 0;
}

/* ---- by remote calls -------------------------------------------------------------- */

int rtty_finish(struct finish *f, const struct rdesc *d)
{
	struct rtty t = {0};

	if (d->kind != RFILE_CHAR || d->how != RFILE_INHERITED ||
	    !finish_restore(f)->files->foreground || !isatty(d->own) ||
	    parse((struct rdesc *)d, &t, NULL) < 0 || !t.has_termios)
		return 0;
	uint64_t addr = finish_data(f, &t.termios, sizeof(t.termios));
	return finish_try(f, d, SYS_ioctl, (uint64_t)d->fd, TCSETS, addr);
}

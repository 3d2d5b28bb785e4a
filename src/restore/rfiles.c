/*
 * The descriptors: the plan. rfiles_internal.h has the design.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "common/util.h"
#include "restore/rfiles_internal.h"
#include "restore/rjson.h"

enum {
	MAX_FILES = 1 << 22
};

const struct rfile_ops rfile_ops[RFILE_NR_KINDS] = {
	[RFILE_REGULAR] = {"file", NULL, rpath_plan, rpath_make, runlinked_settle},
	[RFILE_DIRECTORY] = {"dir", NULL, rpath_plan, rpath_make, NULL},
	[RFILE_PIPE] = {"pipe", "pipe", rpipe_plan, rpipe_make, NULL},
	[RFILE_FIFO] = {"fifo", "fifo", rfifo_plan, rfifo_make, NULL},
	[RFILE_CHAR] = {"chr", "terminal", rtty_plan, rtty_make, rtty_settle},
	[RFILE_BLOCK] = {"blk", NULL, rpath_plan, rpath_make, NULL},
	/* rsockets.h */
	[RFILE_SOCKET] = {"socket", "socket", NULL, NULL, NULL},
	[RFILE_MEMFD] = {"memfd", "memfd", runlinked_plan, runlinked_make, runlinked_settle},
	[RFILE_EVENTFD] = {"eventfd", "eventfd", reventfd_plan, reventfd_make, NULL},
	[RFILE_EPOLL] = {"epoll", "epoll", repoll_plan, repoll_make, repoll_settle},
	[RFILE_TIMERFD] = {"timerfd", "timerfd", rtimerfd_plan, rtimerfd_make, NULL},
	[RFILE_SIGNALFD] = {"signalfd", "signalfd", rsignalfd_plan, rsignalfd_make, NULL},
	[RFILE_INOTIFY] = {"inotify", "inotify", rinotify_plan, rinotify_make, rinotify_settle},
	[RFILE_PIDFD] = {"pidfd", "pidfd", rpidfd_plan, rpidfd_make, NULL},
	[RFILE_NAMESPACE] = {"namespace", NULL, rnamespace_plan, rnamespace_make, NULL},
	[RFILE_SYMLINK] = {"symlink", NULL, rpath_plan, rpath_make, NULL},
	[RFILE_OTHER] = {"other", NULL, NULL, NULL, NULL},
};

static int out_of_memory(struct usnap_err *err)
{
	return usnap_fail_errno(err, -ENOMEM, "cannot restore the descriptors");
}

int rfile_problem(struct restore *r, struct usnap_err *err, enum restore_severity severity,
		  const char *kind, const char *fmt, ...)
{
	cleanup_free char *text = NULL;
	va_list ap;

	va_start(ap, fmt);
	int n = vasprintf(&text, fmt, ap);
	va_end(ap);
	if (n < 0) {
		text = NULL;
		return out_of_memory(err);
	}
	return restore_problem(r, severity, kind, "%s", text) < 0 ? out_of_memory(err) : 0;
}

int rfile_fail(struct usnap_err *err, int code, const struct rdesc *d, const char *verb)
{
	const char *path = d->redirect ? d->redirect : d->path;

	usnap_fail_errno(err, code, "cannot %s '%s' as descriptor %d", verb,
			 *path ? path : rfile_ops[d->kind].name, d->fd);
	return usnap_hint(err, "--fd %d=PATH opens another file in its place", d->fd);
}

/* ---- redirections ------------------------------------------------------------ */

/* A number of a description becomes one of another one, which is something else. */
static int split(struct rfiles *f, struct rslot *s, enum rfile_how how, const char *path, int own,
		 struct usnap_err *err)
{
	const struct rdesc *from = &f->descs[s->desc];

	/* Numbers that shared an offset and go to the same file share one again. */
	for (size_t i = 0; i < f->nr_descs; i++) {
		const struct rdesc *d = &f->descs[i];

		if (d->id == from->id && d->how == how &&
		    (how == RFILE_REDIRECTED ? !strcmp(d->redirect, path) : d->own == own)) {
			s->desc = i;
			return 0;
		}
	}
	struct rdesc *d = &f->descs[f->nr_descs];
	*d = *from;
	d->state = NULL;
	d->how = how;
	d->redirect = path;
	d->own = own;
	d->fd = s->fd;
	d->path = strdup(from->path);
	if (!d->path)
		return out_of_memory(err);
	s->desc = f->nr_descs++;
	return 0;
}

static int redirect(struct restore *r, struct usnap_err *err)
{
	struct rfiles *f = r->files;

	for (size_t i = 0; i < r->o->nr_fds; i++) {
		const struct restore_fd *o = &r->o->fds[i];
		struct rslot *s = (struct rslot *)rfiles_slot(f, o->fd);
		int ret;

		if (!s)
			return usnap_fail(err, -ENOENT,
					  "cannot redirect descriptor %d: the process had no "
					  "such descriptor",
					  o->fd);
		if (!o->path && fcntl(o->fd, F_GETFD) < 0) {
			usnap_fail(err, -EBADF, "cannot pass on descriptor %d: it is not open here",
				   o->fd);
			return usnap_hint(err, "for a shell: %d<FILE or %d>FILE", o->fd, o->fd);
		}
		ret = split(f, s, o->path ? RFILE_REDIRECTED : RFILE_INHERITED, o->path,
			    o->path ? -1 : o->fd, err);
		if (ret < 0)
			return ret;
	}
	return 0;
}

/* Descriptions all of whose numbers went elsewhere are not made. */
static int drop_unused(struct rfiles *f, struct usnap_err *err)
{
	cleanup_free size_t *moved = calloc(f->nr_descs + 1, sizeof(*moved));
	size_t kept = 0;

	if (!moved)
		return out_of_memory(err);
	for (size_t i = 0; i < f->nr_descs; i++)
		f->descs[i].fd = -1;
	for (size_t i = f->nr_slots; i-- > 0;)
		f->descs[f->slots[i].desc].fd = f->slots[i].fd;
	for (size_t i = 0; i < f->nr_descs; i++) {
		moved[i] = kept;
		if (f->descs[i].fd < 0) {
			free(f->descs[i].path);
			continue;
		}
		f->descs[kept++] = f->descs[i];
	}
	f->nr_descs = kept;
	for (size_t i = 0; i < f->nr_slots; i++)
		f->slots[i].desc = moved[f->slots[i].desc];
	return 0;
}

/* ---- what lies outside ---------------------------------------------------------- */

static bool same_thing(const struct rdesc *a, const struct rdesc *b)
{
	if (a->kind != b->kind || !a->has_stat || !b->has_stat)
		return false;
	if (a->kind == RFILE_CHAR)
		return a->rdev_major == b->rdev_major && a->rdev_minor == b->rdev_minor;
	return a->inode == b->inode && a->dev_major == b->dev_major && a->dev_minor == b->dev_minor;
}

/* May the restorer's own descriptor stand for one of the process? Whoever reads a pipe waits for
 * its end, and is not to wait for a process that goes its own way. */
static bool may_inherit(const struct rfiles *f, int fd)
{
	struct stat st;

	return fstat(fd, &st) == 0 &&
	       !(f->detached && (S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode)));
}

/* The number 0 to 2 of the restorer that stands for d; -1: none. */
static int own_number(const struct rfiles *f, const struct rdesc *d)
{
	int own = -1;

	for (int fd = 0; fd <= 2; fd++) {
		const struct rslot *s = rfiles_slot(f, fd);
		const struct rdesc *e = s ? &f->descs[s->desc] : NULL;

		if (e && same_thing(d, e) && e->how != RFILE_REDIRECTED &&
		    (e->how == RFILE_MADE || e->own == fd) && may_inherit(f, fd) &&
		    (own < 0 || d->kind != RFILE_CHAR) && rdesc_writes(d) == rdesc_writes(e))
			own = fd;
	}
	return own;
}

/* d, whose other end others held: numbers 0 to 2 are the restorer's own, and so are other numbers
 * of the same thing; the rest gets the terminal or nothing. */
static int replace_outside(struct rfiles *f, size_t desc, struct usnap_err *err)
{
	int own = own_number(f, &f->descs[desc]), ret = 0;

	for (int fd = 0; fd <= 2 && ret == 0; fd++) {
		struct rslot *s = (struct rslot *)rfiles_slot(f, fd);

		if (s && s->desc == desc && may_inherit(f, fd))
			ret = split(f, s, RFILE_INHERITED, NULL, fd, err);
	}
	struct rdesc *d = &f->descs[desc];
	if (own < 0 && d->kind == RFILE_CHAR)
		own = f->tty;
	d->how = own >= 0 ? RFILE_INHERITED : RFILE_NULL;
	d->own = own;
	return ret;
}

static bool pipe_lies_outside(const struct rdesc *d)
{
	bool reads = false, writes = false, closed = false;

	if (d->kind != RFILE_PIPE)
		return false;
	for (size_t i = 0; d->node && i < d->node->n; i++) {
		reads |= rdesc_reads(d->node->d[i]);
		writes |= rdesc_writes(d->node->d[i]);
		closed |= json_is_true(json_object_get(d->node->d[i]->more, "closed"));
	}
	return !closed && (!reads || !writes);
}

static bool has_socket(const struct rfiles *f, uint64_t inode)
{
	for (size_t i = 0; i < f->nr_descs; i++)
		if (f->descs[i].kind == RFILE_SOCKET && f->descs[i].inode == inode)
			return true;
	return false;
}

static bool is_standard(const struct rfiles *f, const struct rdesc *d)
{
	for (int fd = 0; fd <= 2; fd++) {
		const struct rslot *s = rfiles_slot(f, fd);

		if (s && same_thing(d, &f->descs[s->desc]))
			return true;
	}
	return false;
}

/* A connection that is a standard descriptor: to the journal, to an inetd. It leads to whoever started
 * the process, as a pipe there does. Others are what the process talks through, and closed. */
static bool socket_lies_outside(const struct rfiles *f, const struct rdesc *d)
{
	const char *type = json_string_value(json_object_get(d->more, "type"));

	return d->kind == RFILE_SOCKET && type && strcmp(type, "dgram") != 0 &&
	       json_is_true(json_object_get(d->more, "connected")) && is_standard(f, d) &&
	       !has_socket(f, (uint64_t)json_integer_value(json_object_get(d->more, "peer_inode")));
}

static bool is_own_file(const struct rdesc *d, int fd)
{
	struct stat st;

	return fstat(fd, &st) == 0 && st.st_ino == d->inode && major(st.st_dev) == d->dev_major &&
	       minor(st.st_dev) == d->dev_minor;
}

/* A log: what was written since T0, by the process, by whoever restores it or by what rotates it, stays.
 * What it reads is another matter: it goes on where it was, or not at all. */
static int keep_output(struct restore *r, size_t desc, struct usnap_err *err)
{
	struct rfiles *f = r->files;
	const struct rdesc *d = &f->descs[desc];
	int own = -1, ret = 0;

	if (!r->o->own_output || d->kind != RFILE_REGULAR || d->deleted || !rdesc_writes(d))
		return 0;
	bool lost = !rpath_is_as_it_was(d);
	for (int fd = 0; fd <= 2 && ret == 0; fd++) {
		struct rslot *s = (struct rslot *)rfiles_slot(f, fd);

		if (!s || s->desc != desc || !may_inherit(f, fd) ||
		    (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDONLY || !(lost || is_own_file(d, fd)))
			continue;
		if (lost && !is_own_file(d, fd))
			ret = rfile_problem(r, err, RESTORE_NOTE, "changed-file",
					    "fd %d: '%s' is not as it was, and not written to", fd,
					    d->path);
		if (ret == 0)
			ret = split(f, s, RFILE_INHERITED, NULL, fd, err);
		if (own < 0)
			own = fd;
	}
	if (own < 0)
		return 0;
	/* Its other numbers have the same offset. */
	f->descs[desc].how = RFILE_INHERITED;
	f->descs[desc].own = own;
	return ret;
}

static int replace_all_outside(struct restore *r, struct usnap_err *err)
{
	struct rfiles *f = r->files;
	size_t n = f->nr_descs;
	int ret = 0;

	for (size_t i = 0; i < n && ret == 0; i++) {
		const struct rdesc *d = &f->descs[i];

		if (d->how == RFILE_MADE &&
		    (pipe_lies_outside(d) || rtty_lies_outside(f, d) || socket_lies_outside(f, d)))
			ret = replace_outside(f, i, err);
		else if (d->how == RFILE_MADE)
			ret = keep_output(r, i, err);
	}
	return ret;
}

/* ---- nodes -------------------------------------------------------------------- */

static int compare_inodes(const struct rdesc *x, const struct rdesc *y)
{
	if (x->dev_major != y->dev_major)
		return x->dev_major < y->dev_major ? -1 : 1;
	if (x->dev_minor != y->dev_minor)
		return x->dev_minor < y->dev_minor ? -1 : 1;
	if (x->inode != y->inode)
		return x->inode < y->inode ? -1 : 1;
	return 0;
}

static int by_inode(const void *a, const void *b)
{
	const struct rdesc *x = *(struct rdesc *const *)a, *y = *(struct rdesc *const *)b;
	int c = compare_inodes(x, y);

	return c ? c : (x->fd > y->fd) - (x->fd < y->fd);
}

/* Called twice: what is redirected belongs to no node. */
static int build_nodes(struct rfiles *f, struct usnap_err *err)
{
	free(f->order);
	free(f->nodes);
	f->nr_nodes = 0;
	f->order = calloc(f->nr_descs + 1, sizeof(*f->order));
	f->nodes = calloc(f->nr_descs + 1, sizeof(*f->nodes));
	if (!f->order || !f->nodes)
		return out_of_memory(err);
	size_t n = 0;
	for (size_t i = 0; i < f->nr_descs; i++) {
		f->descs[i].node = NULL;
		if (f->descs[i].how == RFILE_MADE && f->descs[i].has_stat)
			f->order[n++] = &f->descs[i];
	}
	qsort(f->order, n, sizeof(*f->order), by_inode);
	for (size_t i = 0; i < n; i++) {
		if (!i || compare_inodes(f->order[i], f->order[i - 1]))
			f->nodes[f->nr_nodes++] =
				(struct rnode){.d = &f->order[i], .base = -1, .keep_fd = -1};
		f->nodes[f->nr_nodes - 1].n++;
		f->order[i]->node = &f->nodes[f->nr_nodes - 1];
	}
	return 0;
}

static int compare_node(const void *key, const void *node)
{
	return compare_inodes(key, ((const struct rnode *)node)->d[0]);
}

struct rnode *rfiles_node(const struct rfiles *f, uint32_t dev_major, uint32_t dev_minor,
			  uint64_t inode)
{
	struct rdesc key = {.dev_major = dev_major, .dev_minor = dev_minor, .inode = inode};

	return f->nr_nodes ? bsearch(&key, f->nodes, f->nr_nodes, sizeof(*f->nodes), compare_node)
			   : NULL;
}

/* ---- plan ------------------------------------------------------------------------ */

/* Without the privilege to raise it, the hard limit is the end. */
static int check_limit(struct restore *r, struct usnap_err *err)
{
	const struct rfiles *f = r->files;
	int highest = f->nr_slots ? f->slots[f->nr_slots - 1].fd : 0;
	struct rlimit rl;

	if (getrlimit(RLIMIT_NOFILE, &rl) < 0 || (rlim_t)highest < rl.rlim_max)
		return 0;
	if (rfiles_may_raise_limit(highest + 1))
		return 0;
	return rfile_problem(r, err, RESTORE_FATAL, "descriptor-limit",
			     "fd %d: this user may have no descriptor above %lld (ulimit -Hn)",
			     highest, (long long)rl.rlim_max - 1);
}

static int plan_description(struct restore *r, struct rdesc *d, struct usnap_err *err)
{
	switch (d->how) {
	case RFILE_REDIRECTED:
		return rpath_plan_redirect(r, d, err);
	case RFILE_INHERITED:
		return 0;
	case RFILE_NULL:
		if (d->kind != RFILE_CHAR)
			return 0; /* the image has a note for it */
		return rfile_problem(r, err, RESTORE_NOTE, "terminal",
				     "fd %d: %s was a terminal, and there is none here: /dev/null",
				     d->fd, d->path);
	case RFILE_MADE:
		break;
	}
	if (d->deleted && (d->kind == RFILE_REGULAR || d->kind == RFILE_DIRECTORY))
		return runlinked_plan(r, d, err);
	if (rfile_ops[d->kind].plan)
		return rfile_ops[d->kind].plan(r, d, err);
	if (d->kind != RFILE_SOCKET)
		d->how = RFILE_NULL; /* the image has a refusal for it */
	return 0;
}

static int plan(struct restore *r, struct usnap_err *err)
{
	struct rfiles *f = r->files;
	json_t *files;
	int ret;

	if ((ret = rjson_array(r->process, "files", MAX_FILES, &files, err)) < 0 ||
	    (ret = rjson_array(r->process, "unlinked", MAX_FILES, &f->unlinked, err)) < 0 ||
	    (ret = rjson_int_or(r->process, "pid", 0, INT32_MAX, r->pid, &f->image_pid, err)) < 0 ||
	    (ret = rfiles_group(r, files, err)) < 0 || (ret = redirect(r, err)) < 0)
		return ret;
	f->detached = r->o->detach;
	rtty_find_own(f, r->o->detach);
	if ((ret = drop_unused(f, err)) < 0 || (ret = build_nodes(f, err)) < 0 ||
	    (ret = replace_all_outside(r, err)) < 0 || (ret = drop_unused(f, err)) < 0 ||
	    (ret = build_nodes(f, err)) < 0 || (ret = runlinked_plan_all(r, err)) < 0 ||
	    (ret = check_limit(r, err)) < 0)
		return ret;
	for (size_t i = 0; i < f->nr_descs; i++)
		if ((ret = plan_description(r, &f->descs[i], err)) < 0)
			return ret;
	return rsockets_plan(&f->sockets, r, files, err);
}

int rfiles_plan(struct restore *r, struct usnap_err *err)
{
	r->files = calloc(1, sizeof(*r->files));
	if (!r->files)
		return out_of_memory(err);
	r->files->tty = -1;
	return plan(r, err);
}

void rfiles_free(struct rfiles *f)
{
	if (!f)
		return;
	rsockets_free(f->sockets);
	for (size_t i = 0; i < f->nr_descs; i++) {
		if (f->descs[i].kind == RFILE_INOTIFY)
			rinotify_forget(&f->descs[i]);
		free(f->descs[i].path);
		free(f->descs[i].state);
	}
	if (f->own_tty)
		close(f->tty);
	free(f->slots);
	free(f->descs);
	free(f->order);
	free(f->nodes);
	free(f->nameless);
	free(f->parked);
	free(f);
}

void rfiles_undo(struct restore *r)
{
	if (r->files && r->files->sockets)
		rsockets_undo(r->files->sockets, r);
}

bool rfiles_makes_files(const struct restore *r)
{
	return r->files && r->files->sockets && rsockets_make_files(r->files->sockets);
}

/* ---- asked by others --------------------------------------------------------------- */

int rfiles_find(const struct restore *r, uint32_t dev_major, uint32_t dev_minor, uint64_t inode,
		uint32_t prot)
{
	const struct rnode *n =
		r->files ? runlinked_find(r->files, dev_major, dev_minor, inode) : NULL;

	if (!n)
		return -1;
	if (n->keep_fd >= 0)
		return n->keep_fd;
	for (size_t i = 0; i < n->n; i++) {
		const struct rdesc *d = n->d[i];

		if ((d->kind == RFILE_MEMFD || (d->kind == RFILE_REGULAR && d->deleted)) &&
		    d->how == RFILE_MADE && !(d->flags & O_PATH) && rdesc_reads(d) &&
		    (!(prot & PROT_WRITE) || rdesc_writes(d)))
			return d->fd;
	}
	return -1;
}

void rfiles_describe(const struct restore *r, json_t *o)
{
	static const char *const hows[] = {"made", "redirected", "inherited", "null"};
	const struct rfiles *f = r->files;
	json_t *list = json_array();

	for (size_t i = 0; f && i < f->nr_slots; i++) {
		const struct rdesc *d = &f->descs[f->slots[i].desc];
		const char *path = d->redirect ? d->redirect : d->path;
		json_t *e = json_pack("{s:i,s:s,s:s,s:s%}", "fd", f->slots[i].fd, "type",
				      rfile_ops[d->kind].name, "how", hows[d->how], "path", path,
				      strlen(path));

		if (!e) /* not UTF-8 */
			e = json_pack("{s:i,s:s,s:s}", "fd", f->slots[i].fd, "type",
				      rfile_ops[d->kind].name, "how", hows[d->how]);
		if (d->how == RFILE_INHERITED)
			json_object_set_new(e, "from", json_integer(d->own));
		if (f->slots[i].fd != d->fd)
			json_object_set_new(e, "shares", json_integer(d->fd));
		json_array_append_new(list, e);
	}
	json_object_set_new(o, "files", list);
}

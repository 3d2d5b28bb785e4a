/*
 * What the files of the descriptors' part share; rfiles.h has its face.
 *
 *	rfiles.c           the plan: what becomes of each description; described
 *	rfiles_parse.c     files[] of process.json
 *	rfiles_build.c     in the builder: everything made, then put at its number
 *	rfiles_path.c      what has a name: files, directories, device nodes
 *	rfiles_pipe.c      pipes and FIFOs
 *	rfiles_event.c     eventfd, timerfd, signalfd, pidfd, namespaces
 *	rfiles_epoll.c     epoll sets
 *	rfiles_inotify.c   inotify watches
 *	rfiles_unlinked.c  memfds and files that have no name any more
 *	rfiles_tty.c       terminals
 *	rfiles_locks.c     file locks and leases
 *	rfiles_finish.c    by remote calls: what must come last
 *
 * DESIGN. What is made is an open file description; descriptors are numbers
 * of it. In the builder each description is made at a number that no
 * descriptor of the process has (it is parked), while all that the builder
 * came with is still open. Then the rest is closed, the parked ones are
 * duplicated to their numbers and closed in turn. What refers to numbers
 * (epoll sets) is filled in after that.
 *
 * Descriptions of the same inode whose inode is made anew (a pipe, a memfd)
 * belong to one node: the first that is asked for makes it, the others open
 * it through /proc/self/fd.
 */
#ifndef USNAP_RESTORE_RFILES_INTERNAL_H
#define USNAP_RESTORE_RFILES_INTERNAL_H

#include <sys/types.h>

#include "restore/rfiles.h"
#include "restore/rsockets.h"

enum rfile_kind {
	RFILE_REGULAR,
	RFILE_DIRECTORY,
	RFILE_PIPE,
	RFILE_FIFO,
	RFILE_CHAR,
	RFILE_BLOCK,
	RFILE_SOCKET,
	RFILE_MEMFD,
	RFILE_EVENTFD,
	RFILE_EPOLL,
	RFILE_TIMERFD,
	RFILE_SIGNALFD,
	RFILE_INOTIFY,
	RFILE_PIDFD,
	RFILE_NAMESPACE,
	RFILE_SYMLINK,
	RFILE_OTHER, /* no way to make it: refused by the image, unless ignored */
	RFILE_NR_KINDS
};

enum rfile_how {
	RFILE_MADE, /* as recorded */
	RFILE_REDIRECTED, /* a path that the user names */
	RFILE_INHERITED, /* a descriptor of the restorer */
	RFILE_NULL, /* /dev/null in its place */
};

struct rnode;

/* An open file description. */
struct rdesc {
	int64_t id; /* "description" of process.json */
	enum rfile_kind kind;
	enum rfile_how how;
	int fd; /* the lowest of its numbers */
	const json_t *o; /* files[] of that number */
	const json_t *more; /* what its kind adds there; may be NULL */
	char *path; /* "" when there is none; without " (deleted)" */
	const char *redirect; /* RFILE_REDIRECTED */
	int own; /* RFILE_INHERITED: number in the restorer */
	int flags; /* O_*, those that open(2) may be given again */
	bool async; /* O_ASYNC */
	int64_t offset;
	bool has_stat, deleted;
	uint32_t dev_major, dev_minor, rdev_major, rdev_minor, mode;
	uint64_t inode;
	int64_t size, mtime_ns;
	struct rnode *node; /* NULL without has_stat */
	void *state; /* of its kind; free(3) frees it */
	int parked; /* in the builder */
};

/* All descriptions of one inode. */
struct rnode {
	struct rdesc **d; /* n of rfiles.order */
	size_t n;
	int base; /* in the builder: reads and writes it, parked; -1: not made */
	/* The number at which base stays until rfiles_finish(), for mappings; -1: none. */
	int keep_fd;
	bool held; /* a FIFO that others have open */
	const json_t *unlinked; /* of unlinked[]; may be NULL */
	uint32_t map_major, map_minor; /* with unlinked: as in maps[] */
	uint64_t map_inode;
};

/* A number of the process. */
struct rslot {
	int fd;
	bool cloexec;
	size_t desc;
};

struct rfiles {
	struct rslot *slots; /* ascending */
	size_t nr_slots;
	struct rdesc *descs;
	size_t nr_descs;
	struct rdesc **order; /* by inode */
	struct rnode *nodes; /* ascending by device and inode */
	size_t nr_nodes;
	struct rnode **nameless; /* those in unlinked[] */
	size_t nr_nameless;
	struct rsockets *sockets;
	json_t *unlinked; /* unlinked[]; may be NULL */
	int tty; /* the restorer's terminal, or -1 */
	bool own_tty; /* opened here: to be closed */
	bool foreground; /* the restorer may set the terminal's modes */
	bool detached;
	int64_t image_pid; /* of the process as the snapshotter saw it */

	int keep_from, nr_keep; /* numbers that nodes keep for a while: rnode.keep_fd */

	/* in the builder */
	int park_from;
	int *parked; /* numbers */
	size_t nr_parked, parked_room;
};

/* What is done for a kind; NULL: nothing. */
struct rfile_ops {
	const char *name; /* "type" of process.json */
	const char *member; /* the object with what the kind adds */
	int (*plan)(struct restore *r, struct rdesc *d, struct usnap_err *err);
	/* In the builder; *ret_fd any number, the caller's. */
	int (*make)(struct restore *r, struct rdesc *d, int *ret_fd, struct usnap_err *err);
	/* In the builder, when every number is what it will be. */
	int (*settle)(struct restore *r, struct rdesc *d, struct usnap_err *err);
};

extern const struct rfile_ops rfile_ops[RFILE_NR_KINDS];

/* ---- rfiles.c ---- */

/* Parses files[] into slots and descs: rfiles_parse.c. */
int rfiles_group(struct restore *r, const json_t *files, struct usnap_err *err);
/* The slot of a number, or NULL. */
const struct rslot *rfiles_slot(const struct rfiles *f, int fd);
/* The node of an inode, or NULL. */
struct rnode *rfiles_node(const struct rfiles *f, uint32_t dev_major, uint32_t dev_minor,
			  uint64_t inode);
/* "fe:00" (base 16) or "136:2" (base 10); 0, 0 when missing. */
int rfile_parse_dev(const json_t *o, const char *key, int base, uint32_t *ret_major,
		    uint32_t *ret_minor, struct usnap_err *err);
/* Adds a problem; out of memory is the only failure. */
int rfile_problem(struct restore *r, struct usnap_err *err, enum restore_severity severity,
		  const char *kind, const char *fmt, ...) __attribute__((format(printf, 5, 6)));
/* "cannot <verb> descriptor N ('path'): <words for code>", with a hint. */
int rfile_fail(struct usnap_err *err, int code, const struct rdesc *d, const char *verb);

static inline bool rdesc_reads(const struct rdesc *d)
{
	return (d->flags & 3) != 1;
}

static inline bool rdesc_writes(const struct rdesc *d)
{
	return (d->flags & 3) == 1 || (d->flags & 3) == 2;
}

/* ---- rfiles_build.c ---- */

/* Moves *fd to a number that no descriptor of the process has; *fd is closed when it fails. */
int rfiles_park(struct rfiles *f, int *fd);
/* As rfiles_park(), of what was made for d: sets d->parked. fd is closed when it fails. */
int rfiles_park_description(struct rfiles *f, struct rdesc *d, int fd);
/* Opens the file behind a descriptor once more: an open file description of its own. */
int rfile_reopen(int fd, int flags);
/* As fcntl(F_SETFL), only when there is something to change. */
int rfile_set_flags(int fd, int flags);

/* Whether the limit can be raised so that there are this many numbers. */
bool rfiles_may_raise_limit(int nr);

/* ---- one per kind ---- */

int rpath_plan(struct restore *r, struct rdesc *d, struct usnap_err *err);
/* Nothing that rpath_plan() would find amiss. */
bool rpath_is_as_it_was(const struct rdesc *d);
int rpath_make(struct restore *r, struct rdesc *d, int *ret_fd, struct usnap_err *err);
int rpath_plan_redirect(struct restore *r, struct rdesc *d, struct usnap_err *err);
int rpath_make_redirect(struct rdesc *d, int *ret_fd, struct usnap_err *err);

int rpipe_plan(struct restore *r, struct rdesc *d, struct usnap_err *err);
int rpipe_make(struct restore *r, struct rdesc *d, int *ret_fd, struct usnap_err *err);
int rfifo_plan(struct restore *r, struct rdesc *d, struct usnap_err *err);
int rfifo_make(struct restore *r, struct rdesc *d, int *ret_fd, struct usnap_err *err);

int reventfd_plan(struct restore *r, struct rdesc *d, struct usnap_err *err);
int reventfd_make(struct restore *r, struct rdesc *d, int *ret_fd, struct usnap_err *err);
int rtimerfd_plan(struct restore *r, struct rdesc *d, struct usnap_err *err);
int rtimerfd_make(struct restore *r, struct rdesc *d, int *ret_fd, struct usnap_err *err);
int rsignalfd_plan(struct restore *r, struct rdesc *d, struct usnap_err *err);
int rsignalfd_make(struct restore *r, struct rdesc *d, int *ret_fd, struct usnap_err *err);
int rpidfd_plan(struct restore *r, struct rdesc *d, struct usnap_err *err);
int rpidfd_make(struct restore *r, struct rdesc *d, int *ret_fd, struct usnap_err *err);
int rnamespace_plan(struct restore *r, struct rdesc *d, struct usnap_err *err);
int rnamespace_make(struct restore *r, struct rdesc *d, int *ret_fd, struct usnap_err *err);

int repoll_plan(struct restore *r, struct rdesc *d, struct usnap_err *err);
int repoll_make(struct restore *r, struct rdesc *d, int *ret_fd, struct usnap_err *err);
int repoll_settle(struct restore *r, struct rdesc *d, struct usnap_err *err);

int rinotify_plan(struct restore *r, struct rdesc *d, struct usnap_err *err);
int rinotify_make(struct restore *r, struct rdesc *d, int *ret_fd, struct usnap_err *err);
int rinotify_settle(struct restore *r, struct rdesc *d, struct usnap_err *err);
/* What d->state refers to. */
void rinotify_forget(struct rdesc *d);

/* Finds the elements of unlinked[]. */
int runlinked_plan_all(struct restore *r, struct usnap_err *err);
/* The node of such a file that maps[] names so, or NULL. */
struct rnode *runlinked_find(const struct rfiles *f, uint32_t dev_major, uint32_t dev_minor,
			     uint64_t inode);
int runlinked_plan(struct restore *r, struct rdesc *d, struct usnap_err *err);
int runlinked_make(struct restore *r, struct rdesc *d, int *ret_fd, struct usnap_err *err);
int runlinked_settle(struct restore *r, struct rdesc *d, struct usnap_err *err);

/* Character devices: terminals here, others by rpath. */
int rtty_plan(struct restore *r, struct rdesc *d, struct usnap_err *err);
int rtty_settle(struct restore *r, struct rdesc *d, struct usnap_err *err);
/* The terminal of the restorer. */
void rtty_find_own(struct rfiles *f, bool detach);
/* Whether it was a terminal whose other end is not in the process. */
bool rtty_lies_outside(const struct rfiles *f, const struct rdesc *d);
int rtty_make(struct restore *r, struct rdesc *d, int *ret_fd, struct usnap_err *err);

/* ---- remote calls, collected: rfiles_finish.c ---- */

struct finish;

/* Adds a call about d; what: "cannot <what> 'path' as descriptor N". Runs what has been collected
 * when there is no more room. */
int finish_add(struct finish *f, const struct rdesc *d, const char *what, long nr, uint64_t a0,
	       uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5);
/* As finish_add(); that it fails is no matter. */
int finish_try(struct finish *f, const struct rdesc *d, long nr, uint64_t a0, uint64_t a1,
	       uint64_t a2);
/* These bytes in the process, for the few calls that are added next. */
uint64_t finish_data(struct finish *f, const void *data, size_t len);
struct restore *finish_restore(const struct finish *f);
struct usnap_err *finish_error(const struct finish *f);

int rtimerfd_finish(struct finish *f, const struct rdesc *d);
int runlinked_finish(struct finish *f, const struct rnode *n);
int rtty_finish(struct finish *f, const struct rdesc *d);
int rlocks_finish(struct finish *f);

#endif

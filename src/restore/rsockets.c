/*
 * The order in which sockets are made, and their undoing;
 * rsockets_internal.h has the design.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/util.h"
#include "restore/rsockets_internal.h"

int rsock_hold(const struct rsockets *s, int *fd)
{
	int high = fcntl(*fd, F_DUPFD_CLOEXEC, s->hold_from);

	if (high < 0)
		return -errno;
	close(*fd);
	*fd = high;
	return 0;
}

/* ---- somebody else ---------------------------------------------------------- */

/* The system calls: libc's functions would tell threads that are none of the
 * builder's. */
static int set_effective(uid_t uid, gid_t gid, bool group_first)
{
	const uid_t keep = (uid_t)-1;

	if (group_first && syscall(SYS_setresgid, keep, gid, keep) < 0)
		return -errno;
	if (syscall(SYS_setresuid, keep, uid, keep) < 0)
		return -errno;
	if (!group_first && syscall(SYS_setresgid, keep, gid, keep) < 0)
		return -errno;
	return 0;
}

struct rsock_identity rsock_become(const struct rsockets *s)
{
	struct rsock_identity id = {false, geteuid(), getegid(), getppid()};

	if (!s->has_creds || (id.euid == s->euid && id.egid == s->egid))
		return id;
	/* Without the privilege it is ours; so is the process then. */
	id.changed = set_effective(s->euid, s->egid, true) == 0;
	if (!id.changed)
		(void)!set_effective(id.euid, id.egid, false);
	return id;
}

void rsock_unbecome(const struct rsock_identity *id)
{
	if (!id->changed)
		return;
	if (set_effective(id->euid, id->egid, false) < 0)
		_exit(1);
	/* The change of credentials has reset both (commit_creds() in kernel/cred.c). */
	prctl(PR_SET_DUMPABLE, 1);
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != id->parent)
		_exit(1);
}

/* ---- making ------------------------------------------------------------------ */

static int compare_description(const void *key, const void *x)
{
	int64_t a = *(const int64_t *)key, b = ((const struct rsocket *)x)->description;

	return (a > b) - (a < b);
}

static struct rsocket *find(const struct rsockets *s, int64_t description)
{
	if (!s || !s->n)
		return NULL;
	return bsearch(&description, s->v, s->n, sizeof(*s->v), compare_description);
}

static int make(struct rsockets *s, struct rsocket *x, int *ret_fd, struct usnap_err *err)
{
	if (x->kind == RSOCK_UNKNOWN)
		return rsock_closed_make(s, x, ret_fd, err);
	switch (x->family) {
	case AF_UNIX:
		return rsock_unix_make(s, x, ret_fd, err);
	case AF_NETLINK:
		return rsock_netlink_make(x, ret_fd, err);
	default:
		return x->kind == RSOCK_BOUND ? rsock_inet_make(s, x, false, ret_fd, err)
					      : rsock_closed_make(s, x, ret_fd, err);
	}
}

int rsockets_make(struct rsockets *s, struct restore *r, int64_t description, int *ret_fd,
		  struct usnap_err *err)
{
	struct rsocket *x = find(s, description);

	if (!x || x->asked)
		return usnap_fail(err, -EBADMSG,
				  "cannot restore: description %lld of process.json is no socket",
				  (long long)description);
	x->asked = true;
	if (x->held >= 0) {
		*ret_fd = take_fd(&x->held);
		return 0;
	}
	return make(s, x, ret_fd, err);
}

int rsockets_made(struct rsockets *s, struct restore *r, struct usnap_err *err)
{
	int ret = 0;

	for (size_t i = 0; i < s->n && ret == 0; i++)
		if (s->v[i].asked && s->v[i].held >= 0)
			ret = rsock_queue_deliver(s, &s->v[i], err);
	for (size_t i = 0; i < s->n && ret == 0; i++)
		if (s->v[i].asked && s->v[i].held >= 0)
			ret = rsock_unix_connect(s, &s->v[i], err);
	for (size_t i = 0; i < s->n; i++)
		if (s->v[i].held >= 0)
			close(take_fd(&s->v[i].held));
	rsock_closed_end(s);
	return ret;
}

/* ---- the end ------------------------------------------------------------------ */

void rsockets_undo(struct rsockets *s, struct restore *r)
{
	for (size_t i = 0; s && i < s->n; i++)
		if (s->v[i].path)
			rsock_path_undo(&s->v[i]);
}

bool rsockets_make_files(const struct rsockets *s)
{
	for (size_t i = 0; i < s->n; i++)
		if (s->v[i].path)
			return true;
	return false;
}

static void free_socket(struct rsocket *x)
{
	free(x->data);
	for (size_t i = 0; i < x->nr_messages; i++)
		free(x->messages[i].data);
	free(x->messages);
	free(x->groups);
	free(x->path);
}

void rsockets_free(struct rsockets *s)
{
	if (!s)
		return;
	for (size_t i = 0; i < s->n; i++)
		free_socket(&s->v[i]);
	if (s->undo)
		munmap(s->undo, MAX(s->n, (size_t)1) * sizeof(*s->undo));
	free(s->v);
	free(s->root);
	free(s->cwd);
	free(s);
}

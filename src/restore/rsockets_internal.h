/*
 * What the files of the sockets' part share; rsockets.h has its face.
 *
 *	rsockets.c          order of things: what is made when, and undone
 *	rsockets_plan.c     files[] listed and checked, ends of pairs found
 *	rsockets_parse.c    one of them parsed
 *	rsockets_options.c  options
 *	rsockets_inet.c     IPv4, IPv6, netlink
 *	rsockets_closed.c   connections whose peer is gone
 *	rsockets_unix.c     Unix sockets: pairs, and what has no name
 *	rsockets_path.c     Unix sockets in the file system
 *	rsockets_queue.c    what waits in a Unix socket
 *
 * DESIGN. A socket is made whole when it is first asked for, with its other
 * end when the process has that too. Two things wait until all are there:
 * datagrams in sockets that are no pair, whose senders may be others of the
 * process, and connecting datagram sockets to each other, since a connected
 * one takes from its peer only.
 *
 * What must outlive a call is held at numbers above all of the process.
 */
#ifndef USNAP_RESTORE_RSOCKETS_INTERNAL_H
#define USNAP_RESTORE_RSOCKETS_INTERNAL_H

#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/un.h>

#include "process/sockopts.h"
#include "restore/rsockets.h"

/* What a queue of one socket can hold in an image. */
enum {
	RSOCK_QUEUE_MAX = 1 << 20,
	RSOCK_MESSAGES_MAX = 4096
};

enum rsock_kind {
	RSOCK_BOUND, /* on its own: listening, bound, or neither */
	RSOCK_PAIR, /* the process has the other end too */
	RSOCK_GONE, /* it had a peer, which is gone */
	RSOCK_REFUSED, /* it was connecting: nobody is there */
	RSOCK_UNKNOWN, /* nothing can be made of it; only when told to ignore that */
};

struct rsock_address {
	struct sockaddr_storage ss;
	socklen_t len; /* 0: none */
};

struct rsock_message {
	unsigned char *data;
	size_t len;
	struct rsock_address from;
	bool has_cred;
	struct ucred cred; /* pid: as the snapshotter saw it */
};

/* Changes to the file system, shared by restorer and builder. */
struct rsock_undo {
	bool bound; /* path is ours */
	uint64_t dev, inode; /* of path as bound */
	bool replaced; /* path was a socket that nobody listened on: */
	mode_t mode;
	uid_t uid;
	gid_t gid;
};

struct rsocket {
	int64_t description;
	int fd; /* the first number that it has, for messages */
	uint64_t inode, peer_inode; /* 0: not known */
	enum rsock_kind kind;
	bool wanted; /* some number of it is not redirected */
	int family, type, protocol;
	bool listening, connected;
	int backlog;
	struct rsock_address local, peer;
	bool mapped; /* of a connection: AF_INET6 with IPv4 addresses */
	uint64_t has_option; /* bits by index into sockopts[] */
	int options[SOCKOPTS_MAX];
	bool linger;
	int linger_s;
	int64_t rcvtimeo_us, sndtimeo_us;
	char device[16], congestion[16];
	bool shut_read, shut_write;
	unsigned char *data; /* a stream's */
	size_t data_len;
	struct rsock_message *messages;
	size_t nr_messages;
	unsigned char *groups; /* of netlink: little-endian words */
	size_t groups_len;

	char *path; /* in the file system, as seen from here; NULL: none */
	bool has_file; /* mode, uid, gid are known */
	bool nameless; /* the name was removed, or given to something else */
	mode_t mode;
	uid_t uid;
	gid_t gid;
	struct rsock_undo *undo; /* with path */

	struct rsocket *other; /* RSOCK_PAIR */
	struct rsocket *listener; /* RSOCK_PAIR: accepted from it */
	bool accepts; /* it is the listener of some */
	int held; /* in the builder: made, kept for later; -1 */
	bool asked; /* handed out */
	char text[192]; /* for messages: "TCP 127.0.0.1:80" */
};

struct rsockets {
	struct rsocket *v;
	size_t n;
	int hold_from; /* numbers from here on are free */
	char *root, *cwd; /* of the process, as seen from here; root NULL: as here */
	mode_t umask;
	uid_t uid, euid;
	gid_t gid, egid;
	bool has_creds;
	int64_t image_pid; /* of the process, as the snapshotter saw it */
	struct rsock_undo *undo; /* one for each of v */
	int listener[3]; /* rsockets_closed.c: by kind of address, or -1 */
};

/* ---- rsockets.c ---- */

/* Moves *fd above the numbers of the process. 0 or -errno. */
int rsock_hold(const struct rsockets *s, int *fd);
/* As the process for a moment: who makes a Unix socket is what SO_PEERCRED tells. */
struct rsock_identity {
	bool changed;
	uid_t euid;
	gid_t egid;
	pid_t parent;
};
struct rsock_identity rsock_become(const struct rsockets *s);
void rsock_unbecome(const struct rsock_identity *id);

/* ---- rsockets_parse.c ---- */

/* Into x, whose numbers are there already. o: files[].socket */
int rsock_parse(const struct rsockets *s, struct rsocket *x, const json_t *o,
		struct usnap_err *err);
void rsock_describe(struct rsocket *x);

/* ---- rsockets_options.c ---- */

int rsock_options_parse(struct rsocket *x, const json_t *o, struct usnap_err *err);
/* Before the address; after it; when the queue is filled. */
int rsock_options_early(const struct rsocket *x, int fd, struct usnap_err *err);
int rsock_options_rest(const struct rsocket *x, int fd, struct usnap_err *err);
int rsock_options_last(const struct rsocket *x, int fd, struct usnap_err *err);

/* ---- rsockets_inet.c ---- */

/* trial: made but for listening and connecting, to see whether it can be. */
int rsock_inet_make(const struct rsockets *s, const struct rsocket *x, bool trial, int *ret_fd,
		    struct usnap_err *err);
int rsock_netlink_make(const struct rsocket *x, int *ret_fd, struct usnap_err *err);
int rsock_bind_failed(const struct rsocket *x, int code, struct usnap_err *err);

/* ---- rsockets_closed.c ---- */

int rsock_closed_make(struct rsockets *s, const struct rsocket *x, int *ret_fd,
		      struct usnap_err *err);
void rsock_closed_end(struct rsockets *s);

/* ---- rsockets_unix.c ---- */

int rsock_unix_make(struct rsockets *s, struct rsocket *x, int *ret_fd, struct usnap_err *err);
int rsock_unix_connect(const struct rsockets *s, const struct rsocket *x, struct usnap_err *err);

/* ---- rsockets_path.c ---- */

/* Whether the address can be had: nobody listens, and the directory is there. */
int rsock_path_check(const struct rsocket *x, struct usnap_err *err);
int rsock_path_bind(const struct rsockets *s, struct rsocket *x, int fd, struct usnap_err *err);
/* bind(2), connect(2) or sendto(2) as the process: with its root and working directory. */
struct rsock_place {
	int root, cwd;
};
int rsock_enter(const struct rsockets *s, const struct rsock_address *a, struct rsock_place *ret);
void rsock_leave(struct rsock_place *p);
void rsock_path_undo(const struct rsocket *x);

/* ---- rsockets_queue.c ---- */

/* Writes what waits in x into fd, its other end or a socket that may send to it. */
int rsock_queue_fill(const struct rsockets *s, const struct rsocket *x, int fd,
		     struct usnap_err *err);
/* The datagrams of a socket that is no pair. */
int rsock_queue_deliver(const struct rsockets *s, const struct rsocket *x, struct usnap_err *err);

#endif

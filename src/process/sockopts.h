/*
 * The options of sockets that an image holds: one table for those who read
 * them and those who set them again. Names are those of process.json.
 */
#ifndef USNAP_PROCESS_SOCKOPTS_H
#define USNAP_PROCESS_SOCKOPTS_H

#include <stdbool.h>
#include <stddef.h>

enum {
	SOCKOPT_EARLY = 1, /* set before the socket is bound */
	SOCKOPT_SOFT = 2, /* speed only: a kernel that refuses it is no obstacle */
	SOCKOPT_APART = 4, /* set by rules of its own: buffers, what disturbs filling a queue */
};

/* An option that is an int. */
struct sockopt {
	const char *name;
	int level, option;
	int family; /* 0: any; -1: any but AF_UNIX, where it means nothing */
	unsigned flags;
};

enum {
	SOCKOPTS_MAX = 64 /* a bit each in a word */
};

extern const struct sockopt sockopts[];
extern const size_t nr_sockopts;

/* Whether a socket of this kind has the option. */
bool sockopt_applies(const struct sockopt *o, int family, int protocol);
/* TCP, or MPTCP, which takes its place and its options. */
bool sock_is_tcp(int protocol);

#endif

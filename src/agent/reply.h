/*
 * What "uffd-snap snapshot --json --sync-fd 0" says, read line by line as it
 * comes. Nothing is allocated; a line that is too long is cut.
 */
#ifndef USNAP_AGENT_REPLY_H
#define USNAP_AGENT_REPLY_H

#include <stdbool.h>
#include <stddef.h>

enum {
	REPLY_LINE = 16384
};

enum reply_kind {
	REPLY_NOTHING, /* no line is complete, or it is of no consequence */
	REPLY_ATTACH,
	REPLY_FREEZE,
	REPLY_FROZEN,
	REPLY_DONE,
};

struct reply {
	char line[REPLY_LINE];
	size_t len;
	char path[4096]; /* of the image, "" until it is known */
	char error[512]; /* "cannot ... (hint)", or "" */
	bool hinted;
};

void reply_begin(struct reply *r);

/* One byte of it. */
enum reply_kind reply_add(struct reply *r, char byte);

#endif

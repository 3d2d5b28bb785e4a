/*
 * The only writer to stderr. One message is one write(2), so that messages
 * of concurrent runs in one log do not mix: "uffd-snap: <text>\n" and, where
 * the remedy is known, "hint: <text>\n".
 */
#ifndef USNAP_CLI_MSG_H
#define USNAP_CLI_MSG_H

#include "common/err.h"

enum msg_level {
	MSG_QUIET = -1,
	MSG_NORMAL = 0,
	MSG_VERBOSE = 1
};

void msg_set_level(enum msg_level level);

/* Always shown. */
void msg_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Shown unless quiet. */
void msg_warning(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void msg_info(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Prints err (text and hint). Returns the exit code that belongs to it:
 * EXIT_DAMAGED for -EBADMSG, EXIT_FAILED otherwise. */
int msg_failure(const struct usnap_err *err);

#endif

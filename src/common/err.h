/*
 * An error on its way to the person who can do something about it.
 *
 * The layer that knows what went wrong fills a struct usnap_err and returns
 * its code; the layers between pass both on untouched; only the tool prints.
 * The first failure wins: what is reported later, while undoing, is dropped.
 */
#ifndef USNAP_COMMON_ERR_H
#define USNAP_COMMON_ERR_H

#include <stdarg.h>

struct usnap_err {
	int code; /* negative errno; 0: nothing went wrong yet */
	char text[512]; /* "cannot <verb> 'object': <reason>" */
	char hint[512]; /* what to do about it, or empty */
};

/* Records a failure. Returns code, so that "return usnap_fail(...)" reads
 * well. err may be NULL. code must be negative. The text is complete; no
 * strerror is appended. */
int usnap_fail(struct usnap_err *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* As usnap_fail(), and appends ": " and the words for code. */
int usnap_fail_errno(struct usnap_err *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* Adds the remedy to a failure recorded already. Returns err->code. */
int usnap_hint(struct usnap_err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif

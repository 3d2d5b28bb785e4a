/*
 * Values out of process.json, which is hostile input: every one is checked
 * for its type and range. A failure is -EBADMSG with "cannot restore: KEY of
 * process.json is ..." in err.
 *
 * The plain functions want the key to be there; the _or functions give
 * fallback when it is missing or null, and fail when it is there and wrong.
 */
#ifndef USNAP_RESTORE_RJSON_H
#define USNAP_RESTORE_RJSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

/* An integer in [min, max]. */
int rjson_int(const json_t *o, const char *key, int64_t min, int64_t max, int64_t *ret,
	      struct usnap_err *err);
int rjson_int_or(const json_t *o, const char *key, int64_t min, int64_t max, int64_t fallback,
		 int64_t *ret, struct usnap_err *err);
/* A string "0x..." or "0o...", or an integer that is not negative. */
int rjson_word(const json_t *o, const char *key, uint64_t *ret, struct usnap_err *err);
int rjson_word_or(const json_t *o, const char *key, uint64_t fallback, uint64_t *ret,
		  struct usnap_err *err);
int rjson_bool_or(const json_t *o, const char *key, bool fallback, bool *ret,
		  struct usnap_err *err);
/* Borrowed from o; never NULL but as fallback. Bytes that are no UTF-8 are under KEY_hex: use
 * rjson_path() where they can occur. */
int rjson_text(const json_t *o, const char *key, const char **ret, struct usnap_err *err);
int rjson_text_or(const json_t *o, const char *key, const char *fallback, const char **ret,
		  struct usnap_err *err);
/* As rjson_text_or(o, key, NULL), from KEY_hex where that is: the caller's to free. Refuses NULs. */
int rjson_path(const json_t *o, const char *key, char **ret, struct usnap_err *err);
/* Bytes in hex, at most max of them, the caller's to free; NULL and 0 when missing or null. */
int rjson_hex(const json_t *o, const char *key, size_t max, unsigned char **ret, size_t *ret_len,
	      struct usnap_err *err);
/* An array of at most max elements, or an object; NULL when missing or null. */
int rjson_array(const json_t *o, const char *key, size_t max, json_t **ret, struct usnap_err *err);
int rjson_object(const json_t *o, const char *key, json_t **ret, struct usnap_err *err);
/* The last number of an array such as "pid_ns", or fallback. */
int rjson_innermost(const json_t *o, const char *key, int64_t fallback, pid_t *ret,
		    struct usnap_err *err);

#endif

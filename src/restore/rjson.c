/* Values out of process.json; rjson.h has the rules. */
#include "restore/rjson.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/util.h"

static int wrong(struct usnap_err *err, const char *key, const char *what)
{
	return usnap_fail(err, -EBADMSG, "cannot restore: %s of process.json is %s", key, what);
}

/* The value, NULL when it is missing or null. */
static const json_t *value_of(const json_t *o, const char *key)
{
	const json_t *v = json_object_get(o, key);

	return v && !json_is_null(v) ? v : NULL;
}

static int int_of(const json_t *v, const char *key, int64_t min, int64_t max, int64_t *ret,
		  struct usnap_err *err)
{
	if (!json_is_integer(v))
		return wrong(err, key, "no integer");
	int64_t i = json_integer_value(v);
	if (i < min || i > max)
		return wrong(err, key, "out of range");
	*ret = i;
	return 0;
}

int rjson_int(const json_t *o, const char *key, int64_t min, int64_t max, int64_t *ret,
	      struct usnap_err *err)
{
	const json_t *v = value_of(o, key);

	return v ? int_of(v, key, min, max, ret, err) : wrong(err, key, "missing");
}

int rjson_int_or(const json_t *o, const char *key, int64_t min, int64_t max, int64_t fallback,
		 int64_t *ret, struct usnap_err *err)
{
	const json_t *v = value_of(o, key);

	if (v)
		return int_of(v, key, min, max, ret, err);
	*ret = fallback;
	return 0;
}

static int word_of(const json_t *v, const char *key, uint64_t *ret, struct usnap_err *err)
{
	if (json_is_integer(v)) {
		int64_t i;
		int r = int_of(v, key, 0, INT64_MAX, &i, err);
		if (r == 0)
			*ret = (uint64_t)i;
		return r;
	}
	const char *s = json_string_value(v);
	int base = !s || s[0] != '0' ? 0 : s[1] == 'x' ? 16 : s[1] == 'o' ? 8 : 0;
	/* strtoull() would take a sign and spaces. */
	const char *digits = base == 16 ? "0123456789abcdefABCDEF" : "01234567";
	if (!base || !s[2] || s[2 + strspn(s + 2, digits)])
		return wrong(err, key, "no number");
	errno = 0;
	unsigned long long w = strtoull(s + 2, NULL, base);
	if (errno)
		return wrong(err, key, "out of range");
	*ret = w;
	return 0;
}

int rjson_word(const json_t *o, const char *key, uint64_t *ret, struct usnap_err *err)
{
	const json_t *v = value_of(o, key);

	return v ? word_of(v, key, ret, err) : wrong(err, key, "missing");
}

int rjson_word_or(const json_t *o, const char *key, uint64_t fallback, uint64_t *ret,
		  struct usnap_err *err)
{
	const json_t *v = value_of(o, key);

	if (v)
		return word_of(v, key, ret, err);
	*ret = fallback;
	return 0;
}

int rjson_bool_or(const json_t *o, const char *key, bool fallback, bool *ret, struct usnap_err *err)
{
	const json_t *v = value_of(o, key);

	if (v && !json_is_boolean(v))
		return wrong(err, key, "neither true nor false");
	*ret = v ? json_is_true(v) : fallback;
	return 0;
}

int rjson_text_or(const json_t *o, const char *key, const char *fallback, const char **ret,
		  struct usnap_err *err)
{
	const json_t *v = value_of(o, key);

	if (v && !json_is_string(v))
		return wrong(err, key, "no text");
	if (v && strlen(json_string_value(v)) != json_string_length(v))
		return wrong(err, key, "a text with a NUL in it");
	*ret = v ? json_string_value(v) : fallback;
	return 0;
}

int rjson_text(const json_t *o, const char *key, const char **ret, struct usnap_err *err)
{
	return value_of(o, key) ? rjson_text_or(o, key, NULL, ret, err)
				: wrong(err, key, "missing");
}

int rjson_hex(const json_t *o, const char *key, size_t max, unsigned char **ret, size_t *ret_len,
	      struct usnap_err *err)
{
	const json_t *v = value_of(o, key);

	if (!v) {
		*ret = NULL;
		*ret_len = 0;
		return 0;
	}
	const char *s = json_string_value(v);
	size_t len = json_string_length(v);
	if (!s || len % 2 || len / 2 > max)
		return wrong(err, key, s && len / 2 > max ? "too long" : "no string of hex digits");
	cleanup_free unsigned char *bytes = malloc(len / 2 + 1);
	if (!bytes)
		return usnap_fail_errno(err, -ENOMEM, "cannot restore");
	for (size_t i = 0; i < len / 2; i++) {
		int high = hex_digit(s[2 * i]), low = hex_digit(s[2 * i + 1]);

		if (high < 0 || low < 0)
			return wrong(err, key, "no string of hex digits");
		bytes[i] = (unsigned char)(high << 4 | low);
	}
	bytes[len / 2] = 0;
	*ret = bytes;
	*ret_len = len / 2;
	bytes = NULL;
	return 0;
}

int rjson_path(const json_t *o, const char *key, char **ret, struct usnap_err *err)
{
	cleanup_free unsigned char *raw = NULL;
	char hex_key[64];
	size_t len;
	const char *text = NULL;

	snprintf(hex_key, sizeof(hex_key), "%s_hex", key);
	int r = rjson_hex(o, hex_key, KIB(64), &raw, &len, err);
	if (r == 0 && !raw)
		r = rjson_text_or(o, key, NULL, &text, err);
	if (r < 0)
		return r;
	if (raw && memchr(raw, 0, len))
		return wrong(err, hex_key, "a path with a NUL in it");
	char *copy = raw ? (char *)raw : text ? strdup(text) : NULL;
	if (!copy && text)
		return usnap_fail_errno(err, -ENOMEM, "cannot restore");
	raw = NULL;
	*ret = copy;
	return 0;
}

int rjson_array(const json_t *o, const char *key, size_t max, json_t **ret, struct usnap_err *err)
{
	json_t *v = json_object_get(o, key);

	if (v && !json_is_null(v)) {
		if (!json_is_array(v))
			return wrong(err, key, "no array");
		if (json_array_size(v) > max)
			return wrong(err, key, "too long");
	} else {
		v = NULL;
	}
	*ret = v;
	return 0;
}

int rjson_object(const json_t *o, const char *key, json_t **ret, struct usnap_err *err)
{
	json_t *v = json_object_get(o, key);

	if (v && json_is_null(v))
		v = NULL;
	if (v && !json_is_object(v))
		return wrong(err, key, "no object");
	*ret = v;
	return 0;
}

int rjson_innermost(const json_t *o, const char *key, int64_t fallback, pid_t *ret,
		    struct usnap_err *err)
{
	json_t *list;
	int r = rjson_array(o, key, 64, &list, err);

	if (r < 0)
		return r;
	int64_t v = fallback;
	if (list && json_array_size(list) > 0)
		r = int_of(json_array_get(list, json_array_size(list) - 1), key, 0, 1 << 22, &v,
			   err);
	if (r == 0)
		*ret = (pid_t)v;
	return r;
}

#include "cli/show.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/msg.h"
#include "common/util.h"

void show_text(const char *text)
{
	const unsigned char *s = (const unsigned char *)text;

	for (; s && *s; s++) {
		/* C1 controls are 0xc2 0x80 ... 0x9f in UTF-8. */
		if (*s < 0x20 || *s == 0x7f || (*s == 0xc2 && s[1] >= 0x80 && s[1] <= 0x9f))
			printf("\\x%02x", *s);
		else
			putchar(*s);
	}
}

const char *show_size(char buf[24], uint64_t bytes)
{
	static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
	double v = (double)bytes;
	size_t u = 0;

	while (v >= 1024 && u + 1 < ARRAY_SIZE(units)) {
		v /= 1024;
		u++;
	}
	snprintf(buf, 24, u ? "%.1f %s" : "%.0f %s", v, units[u]);
	return buf;
}

void show_hex_line(const char *prefix, uint64_t addr, const unsigned char *p, size_t len)
{
	printf("%s%016" PRIx64 " ", prefix, addr);
	for (size_t k = 0; k < 16; k++) {
		if (k % 8 == 0)
			putchar(' ');
		if (k < len)
			printf("%02x ", p[k]);
		else
			fputs("   ", stdout);
	}
	fputs(" |", stdout);
	for (size_t k = 0; k < len; k++)
		putchar(p[k] >= 0x20 && p[k] < 0x7f ? p[k] : '.');
	puts("|");
}

int show_json(json_t *j)
{
	char *text = j ? json_dumps(j, JSON_INDENT(2)) : NULL;

	json_decref(j);
	if (!text) {
		msg_error("cannot print the result: out of memory");
		return EXIT_FAILED;
	}
	puts(text);
	free(text);
	return EXIT_DONE;
}

/* How many bytes of s are one character; 0: none begins here. */
static size_t character_len(const char *s)
{
	for (size_t len = 1; len <= 4 && s[len - 1]; len++) {
		json_t *one = json_stringn(s, len);

		if (one) {
			json_decref(one);
			return len;
		}
	}
	return 0;
}

json_t *show_json_text(const char *text)
{
	static const char replacement[] = "\xef\xbf\xbd";
	json_t *j = text ? json_string(text) : json_null();
	cleanup_free char *valid = j ? NULL : malloc(3 * strlen(text) + 1);
	char *to = valid;

	if (j || !valid)
		return j;
	while (*text) {
		size_t len = character_len(text);

		to = len ? mempcpy(to, text, len) : stpcpy(to, replacement);
		text += len ? len : 1;
	}
	return json_stringn(valid, (size_t)(to - valid));
}

bool show_parse_number(const char *text, uint64_t *ret)
{
	bool hex = text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
	const char *digits = hex ? text + 2 : text;
	char *end;

	/* strtoull(3) alone would take signs, spaces and a leading 0 as octal. */
	if (strspn(digits, hex ? "0123456789abcdefABCDEF" : "0123456789") != strlen(digits) ||
	    !*digits)
		return false;
	errno = 0;
	*ret = strtoull(digits, &end, hex ? 16 : 10);
	return errno == 0;
}

int show_image_failure(const struct usnap_image *img, int code)
{
	struct usnap_err err = {.code = code};

	snprintf(err.text, sizeof(err.text), "%s", usnap_image_error(img));
	snprintf(err.hint, sizeof(err.hint), "%s", usnap_image_hint(img));
	return msg_failure(&err);
}

int show_check_output(struct usnap_image *img, const char *output, struct usnap_err *err)
{
	struct usnap_image *old = usnap_image_new();
	struct usnap_info info;
	int r = 0;

	if (old && strcmp(output, "-") != 0 && usnap_image_open(old, output) == 0 &&
	    usnap_image_get_info(old, &info, sizeof(info)) == 0 &&
	    usnap_image_is_needed(img, info.id) == 1)
		r = usnap_fail(err, -EEXIST,
			       "cannot replace '%s': an image that is read refers to it", output);
	usnap_image_free(old);
	return r;
}

int show_flush(FILE *out)
{
	static int failed;
	int r = fflush(out) == 0 ? 0 : -errno;

	if (out != stdout)
		return r;
	if (!failed)
		failed = r;
	return failed;
}

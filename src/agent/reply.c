#include "agent/reply.h"

#include <string.h>

void reply_begin(struct reply *r)
{
	r->len = 0;
	r->path[0] = r->error[0] = '\0';
	r->hinted = false;
}

static int hex(char c)
{
	const char *digits = "0123456789abcdef", *at = c ? strchr(digits, c | 0x20) : NULL;

	return at ? (int)(at - digits) : -1;
}

/* \uXXXX, of which four digits are at s. Only control characters are written so: 0 for others. */
static char unescape_code(const char *s)
{
	int v = 0;

	for (int i = 0; i < 4; i++) {
		int d = hex(s[i]);

		if (d < 0)
			return 0;
		v = v << 4 | d;
	}
	return v < 0x80 ? (char)v : 0;
}

/* The JSON string that begins at s, behind its quote. False when it does not end or does not fit. */
static bool read_string(const char *s, char *to, size_t room)
{
	static const char escaped[] = "\"\\/bfnrt", plain[] = "\"\\/\b\f\n\r\t";
	size_t n = 0;

	for (; *s && *s != '"' && n + 1 < room; s++) {
		char c = *s;

		if (c == '\\') {
			const char *e = s[1] ? strchr(escaped, *++s) : NULL;

			if (e) {
				c = plain[e - escaped];
			} else if (*s == 'u' && (c = unescape_code(s + 1))) {
				s += 4;
			} else {
				return false;
			}
		}
		to[n++] = c;
	}
	to[n] = '\0';
	return *s == '"';
}

static bool starts(const char *text, const char *with)
{
	return strncmp(text, with, strlen(with)) == 0;
}

static void append(char *to, size_t room, const char *text)
{
	size_t have = strlen(to), len = strlen(text);

	if (have + 1 >= room)
		return;
	if (len > room - 1 - have)
		len = room - 1 - have;
	memcpy(to + have, text, len);
	to[have + len] = '\0';
}

static enum reply_kind read_line(struct reply *r)
{
	static const char ours[] = "uffd-snap: ", warning[] = "uffd-snap: warning: ",
			  hint[] = "hint: ", file[] = "\"file\":\"";

	if (!strcmp(r->line, "attach"))
		return REPLY_ATTACH;
	if (!strcmp(r->line, "freeze"))
		return REPLY_FREEZE;
	if (!strcmp(r->line, "frozen"))
		return REPLY_FROZEN;
	if (!strcmp(r->line, "done"))
		return REPLY_DONE;
	if (r->line[0] == '{') {
		/* No string holds this: its quotes would be escaped. */
		const char *at = strstr(r->line, file);

		if (at && !read_string(at + strlen(file), r->path, sizeof(r->path)))
			r->path[0] = '\0';
	} else if (starts(r->line, ours) && !starts(r->line, warning) && !r->error[0]) {
		append(r->error, sizeof(r->error), r->line + strlen(ours));
	} else if (starts(r->line, hint) && r->error[0] && !r->hinted) {
		r->hinted = true;
		append(r->error, sizeof(r->error), " (");
		append(r->error, sizeof(r->error) - 1, r->line + strlen(hint));
		append(r->error, sizeof(r->error), ")");
	}
	return REPLY_NOTHING;
}

enum reply_kind reply_add(struct reply *r, char byte)
{
	if (byte != '\n') {
		if (r->len + 1 < sizeof(r->line))
			r->line[r->len++] = byte ? byte : '?';
		return REPLY_NOTHING;
	}
	r->line[r->len] = '\0';
	r->len = 0;
	return read_line(r);
}

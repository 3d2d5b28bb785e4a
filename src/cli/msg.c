#include "cli/msg.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "common/io.h"
#include "common/util.h"

static enum msg_level level = MSG_NORMAL;

void msg_set_level(enum msg_level l)
{
	level = l;
}

/*
 * Messages quote what is found in images and in other processes. Control
 * characters in it must not reach a terminal, nor begin a second line in a
 * log: they are shown as \xNN. The C1 controls are 0xc2 0x80 ... 0x9f in UTF-8.
 */
static size_t append_visible(char *out, size_t room, size_t len, const char *text)
{
	for (const unsigned char *s = (const unsigned char *)text; *s && len + 5 < room; s++) {
		if (*s < 0x20 || *s == 0x7f || (*s == 0xc2 && s[1] >= 0x80 && s[1] <= 0x9f)) {
			len += (size_t)snprintf(out + len, room - len, "\\x%02x", *s);
			if (*s == 0xc2 && len + 5 < room)
				len += (size_t)snprintf(out + len, room - len, "\\x%02x", *++s);
		} else {
			out[len++] = (char)*s;
		}
	}
	return len;
}

static void emit(const char *prefix, const char *text, const char *hint)
{
	char line[4096];
	size_t len = 0;

	len = append_visible(line, sizeof(line) - 64, len, prefix);
	len = append_visible(line, sizeof(line) - 64, len, text);
	line[len++] = '\n';
	if (hint && *hint) {
		len = append_visible(line, sizeof(line) - 1, len, "hint: ");
		len = append_visible(line, sizeof(line) - 1, len, hint);
		line[len++] = '\n';
	}
	/* Where stderr cannot be written there is nobody left to tell. */
	io_write_full(STDERR_FILENO, line, len);
}

__attribute__((format(printf, 2, 0))) static void emit_va(const char *prefix, const char *fmt,
							  va_list ap)
{
	char text[2048];

	vsnprintf(text, sizeof(text), fmt, ap);
	emit(prefix, text, NULL);
}

void msg_error(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	emit_va("uffd-snap: ", fmt, ap);
	va_end(ap);
}

void msg_warning(const char *fmt, ...)
{
	va_list ap;

	if (level <= MSG_QUIET)
		return;
	va_start(ap, fmt);
	emit_va("uffd-snap: warning: ", fmt, ap);
	va_end(ap);
}

void msg_info(const char *fmt, ...)
{
	va_list ap;

	if (level <= MSG_QUIET)
		return;
	va_start(ap, fmt);
	emit_va("uffd-snap: ", fmt, ap);
	va_end(ap);
}

int msg_failure(const struct usnap_err *err)
{
	emit("uffd-snap: ", err->text[0] ? err->text : "cannot go on: unknown failure", err->hint);
	return err->code == -EBADMSG ? EXIT_DAMAGED : EXIT_FAILED;
}

#include "common/err.h"

#include <stdio.h>
#include <string.h>

__attribute__((format(printf, 4, 0))) static void
err_set(struct usnap_err *err, int code, const char *suffix, const char *fmt, va_list ap)
{
	if (!err || err->code)
		return;
	err->code = code;
	err->hint[0] = '\0';
	int n = vsnprintf(err->text, sizeof(err->text), fmt, ap);
	if (suffix && n >= 0 && (size_t)n < sizeof(err->text))
		snprintf(err->text + n, sizeof(err->text) - (size_t)n, ": %s", suffix);
}

int usnap_fail(struct usnap_err *err, int code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	err_set(err, code, NULL, fmt, ap);
	va_end(ap);
	return code;
}

int usnap_fail_errno(struct usnap_err *err, int code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	err_set(err, code, strerrordesc_np(-code) ? strerrordesc_np(-code) : "unknown error", fmt,
		ap);
	va_end(ap);
	return code;
}

int usnap_hint(struct usnap_err *err, const char *fmt, ...)
{
	if (!err)
		return -1;
	if (!err->hint[0]) {
		va_list ap;

		va_start(ap, fmt);
		vsnprintf(err->hint, sizeof(err->hint), fmt, ap);
		va_end(ap);
	}
	return err->code;
}

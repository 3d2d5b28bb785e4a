#include "cli/progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "common/io.h"
#include "common/util.h"

enum {
	REDRAW_NS = 100000000,
	RATE_AFTER_NS = 500000000
};

void progress_start(struct progress *p, bool quiet)
{
	const char *term = getenv("TERM");

	*p = (struct progress){0};
	p->shown = !quiet && isatty(STDERR_FILENO) && term && *term && strcmp(term, "dumb") != 0;
	p->start_ns = now_ns();
}

static const char *format_bytes(char buf[static 24], double bytes)
{
	static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
	size_t u = 0;

	while (bytes >= 1024 && u + 1 < ARRAY_SIZE(units)) {
		bytes /= 1024;
		u++;
	}
	snprintf(buf, 24, u ? "%.1f %s" : "%.0f %s", bytes, units[u]);
	return buf;
}

static size_t format_left(char *buf, size_t room, double seconds)
{
	unsigned long s = seconds < 1e8 ? (unsigned long)(seconds + 0.5) : 100000000ul;

	if (s >= 3600)
		return (size_t)snprintf(buf, room, ", %lu:%02lu:%02lu left", s / 3600, s / 60 % 60,
					s % 60);
	return (size_t)snprintf(buf, room, ", %lu:%02lu left", s / 60, s % 60);
}

static unsigned terminal_columns(void)
{
	struct winsize ws;

	if (ioctl(STDERR_FILENO, TIOCGWINSZ, &ws) == 0 && ws.ws_col > 1)
		return ws.ws_col;
	return 80;
}

void progress_update(struct progress *p, const char *what, uint64_t done, uint64_t total)
{
	if (!p->shown)
		return;
	uint64_t now = now_ns();
	if (p->last_ns && now - p->last_ns < REDRAW_NS)
		return;
	p->last_ns = now;

	char line[256], a[24], b[24];
	size_t len;
	if (total)
		len = (size_t)snprintf(
			line, sizeof(line), "\r%.40s: %s of %s (%u%%)", what,
			format_bytes(a, (double)done), format_bytes(b, (double)total),
			(unsigned)(100.0 * (double)MIN(done, total) / (double)total));
	else
		len = (size_t)snprintf(line, sizeof(line), "\r%.40s: %s", what,
				       format_bytes(a, (double)done));

	uint64_t elapsed = now - p->start_ns;
	if (elapsed >= RATE_AFTER_NS && done) {
		double rate = (double)done / ((double)elapsed / 1e9);

		len += (size_t)snprintf(line + len, sizeof(line) - len, ", %s/s",
					format_bytes(a, rate));
		if (total > done)
			len += format_left(line + len, sizeof(line) - len,
					   (double)(total - done) / rate);
	}

	/* A line that wraps could not be wiped; \r takes no column. */
	len = MIN(len, (size_t)terminal_columns());
	unsigned width = (unsigned)len - 1;
	while (len - 1 < p->width && len < sizeof(line) && len < terminal_columns())
		line[len++] = ' ';
	p->width = width;
	io_write_full(STDERR_FILENO, line, len);
}

void progress_end(struct progress *p)
{
	if (!p->shown || !p->width)
		return;
	char line[256];
	size_t width = MIN((size_t)p->width, sizeof(line) - 2);
	line[0] = '\r';
	memset(line + 1, ' ', width);
	line[width + 1] = '\r';
	io_write_full(STDERR_FILENO, line, width + 2);
	p->width = 0;
}

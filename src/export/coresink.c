#include "export/coresink.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "common/io.h"
#include "common/util.h"

#define SINK_BYTES KIB(256)
/* A shorter hole saves no block and costs a seek. */
#define HOLE_MIN 4096u

int core_sink_init(struct core_sink *s, int fd, bool stream)
{
	*s = (struct core_sink){.fd = fd, .stream = stream};
	s->buf = malloc(SINK_BYTES);
	return s->buf ? 0 : -ENOMEM;
}

static int sink_flush(struct core_sink *s)
{
	const unsigned char *p = s->buf;
	size_t len = s->len;
	uint64_t at = s->at - len;

	s->len = 0;
	if (s->stream)
		return io_write_full(s->fd, p, len);
	while (len) {
		ssize_t n = pwrite(s->fd, p, len, (off_t)at);
		if (n < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		p += n;
		at += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

int core_sink_put(struct core_sink *s, const void *data, size_t len)
{
	const unsigned char *p = data;

	while (len) {
		size_t n = MIN(len, SINK_BYTES - s->len);

		memcpy(s->buf + s->len, p, n);
		s->len += n;
		s->at += n;
		p += n;
		len -= n;
		if (s->len == SINK_BYTES) {
			int r = sink_flush(s);
			if (r)
				return r;
		}
	}
	return 0;
}

int core_sink_skip(struct core_sink *s, uint64_t len)
{
	static const unsigned char zeros[4096];
	int r;

	if (!s->stream && len >= HOLE_MIN) {
		r = sink_flush(s);
		if (r)
			return r;
		s->at += len;
		return 0;
	}
	while (len) {
		size_t n = (size_t)MIN(len, (uint64_t)sizeof(zeros));

		r = core_sink_put(s, zeros, n);
		if (r)
			return r;
		len -= n;
	}
	return 0;
}

int core_sink_finish(struct core_sink *s)
{
	int r = sink_flush(s);

	if (!r && !s->stream && ftruncate(s->fd, (off_t)s->at))
		r = -errno;
	return r;
}

void core_sink_free(struct core_sink *s)
{
	free(s->buf);
	s->buf = NULL;
}

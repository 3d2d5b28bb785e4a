#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/util.h"
#include "process/pstate_internal.h"

/* An epoll set of a hundred thousand descriptors shows a line for each. */
#define TEXT_MAX MIB(64)

int arena_reserve(struct arena *a, size_t bytes)
{
	if (a->room - a->len >= bytes)
		return 0;
	size_t room = MAX(a->room * 2, a->len + bytes + KIB(64));
	char *bigger = realloc(a->p, room);
	if (!bigger)
		return -ENOMEM;
	/* Touched now, not page by page in the freeze. Behind a->len lies what is being read. */
	memset(bigger + a->room, 0, room - a->room);
	a->p = bigger;
	a->room = room;
	return 0;
}

int arena_pread(struct arena *a, int fd, struct span *ret)
{
	size_t at = a->len, len = 0;

	for (;;) {
		/* /proc ends a read at the end of a record, seldom where the file ends:
		 * a short one says nothing but for those that fit one record. */
		int r = arena_reserve(a, len + KIB(8));
		if (r < 0)
			return r;
		size_t room = a->room - at - len - 1;
		ssize_t n = pread(fd, a->p + at + len, room, (off_t)len);
		if (n < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		len += (size_t)n;
		if (n == 0 || (len < 3072 && (size_t)n < room))
			break;
		if (len > TEXT_MAX)
			return -EFBIG;
	}
	a->p[at + len] = '\0';
	a->len = at + len + 1;
	*ret = (struct span){a, at, len};
	return 0;
}

int arena_read_at(struct arena *a, int dirfd, const char *name, struct span *ret)
{
	cleanup_fd int fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC | O_NOCTTY);

	return fd < 0 ? -errno : arena_pread(a, fd, ret);
}

const char *span_text(struct span s)
{
	return s.len ? s.arena->p + s.at : "";
}

const char *text_line(const char *text, const char *key)
{
	size_t len = strlen(key);

	for (const char *s = text; s && *s;) {
		if (!strncmp(s, key, len) && s[len] == ':') {
			s += len + 1;
			while (*s == '\t' || *s == ' ')
				s++;
			return s;
		}
		s = strchr(s, '\n');
		if (s)
			s++;
	}
	return NULL;
}

bool text_number(const char *text, const char *key, unsigned nth, int base, uint64_t *ret)
{
	const char *s = text_line(text, key);

	if (!s)
		return false;
	for (;;) {
		while (*s == ' ' || *s == '\t')
			s++;
		char *end;
		errno = 0;
		uint64_t v = strtoull(s, &end, base);
		if (*s == '\n' || end == s || errno)
			return false;
		if (nth-- == 0) {
			*ret = v;
			return true;
		}
		s = end;
	}
}

json_t *json_address(uint64_t v)
{
	return json_sprintf("0x%llx", (unsigned long long)v);
}

json_t *json_hex(const void *p, size_t len)
{
	static const char digits[] = "0123456789abcdef";
	const unsigned char *b = p;
	char *s = malloc(len * 2 + 1);

	if (!s)
		return NULL;
	for (size_t i = 0; i < len; i++) {
		s[2 * i] = digits[b[i] >> 4];
		s[2 * i + 1] = digits[b[i] & 15];
	}
	json_t *j = json_stringn(s, len * 2);
	free(s);
	return j;
}

void json_set_textn(json_t *o, const char *key, const char *s, size_t len)
{
	json_t *j = memchr(s, '\0', len) ? NULL : json_stringn(s, len);

	if (j) {
		json_object_set_new(o, key, j);
		return;
	}
	char *ascii = malloc(len + 1), *key_hex = NULL;
	if (!ascii || asprintf(&key_hex, "%s_hex", key) < 0) {
		free(ascii);
		return;
	}
	for (size_t i = 0; i < len; i++)
		ascii[i] = (unsigned char)s[i] < 0x80 && s[i] ? s[i] : '?';
	json_object_set_new(o, key, json_stringn(ascii, len));
	json_object_set_new(o, key_hex, json_hex(s, len));
	free(ascii);
	free(key_hex);
}

void json_set_text(json_t *o, const char *key, const char *s)
{
	if (s)
		json_set_textn(o, key, s, strlen(s));
	else
		json_object_set_new(o, key, json_null());
}

#include <stddef.h>

#include "image/ustar.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

/* Offsets of fields: POSIX.1-2017, pax, "ustar Interchange Format". */
enum {
	USTAR_NAME = 0,
	USTAR_SIZE = 124,
	USTAR_CHKSUM = 148,
	USTAR_TYPE = 156,
	USTAR_LINKNAME = 157,
	USTAR_MAGIC = 257,
	USTAR_PREFIX = 345,
};

/* Octal digits, then a space or NUL and nothing after it that matters. */
static int parse_octal(const unsigned char *p, size_t len, uint64_t *ret)
{
	uint64_t v = 0;
	size_t i = 0;

	while (i < len && p[i] >= '0' && p[i] <= '7')
		v = v << 3 | (uint64_t)(p[i++] - '0');
	if (!i || i == len || (p[i] != ' ' && p[i] != '\0'))
		return -EBADMSG;
	*ret = v;
	return 0;
}

static bool checksum_right(const unsigned char *b)
{
	uint64_t stated;
	unsigned sum = 0;

	if (parse_octal(b + USTAR_CHKSUM, 8, &stated) < 0)
		return false;
	for (int i = 0; i < FORMAT_TAR_BLOCK; i++)
		sum += i >= USTAR_CHKSUM && i < USTAR_TYPE ? ' ' : b[i];
	return sum == stated;
}

int ustar_parse(const unsigned char block[FORMAT_TAR_BLOCK], struct ustar_entry *ret,
		const char **ret_what)
{
	const char *what = NULL;

	if (memcmp(block + USTAR_MAGIC,
		   "ustar\0"
		   "00",
		   8) != 0)
		what = "no tar header";
	else if (!checksum_right(block))
		what = "the checksum of the tar header is wrong";
	else if (block[USTAR_TYPE] != '0' && block[USTAR_TYPE] != 'x')
		what = "a tar entry that is no plain file";
	else if (block[USTAR_LINKNAME] || block[USTAR_PREFIX] || !block[USTAR_NAME] ||
		 !memchr(block + USTAR_NAME, '\0', FORMAT_MAX_NAME + 1))
		what = "a tar entry with a name that no member has";
	else if (parse_octal(block + USTAR_SIZE, 12, &ret->size) < 0)
		what = "the size in the tar header is no number";
	if (what) {
		*ret_what = what;
		return -EBADMSG;
	}
	memcpy(ret->name, block + USTAR_NAME, sizeof(ret->name));
	ret->type = (char)block[USTAR_TYPE];
	return 0;
}

/* Records are "LENGTH KEY=VALUE\n", LENGTH in decimal and of the whole. */
int ustar_pax_size(const char *text, size_t len, uint64_t *ret)
{
	*ret = 0;
	while (len) {
		size_t n = 0, i = 0;
		const char *value;

		while (i < len && i < 6 && text[i] >= '0' && text[i] <= '9')
			n = n * 10 + (size_t)(text[i++] - '0');
		if (!i || i == len || text[i] != ' ' || n > len || n < i + 3 || text[n - 1] != '\n')
			return -EBADMSG;
		value = memchr(text + i + 1, '=', n - i - 2);
		if (!value)
			return -EBADMSG;
		if (value - (text + i + 1) == 4 && !memcmp(text + i + 1, "size", 4)) {
			uint64_t v = 0;

			for (value++; *value != '\n'; value++) {
				if (*value < '0' || *value > '9' || v > UINT64_MAX / 16)
					return -EBADMSG;
				v = v * 10 + (uint64_t)(*value - '0');
			}
			*ret = v;
		}
		text += n;
		len -= n;
	}
	return 0;
}

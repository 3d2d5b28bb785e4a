/*
 * One read loop, one pass of hand-written parsing, one allocation: the array
 * with the paths behind it. A freeze reads the maps, so nothing here may cost
 * more than about a microsecond per line.
 */
#include "process/maps.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/compat.h"
#include "common/util.h"
#include "process/mapkind.h"

/* A process may have vm.max_map_count mappings, each with a path of up to
 * PATH_MAX (four times that, escaped). Beyond this the text is not believed. */
#define MAPS_TEXT_MAX MIB(1024)

static const char *const kind_names[] = {
	[VMA_ANON] = "anonymous",
	[VMA_FILE] = "file",
	[VMA_FILE_SHARED] = "file-shared",
	[VMA_SHMEM] = "shmem",
	[VMA_SHMEM_PRIVATE] = "shmem-private",
	[VMA_HUGETLB] = "hugetlb",
	[VMA_SPECIAL] = "special",
	[VMA_DEVICE] = "device",
};

/* In the order of enum vma_flag. */
static const char flag_names[VMF_NR_FLAGS][3] = {
	"rd", "wr", "ex", "sh", "mr", "mw", "me", "ms", "gd", "pf", "lo", "io",
	"sr", "rr", "dc", "de", "ac", "nr", "ht", "sf", "wf", "dd", "sd", "mm",
	"hg", "nh", "mg", "um", "uw", "ui", "ss", "sl", "dp", "lf",
};

const char *vma_kind_name(enum vma_kind kind)
{
	return (size_t)kind < ARRAY_SIZE(kind_names) ? kind_names[kind] : "unknown";
}

const char *vma_flag_name(enum vma_flag flag)
{
	return (size_t)flag < VMF_NR_FLAGS ? flag_names[flag] : "??";
}

/* ---- the text ---------------------------------------------------------- */

struct text {
	char *p;
	size_t len;
};

/* As io_read_file_at(), but begins with room for what a process commonly
 * has: the kernel hands out a page per read(), growing would copy each. */
static int read_text(int procfd, const char *name, size_t room, struct text *ret)
{
	cleanup_fd int fd = openat(procfd, name, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;

	size_t len = 0;
	cleanup_free char *buf = malloc(room);
	if (!buf)
		return -ENOMEM;
	for (;;) {
		ssize_t n = read(fd, buf + len, room - len - 1);
		if (n < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		if (n == 0)
			break;
		len += (size_t)n;
		if (room - len < KIB(8)) {
			if (room >= MAPS_TEXT_MAX)
				return -EFBIG;
			char *bigger = realloc(buf, room * 2);
			if (!bigger)
				return -ENOMEM;
			buf = bigger;
			room *= 2;
		}
	}
	buf[len] = '\0';
	ret->p = buf;
	ret->len = len;
	buf = NULL;
	return 0;
}

/* Parses digits of the base at *p up to the first other character. False:
 * no digit, or more than 64 bits. */
static bool parse_hex(const char **p, uint64_t *ret)
{
	const char *s = *p;
	uint64_t v = 0;

	for (;; s++) {
		unsigned d;

		if (*s >= '0' && *s <= '9')
			d = (unsigned)(*s - '0');
		else if (*s >= 'a' && *s <= 'f')
			d = (unsigned)(*s - 'a') + 10;
		else
			break;
		if (v >> 60)
			return false;
		v = v << 4 | d;
	}
	if (s == *p)
		return false;
	*p = s;
	*ret = v;
	return true;
}

static bool parse_dec(const char **p, uint64_t *ret)
{
	const char *s = *p;
	uint64_t v = 0;

	for (; *s >= '0' && *s <= '9'; s++)
		if (__builtin_mul_overflow(v, 10u, &v) ||
		    __builtin_add_overflow(v, (unsigned)(*s - '0'), &v))
			return false;
	if (s == *p)
		return false;
	*p = s;
	*ret = v;
	return true;
}

static bool parse_char(const char **p, char c)
{
	if (**p != c)
		return false;
	(*p)++;
	return true;
}

/* "rwxp": a letter or '-' at its place each. */
static bool parse_perms(const char **p, struct vma *v)
{
	static const char letters[] = "rwx";
	static const uint32_t bits[] = {PROT_READ, PROT_WRITE, PROT_EXEC};
	const char *s = *p;

	for (unsigned i = 0; i < 3; i++) {
		if (s[i] == letters[i])
			v->prot |= bits[i];
		else if (s[i] != '-')
			return false;
	}
	if (s[3] != 'p' && s[3] != 's')
		return false;
	v->shared = s[3] == 's';
	*p = s + 4;
	return true;
}

/* "START-END rwxp OFFSET MAJOR:MINOR INODE   PATH", NUL-terminated in place
 * of its newline. The path is left where it is, escaped. */
static bool parse_line(const char *s, struct vma *v)
{
	uint64_t major, minor;
	const uint64_t page_mask = (uint64_t)sysconf(_SC_PAGESIZE) - 1;

	*v = (struct vma){0};
	if (!parse_hex(&s, &v->start) || !parse_char(&s, '-') || !parse_hex(&s, &v->end) ||
	    !parse_char(&s, ' ') || !parse_perms(&s, v) || !parse_char(&s, ' ') ||
	    !parse_hex(&s, &v->offset) || !parse_char(&s, ' ') || !parse_hex(&s, &major) ||
	    !parse_char(&s, ':') || !parse_hex(&s, &minor) || !parse_char(&s, ' ') ||
	    !parse_dec(&s, &v->inode))
		return false;
	if (*s && *s != ' ')
		return false;
	if (v->start >= v->end || (v->start | v->end) & page_mask || major > UINT32_MAX ||
	    minor > UINT32_MAX)
		return false;
	v->dev_major = (uint32_t)major;
	v->dev_minor = (uint32_t)minor;
	v->page_size = page_mask + 1;
	while (*s == ' ')
		s++;
	v->path = (char *)(uintptr_t)s;
	return true;
}

/* Copies a path, "\ooo" as the byte it stands for. Returns the length. dst
 * has room for strlen(src) + 1. The kernel escapes the newline only: any
 * other backslash is a backslash, and "\012" written by hand reads the same,
 * which nothing can tell apart. */
static size_t unescape(char *dst, const char *src)
{
	char *d = dst;

	while (*src) {
		if (src[0] == '\\' && !strncmp(src, "\\012", 4)) {
			*d++ = '\n';
			src += 4;
		} else {
			*d++ = *src++;
		}
	}
	*d = '\0';
	return (size_t)(d - dst);
}

static void parse_flags(const char *s, struct vma *v)
{
	for (;;) {
		while (*s == ' ')
			s++;
		if (!s[0] || !s[1])
			return;
		for (unsigned f = 0; f < VMF_NR_FLAGS; f++) {
			if (s[0] == flag_names[f][0] && s[1] == flag_names[f][1]) {
				v->flags |= UINT64_C(1) << f;
				break;
			}
		}
		while (*s && *s != ' ')
			s++;
	}
}

/* A line of smaps that is not a mapping's: "Key:  value". */
static bool parse_attribute(const char *s, struct vma *v)
{
	uint64_t kib;

	if (!strncmp(s, "VmFlags:", 8)) {
		v->has_flags = true;
		parse_flags(s + 8, v);
	} else if (!strncmp(s, "Anonymous:", 10) || !strncmp(s, "Swap:", 5)) {
		s = strchr(s, ':') + 1;
		while (*s == ' ')
			s++;
		if (!parse_dec(&s, &kib))
			return false;
		v->own_pages |= kib > 0;
	} else if (!strncmp(s, "KernelPageSize:", 15)) {
		s += 15;
		while (*s == ' ')
			s++;
		if (!parse_dec(&s, &kib) || !kib || kib > UINT64_MAX >> 10 || kib & (kib - 1))
			return false;
		v->page_size = kib << 10;
	}
	return true;
}

struct vma_list {
	struct vma *v;
	size_t n, room;
};

/* While the target runs the text is put together from several readings, and
 * a mapping that changed in between can be there twice: what was said first
 * about an address holds. */
static int list_append(struct vma_list *l, struct vma v)
{
	if (l->n) {
		uint64_t behind = l->v[l->n - 1].end;

		if (v.end <= behind)
			return 0;
		if (v.start < behind) {
			if (v.inode)
				v.offset += behind - v.start;
			v.start = behind;
		}
	}
	if (l->n == l->room) {
		size_t room = l->room ? l->room * 2 : 256;
		struct vma *bigger = realloc(l->v, room * sizeof(*bigger));
		if (!bigger)
			return -ENOMEM;
		l->v = bigger;
		l->room = room;
	}
	l->v[l->n++] = v;
	return 1;
}

/* Cuts the text into vmas whose paths lie in it still. */
static int parse_text(struct text *t, struct vma_list *l)
{
	struct vma *current = NULL, ignored;
	char *s = t->p, *end = t->p + t->len;

	while (s < end) {
		char *eol = memchr(s, '\n', (size_t)(end - s));
		if (!eol)
			return -EPROTO;
		*eol = '\0';
		if (*s >= 'A' && *s <= 'Z') { /* addresses are in lower case */
			if (!current || !parse_attribute(s, current))
				return -EPROTO;
		} else {
			struct vma v;

			if (!parse_line(s, &v))
				return -EPROTO;
			int r = list_append(l, v);
			if (r < 0)
				return r;
			current = r ? &l->v[l->n - 1] : &ignored;
		}
		s = eol + 1;
	}
	return 0;
}

/* Moves array and paths into one allocation of their own. Neighbours are
 * commonly segments of one file and share the string. */
static int pack(const struct vma_list *l, struct maps *ret)
{
	size_t bytes = l->n * sizeof(struct vma) + 1;

	for (size_t i = 0; i < l->n; i++)
		if (l->v[i].path[0] && (!i || strcmp(l->v[i].path, l->v[i - 1].path)))
			bytes += strlen(l->v[i].path) + 1;
	struct vma *v = malloc(bytes);
	if (!v)
		return -ENOMEM;

	char *strings = (char *)(v + l->n), *empty = strings;
	*strings++ = '\0';
	for (size_t i = 0; i < l->n; i++) {
		v[i] = l->v[i];
		if (!l->v[i].path[0]) {
			v[i].path = empty;
		} else if (i && !strcmp(l->v[i].path, l->v[i - 1].path)) {
			v[i].path = v[i - 1].path;
		} else {
			v[i].path = strings;
			strings += unescape(strings, l->v[i].path) + 1;
		}
	}
	ret->v = v;
	ret->n = l->n;
	return 0;
}

/* ---- the interface ----------------------------------------------------- */

static int read_maps(int procfd, const char *name, size_t room, struct maps *ret)
{
	struct text text = {0};
	struct vma_list list = {0};
	struct maps maps = {0};
	struct fs_cache cache = {0};

	int r = read_text(procfd, name, room, &text);
	if (r < 0)
		return r;
	r = parse_text(&text, &list);
	if (r == 0)
		r = pack(&list, &maps);
	free(list.v);
	free(text.p);
	if (r < 0)
		return r;
	for (size_t i = 0; i < maps.n; i++)
		maps.v[i].kind = mapkind_classify(&cache, procfd, &maps.v[i]);
	*ret = maps;
	return 0;
}

int maps_read(int procfd, struct maps *ret)
{
	return read_maps(procfd, "maps", KIB(128), ret);
}

int maps_read_flags(int procfd, struct maps *ret)
{
	return read_maps(procfd, "smaps", KIB(1024), ret);
}

/* Whether the two can be one mapping, moved at its ends or split. */
static bool same_mapping(const struct vma *a, const struct vma *b)
{
	if (a->dev_major != b->dev_major || a->dev_minor != b->dev_minor || a->inode != b->inode ||
	    a->shared != b->shared)
		return false;
	if (a->inode)
		return a->start - a->offset == b->start - b->offset;
	/* Names of anonymous memory come and go; the kernel's own stay. */
	return (a->kind == VMA_SPECIAL) == (b->kind == VMA_SPECIAL);
}

static void inherit(struct vma *v, const struct vma *from)
{
	static const struct {
		uint32_t prot;
		enum vma_flag flag;
	} bits[] = {{PROT_READ, VMF_RD}, {PROT_WRITE, VMF_WR}, {PROT_EXEC, VMF_EX}};

	v->has_flags = true;
	v->flags = from->flags;
	v->page_size = from->page_size;
	v->own_pages = from->own_pages;
	v->kind = from->kind;
	for (size_t i = 0; i < ARRAY_SIZE(bits); i++) {
		v->flags &= ~(UINT64_C(1) << bits[i].flag);
		if (v->prot & bits[i].prot)
			v->flags |= UINT64_C(1) << bits[i].flag;
	}
}

size_t maps_inherit_flags(struct maps *fresh, const struct maps *earlier)
{
	size_t without = 0, first = 0;

	for (size_t i = 0; i < fresh->n; i++) {
		struct vma *v = &fresh->v[i];

		if (v->has_flags)
			continue;
		while (first < earlier->n && earlier->v[first].end <= v->start)
			first++;
		for (size_t j = first; j < earlier->n && earlier->v[j].start < v->end; j++) {
			if (earlier->v[j].has_flags && same_mapping(v, &earlier->v[j])) {
				inherit(v, &earlier->v[j]);
				break;
			}
		}
		without += !v->has_flags;
	}
	return without;
}

int maps_query(int fd, uint64_t addr, struct range *ret)
{
	struct procmap_query q = {.size = sizeof(q), .query_addr = addr};

	if (ioctl(fd, PROCMAP_QUERY, &q) < 0)
		return errno == EINVAL ? -ENOTTY : -errno;
	*ret = (struct range){q.vma_start, q.vma_end};
	return 0;
}

const struct vma *maps_find(const struct maps *m, uint64_t addr)
{
	size_t lo = 0, hi = m->n;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (m->v[mid].end <= addr)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < m->n && m->v[lo].start <= addr ? &m->v[lo] : NULL;
}

int maps_set_guards(struct maps *m, const struct range *guards, size_t n)
{
	struct range *copy = n ? malloc(n * sizeof(*copy)) : NULL;

	if (n && !copy)
		return -ENOMEM;
	if (n)
		memcpy(copy, guards, n * sizeof(*copy));
	free(m->guards);
	m->guards = copy;
	m->nr_guards = n;
	return 0;
}

void maps_free(struct maps *m)
{
	free(m->guards);
	free(m->v);
	*m = (struct maps){0};
}

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/le.h"
#include "common/util.h"
#include "image/image.h"

static uint64_t process_offset(struct usnap_image *img)
{
	return img_find_member(img, FORMAT_PROCESS)->offset;
}

/* "0x" and hex digits, nothing else; up to 64 bits. */
static bool parse_address(const json_t *j, uint64_t *ret)
{
	const char *s = json_string_value(j);
	uint64_t v = 0;

	if (!s || s[0] != '0' || s[1] != 'x' || !s[2] || strlen(s) > 18)
		return false;
	for (s += 2; *s; s++) {
		int c = *s;

		if (c >= '0' && c <= '9')
			c -= '0';
		else if (c >= 'a' && c <= 'f')
			c -= 'a' - 10;
		else
			return false;
		v = v << 4 | (uint64_t)c;
	}
	*ret = v;
	return true;
}

/* A count that may be absent (0), but not negative or of another type. */
static bool parse_count(const json_t *j, uint64_t *ret)
{
	*ret = 0;
	if (!j)
		return true;
	if (!json_is_integer(j) || json_integer_value(j) < 0)
		return false;
	*ret = (uint64_t)json_integer_value(j);
	return true;
}

/* 64 bits that the kernel and JSON count differently: offsets of device
 * memory and inode numbers can have the highest bit, and are negative then. */
static bool parse_u64(const json_t *j, uint64_t *ret)
{
	*ret = json_is_integer(j) ? (uint64_t)json_integer_value(j) : 0;
	return !j || json_is_integer(j);
}

/* A path that is no UTF-8 is in "path_hex". Freed by the caller. */
static bool parse_exact_path(const json_t *j, char **ret)
{
	const json_t *v = json_object_get(j, "path_hex");
	const char *hex = json_string_value(v);
	size_t len = hex ? strlen(hex) : 0;

	*ret = NULL;
	if (!v)
		return true;
	if (!hex || len % 2 || strspn(hex, "0123456789abcdef") != len)
		return false;
	*ret = calloc(1, len / 2 + 1);
	for (size_t i = 0; *ret && i < len / 2; i++)
		(*ret)[i] = (char)(hex_digit(hex[2 * i]) << 4 | hex_digit(hex[2 * i + 1]));
	return *ret;
}

static bool parse_prot(const json_t *j, uint32_t *ret)
{
	const char *s = json_string_value(j);

	if (!s || strlen(s) < 3 || !strchr("r-", s[0]) || !strchr("w-", s[1]) ||
	    !strchr("x-", s[2]))
		return false;
	*ret = (s[0] == 'r' ? PROT_READ : 0) | (s[1] == 'w' ? PROT_WRITE : 0) |
	       (s[2] == 'x' ? PROT_EXEC : 0);
	return true;
}

static bool parse_content(const json_t *j, enum usnap_content *ret)
{
	const char *s = json_string_value(j);

	if (!s)
		return false;
	if (!strcmp(s, "image"))
		*ret = USNAP_CONTENT_IMAGE;
	else if (!strcmp(s, "file"))
		*ret = USNAP_CONTENT_FILE;
	else if (!strcmp(s, "none"))
		*ret = USNAP_CONTENT_NONE;
	else
		return false;
	return true;
}

static bool parse_region(const json_t *j, uint32_t page_size, struct usnap_region *g)
{
	const char *dev = json_string_value(json_object_get(j, "dev"));

	g->kind = json_string_value(json_object_get(j, "kind"));
	g->path = json_string_value(json_object_get(j, "path"));
	g->shared = json_is_true(json_object_get(j, "shared"));
	if (!g->path)
		g->path = "";
	if (dev && sscanf(dev, "%8x:%8x", &g->dev_major, &g->dev_minor) != 2)
		return false;
	if (!g->kind || !parse_address(json_object_get(j, "start"), &g->start) ||
	    !parse_address(json_object_get(j, "end"), &g->end) ||
	    !parse_prot(json_object_get(j, "prot"), &g->prot) ||
	    !parse_content(json_object_get(j, "content"), &g->content) ||
	    !parse_u64(json_object_get(j, "offset"), &g->offset) ||
	    !parse_u64(json_object_get(j, "inode"), &g->inode) ||
	    !parse_count(json_object_get(j, "page_size"), &g->page_size))
		return false;
	if (!g->page_size)
		g->page_size = page_size;
	/* Where contents of files are, no memory can be. */
	if (g->start < FORMAT_CONTENT_END && g->end > FORMAT_CONTENT_START)
		return false;
	return g->start < g->end && !((g->start | g->end) & (page_size - 1)) &&
	       !(g->page_size & (g->page_size - 1)) && g->page_size >= page_size;
}

void img_free_paths(struct usnap_image *img, size_t n)
{
	for (size_t i = 0; i < n; i++)
		free(img->paths[i]);
	free(img->paths);
	img->paths = NULL;
}

static int load_regions(struct usnap_image *img)
{
	struct usnap_region *v;
	const json_t *maps;
	size_t n, i;
	int r;

	if (img->regions)
		return 0;
	if ((r = img_load_process(img)) < 0)
		return r;
	maps = json_object_get(img->process, "maps");
	if (!json_is_array(maps))
		return img_damaged(img, process_offset(img), "'%s' has no maps", FORMAT_PROCESS);
	n = json_array_size(maps);
	v = calloc(n + 1, sizeof(*v));
	img->paths = calloc(n + 1, sizeof(*img->paths));
	if (!v || !img->paths) {
		free(v);
		free(img->paths);
		img->paths = NULL;
		return img_failed(img, -ENOMEM, FORMAT_PROCESS);
	}
	for (i = 0; i < n; i++) {
		const json_t *j = json_array_get(maps, i);

		if (!parse_region(j, img->info.page_size, &v[i]) ||
		    !parse_exact_path(j, &img->paths[i]) || (i && v[i].start < v[i - 1].end))
			break;
		if (img->paths[i])
			v[i].path = img->paths[i];
	}
	if (i < n) {
		img_free_paths(img, n);
		free(v);
		return img_damaged(img, process_offset(img), "'%s': map number %zu is impossible",
				   FORMAT_PROCESS, i);
	}
	img->regions = v;
	img->nr_regions = n;
	return 0;
}

int usnap_image_get_nr_regions(struct usnap_image *img, size_t *ret)
{
	int r = img_require_open(img);

	if (r < 0 || (r = load_regions(img)) < 0)
		return r;
	*ret = img->nr_regions;
	return 0;
}

int usnap_image_get_region(struct usnap_image *img, size_t nr, struct usnap_region *ret,
			   size_t size)
{
	int r = img_require_open(img);

	if (r < 0 || (r = load_regions(img)) < 0)
		return r;
	if (nr >= img->nr_regions)
		return usnap_fail(&img->err, -EINVAL, "cannot read '%s': it has no region %zu",
				  img->name, nr);
	img_copy_out(ret, size, &img->regions[nr], sizeof(img->regions[nr]));
	return 0;
}

int usnap_image_find_region(struct usnap_image *img, uint64_t addr, size_t *ret_nr)
{
	size_t a = 0, b;
	int r = img_require_open(img);

	if (r < 0 || (r = load_regions(img)) < 0)
		return r;
	for (b = img->nr_regions; a < b;) {
		size_t m = a + (b - a) / 2;

		if (img->regions[m].end <= addr)
			a = m + 1;
		else
			b = m;
	}
	if (a == img->nr_regions)
		return usnap_fail(&img->err, -ENOENT,
				  "cannot read '%s': nothing was mapped at or above 0x%" PRIx64,
				  img->name, addr);
	*ret_nr = a;
	return img->regions[a].start <= addr;
}

/* ---- files without a name ---- */

static int by_address(const void *a, const void *b)
{
	uint64_t x = ((const struct img_content *)a)->addr,
		 y = ((const struct img_content *)b)->addr;

	return (x > y) - (x < y);
}

static bool parse_file_content(const json_t *j, uint32_t page_size, struct img_content *c)
{
	return parse_address(json_object_get(j, "address"), &c->addr) &&
	       parse_count(json_object_get(j, "size"), &c->size) &&
	       !((c->addr | c->size) & (page_size - 1)) && c->addr >= FORMAT_CONTENT_START &&
	       c->addr < FORMAT_CONTENT_END && c->size <= FORMAT_CONTENT_END - c->addr;
}

static bool parse_mapped_as(const json_t *j, struct img_content *c)
{
	const char *dev = json_string_value(json_object_get(j, "map_dev"));

	return parse_u64(json_object_get(j, "map_inode"), &c->inode) &&
	       (!dev || sscanf(dev, "%8x:%8x", &c->dev_major, &c->dev_minor) == 2);
}

int img_load_contents(struct usnap_image *img)
{
	cleanup_free struct img_content *v = NULL;
	const json_t *list, *content;
	size_t n, used = 0;
	int r;

	if (img->contents)
		return 0;
	if ((r = img_load_process(img)) < 0)
		return r;
	/* Images of earlier builds have none. */
	list = json_object_get(img->process, "unlinked");
	n = json_array_size(list);
	v = calloc(n + 1, sizeof(*v));
	if (!v)
		return img_failed(img, -ENOMEM, FORMAT_PROCESS);
	for (size_t i = 0; i < n; i++) {
		content = json_object_get(json_array_get(list, i), "content");
		if (!content || json_is_null(content))
			continue;
		if (!parse_file_content(content, img->info.page_size, &v[used]) ||
		    !parse_mapped_as(json_array_get(list, i), &v[used]))
			return img_damaged(img, process_offset(img),
					   "'%s': the content of unlinked file number %zu is "
					   "impossible",
					   FORMAT_PROCESS, i);
		used++;
	}
	qsort(v, used, sizeof(*v), by_address);
	for (size_t i = 1; i < used; i++)
		if (v[i].addr - v[i - 1].addr < v[i - 1].size)
			return img_damaged(img, process_offset(img),
					   "'%s': contents of unlinked files overlap at 0x%" PRIx64,
					   FORMAT_PROCESS, v[i].addr);
	img->contents = v;
	img->nr_contents = used;
	v = NULL;
	return 0;
}

/* ---- threads ---- */

static int compare_tids(const void *a, const void *b)
{
	const int32_t *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

/* Returns 0, the TID that is there twice, or -ENOMEM. */
static int32_t find_twin(const struct img_thread *v, size_t n)
{
	cleanup_free int32_t *tids = calloc(n + 1, sizeof(*tids));

	if (!tids)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++)
		tids[i] = v[i].tid;
	qsort(tids, n, sizeof(*tids), compare_tids);
	for (size_t i = 1; i < n; i++)
		if (tids[i] == tids[i - 1])
			return tids[i];
	return 0;
}

static int load_threads(struct usnap_image *img)
{
	struct img_thread *v;
	const json_t *list;
	size_t n;
	int r;

	if (img->threads)
		return 0;
	if ((r = img_load_process(img)) < 0)
		return r;
	list = json_object_get(img->process, "threads");
	if (!json_is_array(list))
		return img_damaged(img, process_offset(img), "'%s' has no threads", FORMAT_PROCESS);
	n = json_array_size(list);
	v = calloc(n + 1, sizeof(*v));
	if (!v)
		return img_failed(img, -ENOMEM, FORMAT_PROCESS);
	for (size_t i = 0; i < n; i++) {
		const json_t *t = json_array_get(list, i);
		uint64_t tid;

		if (!parse_count(json_object_get(t, "tid"), &tid) || !tid || tid > INT32_MAX) {
			free(v);
			return img_damaged(img, process_offset(img),
					   "'%s': thread number %zu has no TID", FORMAT_PROCESS, i);
		}
		v[i].tid = (int32_t)tid;
		v[i].comm = json_string_value(json_object_get(t, "comm"));
		if (!v[i].comm)
			v[i].comm = "";
	}
	if ((r = find_twin(v, n))) {
		free(v);
		return r < 0 ? img_failed(img, r, FORMAT_PROCESS)
			     : img_damaged(img, process_offset(img),
					   "'%s': thread %d is there twice", FORMAT_PROCESS, r);
	}
	img->threads = v;
	img->nr_threads = n;
	return 0;
}

int usnap_image_get_nr_threads(struct usnap_image *img, size_t *ret)
{
	int r = img_require_open(img);

	if (r < 0 || (r = load_threads(img)) < 0)
		return r;
	*ret = img->nr_threads;
	return 0;
}

static int find_thread(struct usnap_image *img, size_t nr, struct img_thread **ret)
{
	int r = img_require_open(img);

	if (r < 0 || (r = load_threads(img)) < 0)
		return r;
	if (nr >= img->nr_threads)
		return usnap_fail(&img->err, -EINVAL, "cannot read '%s': it has no thread %zu",
				  img->name, nr);
	*ret = &img->threads[nr];
	return 0;
}

int usnap_image_get_thread(struct usnap_image *img, size_t nr, struct usnap_thread *ret,
			   size_t size)
{
	struct usnap_thread out;
	struct img_thread *t;
	int r = find_thread(img, nr, &t);

	if (r < 0)
		return r;
	out = (struct usnap_thread){.tid = t->tid, .comm = t->comm};
	img_copy_out(ret, size, &out, sizeof(out));
	return 0;
}

/* elf(5): namesz, descsz, type, then name and desc, each padded to 4. */
bool img_notes_sound(const char *notes, size_t len)
{
	while (len) {
		uint64_t name, desc;

		if (len < 12)
			return false;
		name = ALIGN_UP((uint64_t)le_get32(notes), 4);
		desc = ALIGN_UP((uint64_t)le_get32(notes + 4), 4);
		if (name + desc > len - 12)
			return false;
		notes += 12 + name + desc;
		len -= 12 + (size_t)(name + desc);
	}
	return true;
}

int usnap_image_get_notes(struct usnap_image *img, size_t nr, const void **ret, size_t *ret_len)
{
	char name[64];
	struct img_thread *t;
	struct img_member *m;
	int r = find_thread(img, nr, &t);

	if (r < 0)
		return r;
	if (!t->notes) {
		snprintf(name, sizeof(name), FORMAT_THREADS_DIR "%d.notes", t->tid);
		m = img_find_member(img, name);
		if (!m)
			return usnap_fail(&img->err, -ENOENT, "cannot read '%s': it has no '%s'",
					  img->name, name);
		if ((r = img_load_member(img, m)) < 0)
			return r;
		if (!img_notes_sound(m->data, m->size))
			return img_damaged(img, m->offset, "'%s' holds no ELF notes", name);
		t->notes = m->data;
		t->notes_len = m->size;
	}
	*ret = t->notes;
	*ret_len = t->notes_len;
	return 0;
}

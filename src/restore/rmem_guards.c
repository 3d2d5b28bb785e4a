/* Guard markers (MADV_GUARD_INSTALL); rmem_internal.h has the list of the files. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "common/util.h"
#include "restore/rjson.h"
#include "restore/rmem_internal.h"

#ifndef MADV_GUARD_INSTALL /* Linux 6.13; of files: 6.15 */
#define MADV_GUARD_INSTALL 102
#endif

enum {
	MAX_GUARDS = 1 << 22 /* of a region */
};

static int parse_word(const json_t *v, uint64_t *ret)
{
	const char *s = json_string_value(v);
	char *end;

	if (!s || strncmp(s, "0x", 2) != 0 || strspn(s + 2, "0123456789abcdef") != strlen(s + 2) ||
	    !s[2] || strlen(s) > 18)
		return -EBADMSG;
	*ret = strtoull(s + 2, &end, 16);
	return 0;
}

int rmem_parse_guards(const json_t *o, struct rmem_region *g, struct usnap_err *err)
{
	uint64_t above = g->start;
	json_t *list, *v;
	size_t i;
	int r = rjson_array(o, "guards", MAX_GUARDS, &list, err);

	if (r < 0 || !list || !json_array_size(list))
		return r;
	g->guards = calloc(json_array_size(list), sizeof(*g->guards));
	if (!g->guards)
		return usnap_fail_errno(err, -ENOMEM, "cannot restore the memory");
	json_array_foreach (list, i, v) {
		struct range *p = &g->guards[g->nr_guards++];

		if (json_array_size(v) != 2 || parse_word(json_array_get(v, 0), &p->start) < 0 ||
		    parse_word(json_array_get(v, 1), &p->end) < 0 || p->start < above ||
		    p->start >= p->end || p->end > g->end || (p->start | p->end) % 4096)
			return usnap_fail(err, -EBADMSG,
					  "cannot restore: guards[%zu] of the memory at 0x%" PRIx64
					  " in process.json is no range in it",
					  i, g->start);
		above = p->end;
	}
	return 0;
}

static bool kernel_has_guards(void)
{
	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	bool has = page != MAP_FAILED && madvise(page, 4096, MADV_GUARD_INSTALL) == 0;

	if (page != MAP_FAILED)
		munmap(page, 4096);
	return has;
}

int rmem_plan_guards(struct restore *r, struct rmem *m, struct usnap_err *err)
{
	const struct rmem_region *first = NULL;

	for (size_t i = 0; i < m->nr_regions && !first; i++)
		if (m->regions[i].nr_guards)
			first = &m->regions[i];
	if (!first || kernel_has_guards())
		return 0;
	/* Only reached when it is ignored. */
	for (size_t i = 0; i < m->nr_regions; i++)
		m->regions[i].nr_guards = 0;
	int ret = restore_problem(r, RESTORE_REFUSE, "guard-markers",
				  "memory at 0x%" PRIx64 " has guard pages (MADV_GUARD_INSTALL), "
				  "which this kernel does not know (Linux 6.13 does)",
				  first->start);
	return ret < 0 ? usnap_fail_errno(err, ret, "cannot restore the memory") : 0;
}

void rmem_install_guards(struct rmem_calls *c, const struct rmem_region *g)
{
	for (size_t i = 0; i < g->nr_guards; i++) {
		calls_room(c, 1);
		calls_add(c, false, "install guard pages in", g, SYS_madvise, g->guards[i].start,
			  g->guards[i].end - g->guards[i].start, MADV_GUARD_INSTALL, 0, 0, 0);
	}
}

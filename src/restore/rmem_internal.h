/*
 * What the files of rmem share.
 *
 *	rmem.c        the plan: regions, objects, mm of process.json
 *	rmem_files.c  the files that were mapped: still the same?
 *	rmem_vdso.c   the kernel's own code and clock pages
 *	rmem_calls.c  remote calls in batches, with what to say when one fails
 *	rmem_map.c    the regions come
 *	rmem_shm.c    shared memory without a file
 *	rmem_fill.c   their pages come
 *	ragent.c      the agent is told
 *	rmem_guards.c guard markers
 *	rmem_finish.c protections, advice, names, mm
 *
 * Regions that refer to the same inode share an object: opened or made once,
 * so that what was shared is shared again.
 */
#ifndef USNAP_RESTORE_RMEM_INTERNAL_H
#define USNAP_RESTORE_RMEM_INTERNAL_H

#include <linux/prctl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "process/maps.h"
#include "restore/rmem.h"
#include "restore/vdso.h"

/* No region ends above; with five levels of page tables. The kernel knows the real limit. */
#define RMEM_TOP ((UINT64_C(1) << 56) - 4096)
/* Where the kernel maps what asks for no address: what the builder has lies below. */
#define RMEM_OWN_TOP ((UINT64_C(1) << 47) - 4096)
/* Pages at and above are bytes of unlinked files, not memory. */
#define RMEM_CONTENT UINT64_C(0xff00000000000000)

enum region_role {
	REGION_ANON, /* no object */
	REGION_OBJECT, /* maps an object */
	REGION_KERNEL, /* made by the kernel: [vdso], [vvar] */
	REGION_VOID, /* cannot come back, and was told to be ignored: inaccessible */
	REGION_NOTHING, /* the kernel's, and everywhere: [vsyscall] */
};

struct rmem_region {
	uint64_t start, end, offset, inode, page_size, flags;
	uint32_t dev_major, dev_minor, prot, map_prot; /* PROT_*; map_prot: until it is filled */
	enum vma_kind kind;
	enum region_role role;
	bool shared, has_flags;
	bool skip; /* its stored pages are not written */
	bool by_file; /* they are written through a descriptor of its object */
	size_t object; /* REGION_OBJECT: number in objects[] */
	uint64_t nr_pages; /* stored */
	char *path; /* "" when it has none */
	struct range *guards; /* guard markers, ascending */
	size_t nr_guards;
};

enum object_how {
	OBJECT_PATH, /* opened by its name */
	OBJECT_SHARED_ANON, /* MAP_SHARED without a file */
	OBJECT_SYSV, /* a SysV segment, mapped whole */
	OBJECT_UNNAMED, /* memfd or unlinked: a descriptor of the process has it, or a memfd stands in */
};

struct rmem_object {
	enum object_how how;
	const struct rmem_region *first; /* whose path is its name */
	size_t at, nr_regions; /* in order[] */
	uint64_t bytes; /* what regions show of it: its least size */
	uint64_t page_size;
	bool huge, want_write, want_read; /* descriptors that the mappings need */
	bool memory; /* its bytes are in the image */
	bool by_file; /* some are written through a descriptor, not through a mapping */
	char *open_path; /* as the process sees it */
	struct stat checked; /* OBJECT_PATH: the file that was found good */
	/* From unlinked[]: what lies in the image. */
	bool has_content;
	uint64_t content_addr, content_bytes;
	/* While it is mapped. */
	int fd_read, fd_write; /* in the process, -1: none */
	int content_fd; /* ours, to fill it; -1 */
	bool fill_content; /* its content comes from the image */
};

enum vdso_mode {
	VDSO_NONE, /* the process had none */
	VDSO_SAME, /* this kernel's, at its address */
	VDSO_FOREIGN, /* another kernel's, whose entries lead to this kernel's */
};

struct rmem_vdso {
	enum vdso_mode mode;
	size_t region; /* number of [vdso] */
	uint64_t lead; /* bytes of clock pages before this kernel's code */
	uint64_t own_bytes; /* of the code */
	uint64_t block; /* where both begin, once they are mapped */
	unsigned char *bytes; /* VDSO_FOREIGN: the code to come, patched when block is known */
};

struct rmem {
	struct rmem_region *regions;
	size_t nr_regions;
	struct rmem_region **order; /* those of objects, together */
	struct rmem_object *objects;
	size_t nr_objects;
	struct stub_range *taken;
	size_t nr_taken;
	struct prctl_mm_map mm;
	unsigned char *auxv;
	size_t auxv_len;
	char *exe; /* path as the process sees it, NULL: unknown, or gone */
	const struct rmem_region
		*exe_region; /* of a program that is gone: shows what stands in for it */
	struct rmem_vdso vdso;
	uint64_t fill_pages; /* that are to be written */
	bool ready; /* it has an agent of its own */
};

static inline bool region_has(const struct rmem_region *g, enum vma_flag f)
{
	return g->flags >> f & 1;
}

/* ---- rmem.c ---- */

/* Whether g is mapped by a descriptor that can write. */
static inline bool region_writes_file(const struct rmem_region *g)
{
	return g->shared && ((g->prot & PROT_WRITE) || !g->has_flags || region_has(g, VMF_MW));
}

/* The region that holds addr, or NULL. */
struct rmem_region *rmem_find(struct rmem *m, uint64_t addr);
/* An address for len bytes that no region has and the stub has not; 0: none. */
uint64_t rmem_gap(const struct rmem *m, const struct stub *s, uint64_t len);
/* "'/usr/lib/libc.so.6' at 0x7f..", for messages. */
const char *rmem_name(const struct rmem_region *g, char buf[160]);

/* ---- rmem_files.c ---- */

/* Groups the regions by inode, decides how each object comes, checks files. */
int rmem_plan_objects(struct restore *r, struct rmem *m, struct usnap_err *err);
/* Whether a descriptor is of the file that was found good when the restore was planned. */
bool rmem_is_checked(const struct rmem_object *ob, int fd);

/* ---- rmem_vdso.c ---- */

int rmem_plan_vdso(struct restore *r, struct rmem *m, struct usnap_err *err);
int rmem_map_vdso(struct restore *r, struct rmem *m, struct usnap_err *err);
int rmem_finish_vdso(struct restore *r, struct rmem *m, struct usnap_err *err);

/* ---- rmem_guards.c ---- */

/* guards of a region whose bounds are known to be sound. */
int rmem_parse_guards(const json_t *o, struct rmem_region *g, struct usnap_err *err);
int rmem_plan_guards(struct restore *r, struct rmem *m, struct usnap_err *err);

/* ---- ragent.c ---- */

/* When the pages are there, and all is writable yet. */
int rmem_tell_agent(struct restore *r, struct usnap_err *err);

/* ---- rmem_calls.c ---- */

enum {
	RMEM_BATCH_CALLS = 512
};

/* A batch and what each call in it is about. */
struct rmem_calls {
	struct restore *r;
	struct usnap_err *err;
	struct stub_batch batch;
	struct {
		const char *verb;
		const struct rmem_region *region;
	} about[RMEM_BATCH_CALLS];
	int failed; /* remembered: what is added later is dropped */
};

void calls_begin(struct rmem_calls *c, struct restore *r, struct usnap_err *err);
/* Runs what has been added when there is no room for nr more calls. */
void calls_room(struct rmem_calls *c, size_t nr);
/* Adds "cannot <verb> <region>". may_fail: as stub_try(). Returns its number in the batch. */
int calls_add(struct rmem_calls *c, bool may_fail, const char *verb,
	      const struct rmem_region *region, long nr, uint64_t a0, uint64_t a1, uint64_t a2,
	      uint64_t a3, uint64_t a4, uint64_t a5);
/* Runs what was added, keeps the results until the next calls_reset(). */
int calls_run(struct rmem_calls *c);
void calls_reset(struct rmem_calls *c);

/* ---- rmem_guards.c, for rmem_finish.c ---- */

void rmem_install_guards(struct rmem_calls *c, const struct rmem_region *g);

/* ---- rmem_map.c, rmem_shm.c ---- */

int rmem_map_flags(const struct rmem_region *g);
/* Advice that decides how pages come: before they do. */
void rmem_advise_early(struct rmem_calls *c, const struct rmem_region *g);
/* Maps every region of such an object. Failures stay in c. */
void rmem_map_shared(struct rmem_calls *c, struct rmem *m, const struct rmem_object *ob);
void rmem_map_sysv(struct rmem_calls *c, struct rmem *m, const struct rmem_object *ob);

#endif

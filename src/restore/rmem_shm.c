/* Shared memory without a file; rmem_internal.h has the list of the files. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/util.h"
#include "restore/rmem_internal.h"

/* Memory without a file: mapped whole at a place of its own, then duplicated piece by piece.
 * mremap(2): an old_size of 0 maps shared pages once more. */
void rmem_map_shared(struct rmem_calls *c, struct rmem *m, const struct rmem_object *ob)
{
	const struct rmem_region *g = ob->first;
	uint64_t len = ob->bytes;

	for (size_t i = ob->at; i < ob->at + ob->nr_regions; i++)
		len = MAX(len, m->order[i]->offset + (m->order[i]->end - m->order[i]->start));
	len = ALIGN_UP(MIN(len, RMEM_TOP), UINT64_C(4096));
	uint64_t at = rmem_gap(m, c->r->stub, len);
	if (!at) {
		c->failed = usnap_fail(c->err, -ENOMEM,
				       "cannot map memory at 0x%" PRIx64
				       ": there is no room to map all of it at first",
				       g->start);
		return;
	}
	calls_room(c, 1);
	calls_add(c, false, "map", g, SYS_mmap, at, len, PROT_READ | PROT_WRITE,
		  (uint64_t)rmem_map_flags(g) | MAP_SHARED | MAP_ANONYMOUS, (uint64_t)-1, 0);
	for (size_t i = ob->at; i < ob->at + ob->nr_regions; i++) {
		g = m->order[i];
		calls_room(c, 2);
		calls_add(c, false, "map", g, SYS_mremap, at + g->offset, 0, g->end - g->start,
			  MREMAP_MAYMOVE | MREMAP_FIXED, g->start, 0);
		if (g->map_prot != (PROT_READ | PROT_WRITE))
			calls_add(c, false, "protect", g, SYS_mprotect, g->start, g->end - g->start,
				  g->map_prot, 0, 0, 0);
		rmem_advise_early(c, g);
	}
	calls_room(c, 1);
	calls_add(c, false, "map", ob->first, SYS_munmap, at, len, 0, 0, 0, 0);
}

/* Whether the segment is still there: the identifier is the inode, the key is in the name. After a
 * reboot both can be those of somebody else's, which is younger than the image. */
static bool segment_exists(const struct restore *r, const struct rmem_region *g, uint64_t len)
{
	int64_t t0 = (int64_t)(r->info.t0_realtime_ns / 1000000000u);
	struct shmid_ds ds;
	unsigned key;

	if (g->inode > INT32_MAX || shmctl((int)g->inode, IPC_STAT, &ds) < 0 || ds.shm_ctime > t0)
		return false;
	return sscanf(g->path, "/SYSV%8x", &key) == 1 && (unsigned)ds.shm_perm.__key == key &&
	       ALIGN_UP((uint64_t)ds.shm_segsz, 4096) == len;
}

/* Attached, so that shmdt(2) and shmctl(2) find it. One that has gone with its last process comes
 * back as one that nobody else can attach to, and goes again. */
void rmem_map_sysv(struct rmem_calls *c, struct rmem *m, const struct rmem_object *ob)
{
	const struct rmem_region *g = ob->first;
	const uint64_t len = g->end - g->start;
	bool exists = segment_exists(c->r, g, len), clear = exists;
	uint64_t id = g->inode;

	if (!exists) {
		if (calls_run(c) < 0)
			return;
		calls_reset(c);
		int i = calls_add(c, false, "make", g, SYS_shmget, IPC_PRIVATE, len,
				  IPC_CREAT | 0600, 0, 0, 0);
		if (calls_run(c) < 0)
			return;
		id = (uint64_t)c->batch.calls[i].ret;
		calls_reset(c);
	}
	for (size_t k = ob->at; k < ob->at + ob->nr_regions; k++) {
		int flags = 0;

		g = m->order[k];
		if (!region_writes_file(g))
			flags |= SHM_RDONLY;
		if (g->prot & PROT_EXEC)
			flags |= SHM_EXEC;
		calls_room(c, 3);
		calls_add(c, false, "attach", g, SYS_shmat, id, g->start, (uint64_t)flags, 0, 0, 0);
		/* What is not stored was zero. */
		if (clear && region_writes_file(g)) {
			calls_add(c, false, "clear", g, SYS_madvise, g->start, len, MADV_REMOVE, 0,
				  0, 0);
			clear = false;
		}
		calls_add(c, false, "protect", g, SYS_mprotect, g->start, len, g->map_prot, 0, 0,
			  0);
	}
	calls_room(c, 1);
	if (!exists)
		calls_add(c, false, "remove", ob->first, SYS_shmctl, id, IPC_RMID, 0, 0, 0, 0);
}

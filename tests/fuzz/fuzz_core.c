/*
 * A hostile image's process.json, thread notes and memory layout against the
 * export of a core file: nothing may be read out of bounds, and what comes
 * out is a core file whose headers hold together.
 *
 * Input: u16 length of notes, notes, u8 number of regions, regions of 12
 * bytes, u8 number of stored pages, pages of 4 bytes, process.json.
 */
#include <assert.h>
#include <elf.h>
#include <errno.h>
#include <jansson.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/io.h"
#include "common/le.h"
#include "common/util.h"
#include "export/core.h"
#include "export/coreprocess.h"

#define PAGE 4096u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
	const uint8_t *p;
	size_t left;
};

static const uint8_t *take(struct input *in, size_t n)
{
	const uint8_t *p = in->p;

	if (n > in->left)
		return NULL;
	in->p += n;
	in->left -= n;
	return p;
}

struct memory {
	uint64_t pages[256];
	size_t n;
};

static int next_run(void *memory, uint64_t from, uint64_t to, uint64_t *ret_start,
		    uint64_t *ret_end, struct usnap_err *err)
{
	const struct memory *m = memory;
	int found = 0;

	for (size_t i = 0; i < m->n; i++) {
		uint64_t at = m->pages[i];

		if (at >= from && at < to && (!found || at < *ret_start)) {
			*ret_start = at;
			*ret_end = at + PAGE;
			found = 1;
		}
	}
	return found;
}

static int read_memory(void *memory, uint64_t addr, void *buf, size_t len, struct usnap_err *err)
{
	memset(buf, (int)(addr >> 12), len);
	return 0;
}

/* Addresses near each other and at both ends of the address space. */
static uint64_t widen(uint32_t v)
{
	return (uint64_t)(v >> 4) << (v & 1 ? 12 : v & 2 ? 36 : 20);
}

static void check_core(int fd)
{
	uint64_t len = (uint64_t)lseek(fd, 0, SEEK_END);
	Elf64_Ehdr eh;
	Elf64_Phdr ph;

	assert(io_pread_full(fd, &eh, sizeof(eh), 0) == 0);
	assert(memcmp(eh.e_ident, ELFMAG, SELFMAG) == 0);
	assert(eh.e_phnum >= 1);
	for (unsigned i = 0; i < eh.e_phnum; i++) {
		assert(io_pread_full(fd, &ph, sizeof(ph), eh.e_phoff + i * sizeof(ph)) == 0);
		assert(ph.p_type == (i ? PT_LOAD : PT_NOTE));
		assert(ph.p_offset <= len && ph.p_filesz <= len - ph.p_offset);
		assert(!i || ph.p_filesz <= ph.p_memsz);
		assert(!i || (ph.p_offset - ph.p_vaddr) % PAGE == 0);
	}
}

static void run(const struct core_description *d)
{
	for (int stream = 0; stream < 2; stream++) {
		struct usnap_err err = {0};
		cleanup_fd int fd = memfd_create("core", MFD_CLOEXEC);
		struct core_options o = {.fd = fd, .stream = stream, .output = "core"};

		assert(fd >= 0);
		if (core_write(d, &o, &err) == 0)
			check_core(fd);
		else
			assert(err.code < 0 && err.text[0]);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	struct core_region regions[256] = {0};
	struct core_process_facts facts;
	struct core_thread threads[2];
	struct memory m = {.n = 0};
	struct usnap_err err = {0};
	const uint8_t *p, *notes;
	const char *why = NULL;
	size_t nr_regions, notes_len, at;

	if (!(p = take(&in, 2)))
		return 0;
	notes_len = le_get16(p);
	if (!(notes = take(&in, notes_len)) || !(p = take(&in, 1)))
		return 0;
	nr_regions = *p;
	for (size_t i = 0; i < nr_regions; i++) {
		if (!(p = take(&in, 12)))
			return 0;
		regions[i].start = widen(le_get32(p));
		regions[i].end = regions[i].start + widen(le_get32(p + 4));
		regions[i].prot = p[8] & 7;
		regions[i].contents = p[9] % 3;
		regions[i].excluded = p[10] & 1;
		regions[i].inode = p[11];
		regions[i].offset = (uint64_t)p[10] << 56;
		regions[i].path = p[11] & 1 ? "/proc/self/exe" : p[11] & 2 ? "/" : NULL;
	}
	if (!(p = take(&in, 1)))
		return 0;
	m.n = *p;
	for (size_t i = 0; i < m.n; i++) {
		if (!(p = take(&in, 4)))
			return 0;
		m.pages[i] = widen(le_get32(p));
	}

	cleanup_free unsigned char *exact = malloc(notes_len + !notes_len);
	memcpy(exact, notes, notes_len);
	uint32_t tid = notes_len >= 56 ? le_get32(notes + 52) : 0;
	json_t *root = json_loadb((const char *)in.p, in.left, 0, NULL);
	int r = core_process_parse(&facts, root, "x", &err);
	if (r)
		assert(r == -EBADMSG && err.text[0]);
	else if ((r = core_thread_check(&threads[0], tid, exact, notes_len, &at, &why)) != 0)
		assert(r == -EBADMSG && why && at <= notes_len);
	if (!r) {
		threads[1] = threads[0];
		const struct core_description d = {
			.name = "x",
			.page_size = PAGE,
			.process = facts.process,
			.auxv = facts.auxv,
			.threads = threads,
			.nr_threads = 2,
			.regions = regions,
			.nr_regions = nr_regions,
			.memory = &m,
			.next_run = next_run,
			.read = read_memory,
		};
		run(&d);
	}
	json_decref(root);
	return 0;
}

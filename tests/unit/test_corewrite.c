/* Whole core files, from memory made up here. */
#include <criterion/criterion.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/procfs.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "common/io.h"
#include "common/util.h"
#include "export/core.h"

#define PAGE 4096u
#define GIB ((uint64_t)1 << 30)

/* Stored pages; the byte of a page is its number in the table + 1. */
struct fake {
	const uint64_t *pages;
	size_t n;
};

static int fake_next_run(void *memory, uint64_t from, uint64_t to, uint64_t *ret_start,
			 uint64_t *ret_end, struct usnap_err *err)
{
	const struct fake *f = memory;

	for (size_t i = 0; i < f->n; i++) {
		if (f->pages[i] >= from && f->pages[i] < to) {
			*ret_start = f->pages[i];
			*ret_end = f->pages[i] + PAGE;
			return 1;
		}
	}
	return 0;
}

static int fake_read(void *memory, uint64_t addr, void *buf, size_t len, struct usnap_err *err)
{
	const struct fake *f = memory;

	cr_assert_eq(len, PAGE);
	for (size_t i = 0; i < f->n; i++) {
		if (f->pages[i] == addr) {
			memset(buf, (int)i + 1, len);
			return 0;
		}
	}
	return usnap_fail(err, -EIO, "cannot read: no such page");
}

static unsigned char thread_notes[sizeof(Elf64_Nhdr) + 8 + sizeof(struct elf_prstatus)];
static struct core_thread thread;

static struct core_description describe(struct fake *f, const struct core_region *regions, size_t n)
{
	struct core_notes notes = {0};
	struct elf_prstatus st = {.pr_pid = 7};
	const char *why;
	size_t at;

	cr_assert_eq(core_notes_add(&notes, "CORE", NT_PRSTATUS, &st, sizeof(st)), 0);
	cr_assert_eq(notes.len, sizeof(thread_notes));
	memcpy(thread_notes, notes.data, notes.len);
	core_notes_free(&notes);
	cr_assert_eq(core_thread_check(&thread, 7, thread_notes, sizeof(thread_notes), &at, &why),
		     0);
	return (struct core_description){
		.name = "test.usnap",
		.page_size = PAGE,
		.t0_ns = wall_ns(),
		.process = {.pid = 7, .comm = "test", .args = "test"},
		.threads = &thread,
		.nr_threads = 1,
		.regions = regions,
		.nr_regions = n,
		.memory = f,
		.next_run = fake_next_run,
		.read = fake_read,
	};
}

struct result {
	int r;
	struct usnap_err err;
	unsigned char *core;
	size_t len;
	uint64_t blocks_bytes;
	Elf64_Phdr *load;
	size_t nr_load;
};

/* Into an unnamed file, read back; by way of a pipe when stream is set. */
static struct result export(const struct core_description *d, bool stream)
{
	struct result res = {0};
	struct core_options o = {.stream = stream, .output = "test.core"};
	struct stat st;

	o.fd = memfd_create("core", 0);
	cr_assert_geq(o.fd, 0);
	res.r = core_write(d, &o, &res.err);
	cr_assert_eq(fstat(o.fd, &st), 0);
	res.blocks_bytes = (uint64_t)st.st_blocks * 512;
	res.len = (size_t)st.st_size;
	res.core = mmap(NULL, res.len + 1, PROT_READ, MAP_PRIVATE, o.fd, 0);
	cr_assert_neq(res.core, MAP_FAILED);
	close(o.fd);
	if (res.r)
		return res;

	const Elf64_Ehdr *eh = (const void *)res.core;
	const Elf64_Phdr *ph = (const void *)(res.core + eh->e_phoff);
	cr_assert_eq(ph[0].p_type, (uint32_t)PT_NOTE);
	res.load = (Elf64_Phdr *)(ph + 1);
	res.nr_load = eh->e_phnum - 1u;
	for (size_t i = 0; i < res.nr_load; i++) {
		cr_assert_leq(res.load[i].p_offset + res.load[i].p_filesz, res.len);
		cr_assert_leq(res.load[i].p_filesz, res.load[i].p_memsz);
		cr_assert_eq(res.load[i].p_offset % PAGE, 0u);
	}
	return res;
}

/* The byte of the process at addr, -1 when the core does not hold it. */
static int byte_at(const struct result *res, uint64_t addr)
{
	for (size_t i = 0; i < res->nr_load; i++) {
		const Elf64_Phdr *p = &res->load[i];

		if (addr >= p->p_vaddr && addr - p->p_vaddr < p->p_filesz)
			return res->core[p->p_offset + (addr - p->p_vaddr)];
	}
	return -1;
}

Test(corewrite, absent_pages_between_stored_ones_are_zero)
{
	static const uint64_t pages[] = {0x10000, 0x12000, 0x13000, 0x22000};
	static const struct core_region regions[] = {
		{.start = 0x10000, .end = 0x18000, .prot = PROT_READ | PROT_WRITE},
		{.start = 0x20000, .end = 0x24000, .prot = PROT_READ},
		{.start = 0x30000, .end = 0x34000, .prot = PROT_READ},
	};
	struct fake f = {pages, ARRAY_SIZE(pages)};
	struct core_description d = describe(&f, regions, ARRAY_SIZE(regions));

	for (int stream = 0; stream < 2; stream++) {
		struct result res = export(&d, stream);

		cr_assert_eq(res.r, 0, "%s", res.err.text);
		cr_assert_eq(res.nr_load, 3u);
		cr_assert_eq(byte_at(&res, 0x10000), 1);
		cr_assert_eq(byte_at(&res, 0x11000), 0);
		cr_assert_eq(byte_at(&res, 0x12fff), 2);
		cr_assert_eq(byte_at(&res, 0x13000), 3);
		cr_assert_eq(byte_at(&res, 0x17fff), 0);
		cr_assert_eq(byte_at(&res, 0x20000), 0);
		cr_assert_eq(byte_at(&res, 0x22001), 4);
		cr_assert_eq(res.load[2].p_filesz, 0u);
		cr_assert_eq(res.load[2].p_memsz, 0x4000u);
	}
}

Test(corewrite, a_reservation_costs_what_is_populated)
{
	const uint64_t base = 0x100000000000,
		       pages[] = {base, base + 512 * GIB, base + 1024 * GIB - PAGE};
	const struct core_region regions[] = {
		{.start = base, .end = base + 1024 * GIB, .prot = PROT_READ | PROT_WRITE},
	};
	struct fake f = {pages, ARRAY_SIZE(pages)};
	struct core_description d = describe(&f, regions, 1);

	for (int stream = 0; stream < 2; stream++) {
		struct result res = export(&d, stream);

		cr_assert_eq(res.r, 0, "%s", res.err.text);
		cr_assert_eq(res.nr_load, 3u);
		cr_assert_lt(res.len, 64u << 10);
		cr_assert_eq(byte_at(&res, base + 512 * GIB), 2);
		cr_assert_eq(byte_at(&res, base + 1024 * GIB - 1), 3);
		uint64_t covered = 0;
		for (size_t i = 0; i < 3; i++)
			covered += res.load[i].p_memsz;
		cr_assert_eq(covered, 1024 * GIB);
	}
}

Test(corewrite, a_gap_is_a_hole_in_a_file)
{
	static const uint64_t pages[] = {0x1000000, 0x1400000};
	static const struct core_region regions[] = {{.start = 0x1000000, .end = 0x1800000}};
	struct fake f = {pages, ARRAY_SIZE(pages)};
	struct core_description d = describe(&f, regions, 1);
	struct result res = export(&d, false);

	cr_assert_eq(res.r, 0);
	cr_assert_eq(res.nr_load, 1u);
	cr_assert_eq(res.load[0].p_filesz, 0x800000u);
	cr_assert_lt(res.blocks_bytes, 64u << 10);
}

Test(corewrite, what_is_unknown_or_excluded_stays_out)
{
	static const uint64_t pages[] = {0x10000, 0x12000, 0x20000};
	static const struct core_region regions[] = {
		{.start = 0x10000, .end = 0x14000, .contents = CORE_ABSENT_UNKNOWN},
		{.start = 0x20000, .end = 0x22000, .excluded = true},
	};
	struct fake f = {pages, ARRAY_SIZE(pages)};
	struct core_description d = describe(&f, regions, ARRAY_SIZE(regions));
	struct result res = export(&d, false);

	cr_assert_eq(res.r, 0);
	cr_assert_eq(res.nr_load, 3u);
	cr_assert_eq(byte_at(&res, 0x10000), 1);
	cr_assert_eq(byte_at(&res, 0x11000), -1);
	cr_assert_eq(byte_at(&res, 0x12000), 2);
	cr_assert_eq(byte_at(&res, 0x13000), -1);
	cr_assert_eq(byte_at(&res, 0x20000), -1);
}

/* A file of five pages: "AAAA...", "BBBB..." and so on; the first begins like
 * an ELF file. It has aged enough when T0 is an hour from now. */
static void make_file(const char *path, struct stat *ret)
{
	cleanup_fd int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	char page[PAGE];

	cr_assert_geq(fd, 0);
	for (int i = 0; i < 5; i++) {
		memset(page, 'A' + i, sizeof(page));
		if (i == 0)
			memcpy(page, ELFMAG, SELFMAG);
		cr_assert_eq(io_write_full(fd, page, sizeof(page)), 0);
	}
	cr_assert_eq(fstat(fd, ret), 0);
}

static struct core_region file_region(uint64_t start, uint64_t end, uint64_t offset,
				      const char *path, const struct stat *st)
{
	return (struct core_region){
		.start = start,
		.end = end,
		.offset = offset,
		.inode = st->st_ino,
		.dev_major = major(st->st_dev),
		.dev_minor = minor(st->st_dev),
		.prot = PROT_READ,
		.contents = CORE_ABSENT_FILE,
		.path = path,
	};
}

Test(corewrite, written_regions_of_a_file_are_completed_from_it)
{
	char path[] = "/tmp/usnap-corewrite.XXXXXX";
	static const uint64_t pages[] = {0x21000};
	struct fake f = {pages, ARRAY_SIZE(pages)};
	struct stat st;

	close(mkstemp(path));
	make_file(path, &st);
	struct core_region regions[] = {
		file_region(0x10000, 0x13000, 0, path, &st), /* text */
		file_region(0x20000, 0x23000, 0x1000, path, &st), /* data, one page written */
		file_region(0x30000, 0x33000, 0x4000, path, &st), /* beyond the end */
	};
	struct core_description d = describe(&f, regions, ARRAY_SIZE(regions));
	d.t0_ns = wall_ns() + 3600 * (uint64_t)1000000000;
	struct result res = export(&d, false);

	cr_assert_eq(res.r, 0, "%s", res.err.text);
	cr_assert_eq(res.nr_load, 3u);
	cr_assert_eq(res.load[0].p_filesz, PAGE, "the ELF header's page");
	cr_assert_eq(byte_at(&res, 0x10000), ELFMAG0);
	cr_assert_eq(byte_at(&res, 0x20000), 'B');
	cr_assert_eq(byte_at(&res, 0x21000), 1);
	cr_assert_eq(byte_at(&res, 0x22000), 'D');
	cr_assert_eq(byte_at(&res, 0x30000), -1);

	/* The same file, changed since: only what is stored. */
	d.t0_ns = wall_ns() - 3600 * (uint64_t)1000000000;
	res = export(&d, false);
	cr_assert_eq(res.r, 0, "%s", res.err.text);
	cr_assert_eq(byte_at(&res, 0x10000), -1);
	cr_assert_eq(byte_at(&res, 0x20000), -1);
	cr_assert_eq(byte_at(&res, 0x21000), 1);
	cr_assert_eq(byte_at(&res, 0x22000), -1);

	/* Another file of the same name. */
	d.t0_ns = wall_ns() + 3600 * (uint64_t)1000000000;
	for (size_t i = 0; i < ARRAY_SIZE(regions); i++)
		regions[i].inode++;
	res = export(&d, false);
	cr_assert_eq(res.r, 0, "%s", res.err.text);
	cr_assert_eq(byte_at(&res, 0x20000), -1);
	cr_assert_eq(byte_at(&res, 0x21000), 1);
	unlink(path);
}

Test(corewrite, beyond_the_end_of_the_file_a_mapping_is_zero)
{
	char path[] = "/tmp/usnap-corewrite.XXXXXX";
	static const uint64_t pages[] = {0x20000};
	struct fake f = {pages, ARRAY_SIZE(pages)};
	struct stat st;

	close(mkstemp(path));
	make_file(path, &st);
	struct core_region regions[] = {file_region(0x20000, 0x23000, 0x3000, path, &st)};
	struct core_description d = describe(&f, regions, 1);
	d.t0_ns = wall_ns() + 3600 * (uint64_t)1000000000;
	struct result res = export(&d, false);

	cr_assert_eq(res.r, 0, "%s", res.err.text);
	cr_assert_eq(byte_at(&res, 0x20000), 1);
	cr_assert_eq(byte_at(&res, 0x21000), 'E');
	cr_assert_eq(byte_at(&res, 0x22000), 0);
	unlink(path);
}

Test(corewrite, overlapping_regions_are_refused)
{
	static const struct core_region regions[] = {
		{.start = 0x10000, .end = 0x14000},
		{.start = 0x12000, .end = 0x16000},
	};
	struct fake f = {NULL, 0};
	struct core_description d = describe(&f, regions, ARRAY_SIZE(regions));
	struct result res = export(&d, false);

	cr_assert_eq(res.r, -EBADMSG);
	cr_assert_not_null(strstr(res.err.text, "0x12000-0x16000"), "%s", res.err.text);
}

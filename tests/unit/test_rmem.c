/* The plan for the memory, out of process.json that says what it likes. */
#include <criterion/criterion.h>
#include <errno.h>
#include <jansson.h>
#include <uffd-snap.h>

#include "image/image.h"
#include "imagefixture.h"
#include "restore/rmem.h"
#include "restore/rmem_internal.h"

#define MM                                                                                         \
	"\"mm\":{\"start_code\":\"0x1000\",\"end_code\":\"0x2000\",\"start_data\":\"0x3000\","     \
	"\"end_data\":\"0x4000\",\"start_brk\":\"0x10000000\",\"brk\":\"0x10040000\","             \
	"\"start_stack\":\"0x7ffd0000\",\"arg_start\":\"0x7ffd1000\",\"arg_end\":\"0x7ffd1010\","  \
	"\"env_start\":\"0x7ffd1010\",\"env_end\":\"0x7ffd1020\"}"
#define ANON(start, end)                                                                           \
	"{\"start\":\"" start "\",\"end\":\"" end "\",\"prot\":\"rw-\",\"kind\":\"anonymous\"}"
#define GUARDED(list)                                                                              \
	"{\"start\":\"0x10000000\",\"end\":\"0x10040000\",\"prot\":\"rw-\","                       \
	"\"kind\":\"anonymous\",\"guards\":[" list "]}"
#define HEAP_MAP ANON("0x10000000", "0x10040000")

struct planned {
	struct restore_options o;
	struct restore r;
	struct usnap_err err;
	int ret;
};

static void plan(struct planned *p, const char *process)
{
	int fd = fixture_image_of(process);

	p->o.image = "test";
	p->r.o = &p->o;
	p->r.img = usnap_image_new();
	cr_assert_eq(usnap_image_open_fd(p->r.img, fd, "test"), 0);
	close(fd);
	cr_assert_eq(usnap_image_get_info(p->r.img, &p->r.info, sizeof(p->r.info)), 0);
	cr_assert_eq(img_load_process(p->r.img), 0, "%s", usnap_image_error(p->r.img));
	p->r.process = p->r.img->process;
	p->ret = rmem_plan(&p->r, &p->err);
}

static void forget(struct planned *p)
{
	rmem_free(p->r.mem);
	problems_free(&p->r);
	usnap_image_free(p->r.img);
}

Test(rmem, takes_what_process_json_lists)
{
	struct planned p = {0};
	size_t n;

	plan(&p, "{\"maps\":[" HEAP_MAP "," ANON("0x20000000", "0x20001000") "]," MM "}");
	cr_assert_eq(p.ret, 0, "%s", p.err.text);
	const struct stub_range *taken = rmem_taken(&p.r, &n);
	cr_assert_eq(n, 2);
	cr_assert_eq(taken[0].start, HEAP);
	cr_assert_eq(taken[1].end, 0x20001000);
	cr_assert_eq(p.r.mem->regions[0].nr_pages, 3);
	cr_assert_eq(p.r.mem->fill_pages, 3);
	cr_assert_eq(p.r.mem->mm.brk, 0x10040000);
	cr_assert(rmem_find(p.r.mem, 0x10001000) == &p.r.mem->regions[0]);
	cr_assert_null(rmem_find(p.r.mem, 0x10040000));
	forget(&p);
}

Test(rmem, refuses_regions_that_cannot_be)
{
	static const struct {
		const char *process;
		int code;
	} cases[] = {
		{"{" MM "}", -EBADMSG},
		{"{\"maps\":[]," MM "}", -EBADMSG},
		{"{\"maps\":{}," MM "}", -EBADMSG},
		{"{\"maps\":[7]," MM "}", -EBADMSG},
		{"{\"maps\":[" HEAP_MAP "]}", -EBADMSG},
		{"{\"maps\":[" HEAP_MAP "],\"mm\":{\"brk\":\"0x1\"}}", -EBADMSG},
		/* overlap, disorder, emptiness, no pages */
		{"{\"maps\":[" HEAP_MAP "," ANON("0x1003f000", "0x10050000") "]," MM "}", -EBADMSG},
		{"{\"maps\":[" ANON("0x20000000", "0x20001000") "," HEAP_MAP "]," MM "}", -EBADMSG},
		{"{\"maps\":[" HEAP_MAP "," ANON("0x20000000", "0x20000000") "]," MM "}", -EBADMSG},
		{"{\"maps\":[" HEAP_MAP "," ANON("0x20001000", "0x20000000") "]," MM "}", -EBADMSG},
		{"{\"maps\":[" HEAP_MAP "," ANON("0x20000001", "0x20001000") "]," MM "}", -EBADMSG},
		{"{\"maps\":[" HEAP_MAP "," ANON("0x20000000", "0x20000fff") "]," MM "}", -EBADMSG},
		/* beyond user space */
		{"{\"maps\":[" HEAP_MAP "," ANON("0x7f0000000000", "0xfffffffffffff000") "]," MM
											 "}",
		 -EBADMSG},
		{"{\"maps\":[" HEAP_MAP "," ANON("0x20000000", "0x10000000000000000") "]," MM "}",
		 -EBADMSG},
		/* pages of no region */
		{"{\"maps\":[" ANON("0x20000000", "0x20001000") "]," MM "}", -EBADMSG},
		{"{\"maps\":[" ANON("0x10000000", "0x10002000") "]," MM "}", -EBADMSG},
		/* guard markers: out of the region, in disorder, no pages, no pairs */
		{"{\"maps\":[" GUARDED("[\"0x1000f000\",\"0x10041000\"]") "]," MM "}", -EBADMSG},
		{"{\"maps\":[" GUARDED("[\"0xffff000\",\"0x10001000\"]") "]," MM "}", -EBADMSG},
		{"{\"maps\":[" GUARDED("[\"0x10005000\",\"0x10006000\"],"
				       "[\"0x10004000\",\"0x10005000\"]") "]," MM "}",
		 -EBADMSG},
		{"{\"maps\":[" GUARDED("[\"0x10005000\",\"0x10005000\"]") "]," MM "}", -EBADMSG},
		{"{\"maps\":[" GUARDED("[\"0x10005000\",\"0x10005800\"]") "]," MM "}", -EBADMSG},
		{"{\"maps\":[" GUARDED("[\"0x10005000\"]") "]," MM "}", -EBADMSG},
		{"{\"maps\":[" GUARDED("[268455936,268460032]") "]," MM "}", -EBADMSG},
		{"{\"maps\":[" GUARDED("7") "]," MM "}", -EBADMSG},
		/* pages of a file that is mapped shared */
		{"{\"maps\":[{\"start\":\"0x10000000\",\"end\":\"0x10040000\",\"prot\":\"rw-\","
		 "\"kind\":\"file-shared\",\"shared\":true,\"path\":\"/etc/hostname\"}]," MM "}",
		 -EBADMSG},
		/* fields */
		{"{\"maps\":[{\"start\":\"0x10000000\",\"end\":\"0x10040000\",\"prot\":\"rwxp\","
		 "\"kind\":\"anonymous\"}]," MM "}",
		 -EBADMSG},
		{"{\"maps\":[{\"start\":\"0x10000000\",\"end\":\"0x10040000\",\"prot\":\"rw-\","
		 "\"kind\":\"anonymous\",\"dev\":\"fe\"}]," MM "}",
		 -EBADMSG},
		{"{\"maps\":[{\"start\":\"0x10000000\",\"end\":\"0x10040000\",\"prot\":\"rw-\","
		 "\"kind\":\"anonymous\",\"shared\":true}]," MM "}",
		 -EBADMSG},
		{"{\"maps\":[{\"start\":\"0x10000000\",\"end\":\"0x10040000\",\"prot\":\"rw-\","
		 "\"kind\":\"file\",\"path\":\"/x\",\"offset\":4095}]," MM "}",
		 -EBADMSG},
		{"{\"maps\":[{\"start\":\"0x10000000\",\"end\":\"0x10040000\",\"prot\":\"rw-\","
		 "\"kind\":\"file\",\"path\":\"/x\",\"offset\":9223372036854771712}]," MM "}",
		 -EBADMSG},
		{"{\"maps\":[{\"start\":\"0x10000000\",\"end\":\"0x10040000\",\"prot\":\"rw-\","
		 "\"kind\":\"anonymous\",\"page_size\":12288}]," MM "}",
		 -EBADMSG},
		{"{\"maps\":[{\"start\":\"0x10000000\",\"end\":\"0x10040000\",\"prot\":\"rw-\","
		 "\"kind\":\"hugetlb\",\"path\":\"/anon_hugepage (deleted)\",\"page_size\":2097152}"
		 "]," MM "}",
		 -EBADMSG},
		{"{\"maps\":[{\"start\":\"0x10000000\",\"end\":\"0x10040000\",\"prot\":\"rw-\","
		 "\"kind\":\"quantum\"}]," MM "}",
		 -EPROTONOSUPPORT},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct planned p = {0};

		plan(&p, cases[i].process);
		cr_assert_eq(p.ret, cases[i].code, "case %zu: %d: %s", i, p.ret, p.err.text);
		cr_assert(p.err.text[0]);
		forget(&p);
	}
}

Test(rmem, takes_guard_markers_as_they_are_listed)
{
	struct planned p = {0};

	plan(&p, "{\"maps\":[" GUARDED("[\"0x10005000\",\"0x10007000\"],"
				       "[\"0x1003f000\",\"0x10040000\"]") "]," MM "}");
	cr_assert_eq(p.ret, 0, "%s", p.err.text);
	/* None: this kernel cannot have them. */
	const struct rmem_region *g = p.r.mem->regions;
	cr_assert(g->nr_guards == 2 || p.r.nr_problems);
	cr_assert_eq(g->guards[0].start, 0x10005000);
	cr_assert_eq(g->guards[1].end, 0x10040000);
	forget(&p);
}

Test(rmem, says_which_mapped_file_is_missing_or_another)
{
	struct planned p = {0};

	plan(&p, "{\"maps\":[" HEAP_MAP
		 ",{\"start\":\"0x20000000\",\"end\":\"0x20001000\",\"prot\":\"r--\",\"inode\":5,"
		 "\"kind\":\"file\",\"path\":\"/no/such/file\"},"
		 "{\"start\":\"0x30000000\",\"end\":\"0x30001000\",\"prot\":\"r--\",\"inode\":6,"
		 "\"kind\":\"file\",\"path\":\"/etc/passwd\"}],"
		 "\"mapped_files\":[{\"path\":\"/etc/passwd\",\"size\":1,\"mtime_ns\":1}]," MM "}");
	cr_assert_eq(p.ret, 0, "%s", p.err.text);
	cr_assert_eq(p.r.nr_problems, 2);
	cr_assert_str_eq(p.r.problems[0].kind, "missing-file");
	cr_assert_eq(p.r.problems[0].severity, RESTORE_FATAL);
	cr_assert_str_eq(p.r.problems[1].kind, "changed-file");
	cr_assert_eq(p.r.problems[1].severity, RESTORE_REFUSE);
	forget(&p);
}

Test(rmem, shares_what_was_shared)
{
	struct planned p = {0};

#define SHMEM(start, end, offset)                                                                  \
	"{\"start\":\"" start "\",\"end\":\"" end "\",\"prot\":\"rw-\",\"shared\":true,"           \
	"\"kind\":\"shmem\",\"dev\":\"00:01\",\"inode\":9,\"offset\":" offset                      \
	",\"path\":\"/dev/zero (deleted)\"}"
	plan(&p, "{\"maps\":[" HEAP_MAP "," SHMEM("0x20000000", "0x20002000", "0") "," SHMEM(
			 "0x30000000", "0x30001000", "4096") "]," MM "}");
	cr_assert_eq(p.ret, 0, "%s", p.err.text);
	cr_assert_eq(p.r.mem->nr_objects, 1);
	cr_assert_eq(p.r.mem->objects[0].how, OBJECT_SHARED_ANON);
	cr_assert_eq(p.r.mem->objects[0].nr_regions, 2);
	cr_assert_eq(p.r.mem->objects[0].bytes, 8192);
	forget(&p);
}

/* The ELF side of core files: notes, segments, headers. */
#include <criterion/criterion.h>
#include <elf.h>
#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/procfs.h>
#include <sys/user.h>

#include "common/le.h"
#include "common/util.h"
#include "export/corelayout.h"
#include "export/corenotes.h"
#include "export/coreprocess.h"
#include "export/corexsave.h"

#define PAGE 4096u

/* notes */

static void add_prstatus(struct core_notes *n, int pid, int signo)
{
	struct elf_prstatus st = {.pr_pid = pid, .pr_cursig = (short)signo};

	cr_assert_eq(core_notes_add(n, "CORE", NT_PRSTATUS, &st, sizeof(st)), 0);
}

static void add_fpregs(struct core_notes *n)
{
	struct user_fpregs_struct fp = {.mxcsr = 0x1f80};

	cr_assert_eq(core_notes_add(n, "CORE", NT_FPREGSET, &fp, sizeof(fp)), 0);
}

static int check(const struct core_notes *n, uint32_t tid, size_t *ret_at)
{
	struct core_thread t;
	const char *why = NULL;
	/* A copy of the exact size: a read past the end is seen by ASan. */
	unsigned char *exact = malloc(n->len ? n->len : 1);

	if (n->len)
		memcpy(exact, n->data, n->len);
	int r = core_thread_check(&t, tid, exact, n->len, ret_at, &why);
	cr_assert(r == 0 || why != NULL);
	free(exact);
	return r;
}

Test(core, notes_of_a_thread_are_taken)
{
	struct core_notes n = {0};
	struct core_thread t;
	const char *why;
	size_t at;
	static unsigned char xstate[2696];
	siginfo_t si = {.si_signo = SIGSEGV};

	add_prstatus(&n, 42, SIGSEGV);
	size_t first = n.len;
	add_fpregs(&n);
	cr_assert_eq(core_notes_add(&n, "LINUX", NT_X86_XSTATE, xstate, sizeof(xstate)), 0);
	cr_assert_eq(core_notes_add(&n, "CORE", NT_SIGINFO, &si, sizeof(si)), 0);
	cr_assert_eq(core_thread_check(&t, 42, n.data, n.len, &at, &why), 0);
	cr_assert_eq(t.tid, 42u);
	cr_assert_eq(t.first_len, first);
	cr_assert_eq(t.signo, SIGSEGV);
	core_notes_free(&n);
}

Test(core, every_truncation_of_notes_is_refused)
{
	struct core_notes n = {0};
	size_t at, first;

	add_prstatus(&n, 42, 0);
	first = n.len;
	add_fpregs(&n);
	for (size_t len = 0; len < n.len; len++) {
		struct core_notes cut = {.data = n.data, .len = len};

		if (len == first)
			continue; /* PRSTATUS alone is whole */
		cr_assert_eq(check(&cut, 42, &at), -EBADMSG, "length %zu", len);
		cr_assert_leq(at, len);
	}
	core_notes_free(&n);
}

Test(core, huge_sizes_in_notes_are_refused)
{
	static const uint32_t huge[] = {0x7fffffff, 0x80000000, 0xfffffffc, 0xffffffff, 1u << 20};

	for (size_t i = 0; i < ARRAY_SIZE(huge); i++) {
		for (unsigned field = 0; field < 8; field += 4) {
			struct core_notes n = {0};
			size_t at;

			add_prstatus(&n, 42, 0);
			le_put32(n.data + field, huge[i]);
			cr_assert_eq(check(&n, 42, &at), -EBADMSG);
			cr_assert_eq(at, 0u);
			core_notes_free(&n);
		}
	}
}

Test(core, misplaced_notes_are_refused_where_they_stand)
{
	struct core_notes n = {0};
	size_t at, second;

	add_fpregs(&n); /* not first */
	cr_assert_eq(check(&n, 42, &at), -EBADMSG);
	cr_assert_eq(at, 0u);
	n.len = 0;

	add_prstatus(&n, 43, 0); /* another thread's */
	cr_assert_eq(check(&n, 42, &at), -EBADMSG);
	n.len = 0;

	add_prstatus(&n, 42, 0);
	second = n.len;
	add_prstatus(&n, 42, 0); /* twice */
	cr_assert_eq(check(&n, 42, &at), -EBADMSG);
	cr_assert_eq(at, second);
	n.len = second;

	cr_assert_eq(core_notes_add(&n, "CORE", NT_FILE, "x", 1), 0); /* not of a thread */
	cr_assert_eq(check(&n, 42, &at), -EBADMSG);
	cr_assert_eq(at, second);
	n.len = second;

	cr_assert_eq(core_notes_add(&n, "LINUX", NT_FPREGSET, "x", 1), 0); /* wrong owner */
	cr_assert_eq(check(&n, 42, &at), -EBADMSG);
	n.len = second;

	cr_assert_eq(core_notes_add(&n, "LINUX", NT_X86_XSTATE, "x", 1), 0); /* too short */
	cr_assert_eq(check(&n, 42, &at), -EBADMSG);
	core_notes_free(&n);
}

Test(core, the_faulting_thread_comes_first_then_the_leader)
{
	struct core_thread t[] = {{.tid = 9}, {.tid = 7}, {.tid = 8}};

	cr_assert_eq(core_first_thread(t, 3, 7), 1u);
	cr_assert_eq(core_first_thread(t, 3, 1), 0u);
	t[2].signo = SIGSEGV;
	cr_assert_eq(core_first_thread(t, 3, 7), 2u);
	t[2].signo = SIGUSR1;
	cr_assert_eq(core_first_thread(t, 3, 7), 1u);
}

Test(core, prpsinfo_cuts_long_names)
{
	struct core_notes n = {0};
	char args[200];
	struct elf_prpsinfo info;

	memset(args, 'a', sizeof(args) - 1);
	args[sizeof(args) - 1] = '\0';
	struct core_process p = {
		.pid = 5, .ppid = 4, .uid = 1000, .comm = "a-name-of-more-than-16", .args = args};
	cr_assert_eq(core_notes_prpsinfo(&n, &p), 0);
	memcpy(&info, n.data + 20, sizeof(info));
	cr_assert_eq(info.pr_pid, 5);
	cr_assert_eq(info.pr_uid, 1000u);
	cr_assert_str_eq(info.pr_fname, "a-name-of-more-");
	cr_assert_eq(strlen(info.pr_psargs), 79u);
	core_notes_free(&n);
}

Test(core, auxv_must_be_whole_entries_in_hexadecimal)
{
	struct core_notes n = {0};

	cr_assert_eq(core_notes_auxv(&n, ""), -EBADMSG);
	cr_assert_eq(core_notes_auxv(&n, "0"), -EBADMSG);
	cr_assert_eq(core_notes_auxv(&n, "0600000000000000"), -EBADMSG);
	cr_assert_eq(core_notes_auxv(&n, "0600000000000000001000000000000g"), -EBADMSG);
	cr_assert_eq(n.len, 0u);
	cr_assert_eq(core_notes_auxv(&n, "06000000000000000010000000000000"), 0);
	cr_assert_eq(n.len, 20u + 16);
	cr_assert_eq(le_get64(n.data + 20), (uint64_t)AT_PAGESZ);
	cr_assert_eq(le_get64(n.data + 28), 4096u);
	core_notes_free(&n);
}

Test(core, nt_file_counts_offsets_in_pages)
{
	struct core_notes n = {0};
	const struct core_mapping m[] = {
		{0x400000, 0x401000, 0, "/bin/a"},
		{0x401000, 0x403000, 0x3000, "/bin/bc"},
	};

	cr_assert_eq(core_notes_file(&n, m, 0, PAGE), 0);
	cr_assert_eq(n.len, 0u);
	cr_assert_eq(core_notes_file(&n, m, 2, PAGE), 0);
	const unsigned char *d = n.data + 20;
	cr_assert_eq(le_get32(n.data + 4), 16u + 48 + 7 + 8);
	cr_assert_eq(le_get64(d), 2u);
	cr_assert_eq(le_get64(d + 8), PAGE);
	cr_assert_eq(le_get64(d + 16 + 24), 0x401000u);
	cr_assert_eq(le_get64(d + 16 + 24 + 8), 0x403000u);
	cr_assert_eq(le_get64(d + 16 + 24 + 16), 3u);
	cr_assert_str_eq((const char *)d + 16 + 48, "/bin/a");
	cr_assert_str_eq((const char *)d + 16 + 48 + 7, "/bin/bc");
	core_notes_free(&n);
}

/* extended state */

/* An area of AMD's layout; every component is filled with a letter. */
static void amd_area(unsigned char *area, size_t len, uint64_t xcr0)
{
	memset(area, 0, len);
	memset(area + 576, 'y', 256);
	if (xcr0 & 0xe0) {
		memset(area + 832, 'k', 64);
		memset(area + 896, 'h', 512);
		memset(area + 1408, 'z', 1024);
	}
	if (xcr0 & 0x200)
		memset(area + len - 8, 'p', 8);
	le_put64(area + 464, xcr0);
}

Test(core, extended_state_is_laid_out_as_debuggers_expect)
{
	unsigned char area[2440], out[CORE_XSAVE_MAX];
	size_t len;

	amd_area(area, 2440, 0x2e7);
	cr_assert(core_xsave_relay(area, 2440, out, &len));
	cr_assert_eq(len, 2696u);
	cr_assert_eq(memcmp(out, area, 832), 0);
	cr_assert(out[1088] == 'k' && out[1151] == 'k' && out[832] == 0 && out[1087] == 0);
	cr_assert(out[1152] == 'h' && out[1663] == 'h');
	cr_assert(out[1664] == 'z' && out[2687] == 'z');
	cr_assert(out[2688] == 'p' && out[2695] == 'p');

	amd_area(area, 2432, 0xe7);
	cr_assert(core_xsave_relay(area, 2432, out, &len));
	cr_assert_eq(len, 2688u);
	cr_assert(out[1088] == 'k' && out[2687] == 'z');

	amd_area(area, 840, 0x207);
	cr_assert(core_xsave_relay(area, 840, out, &len));
	cr_assert_eq(len, 2696u);
	cr_assert(out[831] == 'y' && out[832] == 0 && out[2688] == 'p');
}

Test(core, extended_state_of_other_layouts_is_left_alone)
{
	static const struct {
		size_t len;
		uint64_t xcr0;
	} other[] = {
		{576, 3},     {832, 7},	     {1088, 0x1f},  {2688, 0xe7},
		{2688, 0xff}, {2696, 0x2ff}, {2696, 0x207}, {11008, 0x602e7},
		{2440, 0xe7}, {2432, 0x2e7}, {2440, 0x2ff}, {2440, 0x227},
	};
	static unsigned char area[11008];
	unsigned char out[CORE_XSAVE_MAX];
	size_t len;

	for (size_t i = 0; i < ARRAY_SIZE(other); i++) {
		le_put64(area + 464, other[i].xcr0);
		cr_assert_not(core_xsave_relay(area, other[i].len, out, &len), "number %zu", i);
	}
}

/* process.json */

static int parse(struct core_process_facts *f, json_t **root, const char *text)
{
	struct usnap_err err = {0};

	*root = json_loads(text, 0, NULL);
	cr_assert_not_null(*root);
	int r = core_process_parse(f, *root, "x.usnap", &err);
	cr_assert(r == 0 || strstr(err.text, "x.usnap"));
	return r;
}

Test(core, process_json_gives_what_prpsinfo_says)
{
	struct core_process_facts f;
	json_t *root;

	cr_assert_eq(parse(&f, &root,
			   "{\"pid\":7,\"ppid\":3,\"pgid\":6,\"sid\":5,\"comm\":\"redis\","
			   "\"cmdline\":[\"redis-server\",\"--port\",\"0\"],"
			   "\"creds\":{\"uid\":[1000,0,0,0],\"gid\":[4294967295,0,0,0]},"
			   "\"threads\":[{\"sched\":{\"nice\":-5}}],\"mm\":{\"auxv\":\"00\"}}"),
		     0);
	cr_assert_eq(f.process.pid, 7);
	cr_assert_eq(f.process.ppid, 3);
	cr_assert_eq(f.process.pgid, 6);
	cr_assert_eq(f.process.sid, 5);
	cr_assert_eq(f.process.uid, 1000u);
	cr_assert_eq(f.process.gid, UINT32_MAX);
	cr_assert_eq(f.process.nice, -5);
	cr_assert_str_eq(f.process.comm, "redis");
	cr_assert_str_eq(f.process.args, "redis-server --port 0");
	cr_assert_str_eq(f.auxv, "00");
	json_decref(root);
}

Test(core, arguments_that_are_no_utf8_are_taken_as_bytes)
{
	struct core_process_facts f;
	json_t *root;

	cr_assert_eq(parse(&f, &root,
			   "{\"pid\":7,\"cmdline\":[null,\"9\"],\"cmdline_hex\":\"736ce9003900\"}"),
		     0);
	cr_assert_str_eq(f.process.args, "sl\xe9 9");
	json_decref(root);
}

Test(core, process_json_of_the_wrong_kind_is_refused)
{
	static const char *const wrong[] = {
		"[]",
		"{}",
		"{\"pid\":0}",
		"{\"pid\":-1}",
		"{\"pid\":4294967296}",
		"{\"pid\":\"7\"}",
		"{\"pid\":7,\"ppid\":1.5}",
		"{\"pid\":7,\"comm\":[]}",
		"{\"pid\":7,\"cmdline\":{}}",
		"{\"pid\":7,\"cmdline\":[7]}",
		"{\"pid\":7,\"cmdline\":[null]}",
		"{\"pid\":7,\"cmdline\":[null],\"cmdline_hex\":\"7x\"}",
		"{\"pid\":7,\"mm\":{\"auxv\":7}}",
		"{\"pid\":7,\"creds\":{\"uid\":[-1]}}",
		"{\"pid\":7,\"threads\":[{\"sched\":{\"nice\":300}}]}",
	};

	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		struct core_process_facts f;
		json_t *root;

		cr_assert_eq(parse(&f, &root, wrong[i]), -EBADMSG, "%s", wrong[i]);
		json_decref(root);
	}
}

Test(core, long_command_lines_are_cut)
{
	struct core_process_facts f;
	char text[2048];
	json_t *root;

	for (int arg = 1; arg < 300; arg++) {
		int n = snprintf(text, sizeof(text), "{\"pid\":7,\"cmdline\":[\"");
		memset(text + n, 'x', (size_t)arg);
		snprintf(text + n + arg, sizeof(text) - (size_t)(n + arg),
			 "\",\"yy\",\"\",\"%0100d\",\"z\"]}", 1);
		cr_assert_eq(parse(&f, &root, text), 0);
		cr_assert_lt(strlen(f.process.args), sizeof(f.args));
		json_decref(root);
	}
}

/* layout */

static void region(struct core_layout *l, uint64_t start, uint64_t end, uint64_t max_gap)
{
	cr_assert_eq(core_layout_begin(l, start, end, PROT_READ | PROT_WRITE, max_gap, 0), 0);
}

Test(core, near_runs_share_a_segment_and_far_ones_do_not)
{
	struct core_layout l;

	core_layout_init(&l, PAGE);
	region(&l, 0x100000, 0x900000, 0x10000);
	cr_assert_eq(core_layout_run(&l, 0x101000, 0x102000), 0); /* a small gap before */
	cr_assert_eq(core_layout_run(&l, 0x102000, 0x103000), 0);
	cr_assert_eq(core_layout_run(&l, 0x110000, 0x111000), 0);
	cr_assert_eq(core_layout_run(&l, 0x700000, 0x701000), 0);
	cr_assert_eq(core_layout_end(&l), 0);
	cr_assert_eq(l.n, 2u);
	cr_assert_eq(l.seg[0].vaddr, 0x100000u);
	cr_assert_eq(l.seg[0].filesz, 0x11000u);
	cr_assert_eq(l.seg[0].memsz, 0x600000u);
	cr_assert_eq(l.seg[1].vaddr, 0x700000u);
	cr_assert_eq(l.seg[1].filesz, 0x1000u);
	cr_assert_eq(l.seg[1].memsz, 0x200000u);
	core_layout_free(&l);
}

Test(core, a_region_without_contents_takes_no_room)
{
	struct core_layout l;

	core_layout_init(&l, PAGE);
	region(&l, 0x100000000000, 0x200000000000, 0x10000);
	cr_assert_eq(core_layout_end(&l), 0);
	region(&l, 0x200000000000, 0x200000004000, 0x10000);
	cr_assert_eq(core_layout_run(&l, 0x200000001000, 0x200000002000), 0);
	cr_assert_eq(core_layout_end(&l), 0);
	cr_assert_eq(core_layout_finish(&l, 100), 0);
	cr_assert_eq(l.n, 2u);
	cr_assert_eq(l.seg[0].filesz, 0u);
	cr_assert_eq(l.seg[0].memsz, 0x100000000000u);
	cr_assert_eq(l.seg[1].filesz, 0x4000u, "the short tail is contents");
	cr_assert_eq(l.file_len, l.data_offset + 0x4000);
	core_layout_free(&l);
}

Test(core, a_far_first_run_leaves_the_head_without_contents)
{
	struct core_layout l;

	core_layout_init(&l, PAGE);
	region(&l, 0x100000, 0x900000, 0);
	cr_assert_eq(core_layout_run(&l, 0x8ff000, 0x900000), 0);
	cr_assert_eq(core_layout_end(&l), 0);
	cr_assert_eq(l.n, 2u);
	cr_assert_eq(l.seg[0].filesz, 0u);
	cr_assert_eq(l.seg[0].vaddr + l.seg[0].memsz, l.seg[1].vaddr);
	cr_assert_eq(l.seg[1].filesz, 0x1000u);
	cr_assert_eq(l.seg[1].memsz, 0x1000u);
	core_layout_free(&l);
}

Test(core, regions_and_runs_out_of_order_are_refused)
{
	struct core_layout l;

	core_layout_init(&l, PAGE);
	cr_assert_eq(core_layout_begin(&l, 0x2000, 0x2000, 0, 0, 0), -EINVAL);
	cr_assert_eq(core_layout_begin(&l, 0x2001, 0x4000, 0, 0, 0), -EINVAL);
	region(&l, 0x2000, 0x6000, 0);
	cr_assert_eq(core_layout_run(&l, 0x1000, 0x3000), -EINVAL);
	cr_assert_eq(core_layout_run(&l, 0x5000, 0x7000), -EINVAL);
	cr_assert_eq(core_layout_run(&l, 0x3000, 0x4000), 0);
	cr_assert_eq(core_layout_run(&l, 0x3000, 0x4000), -EINVAL);
	cr_assert_eq(core_layout_end(&l), 0);
	cr_assert_eq(core_layout_begin(&l, 0x5000, 0x8000, 0, 0, 0), -EINVAL);
	core_layout_free(&l);
}

Test(core, more_contents_than_a_file_holds_are_refused)
{
	struct core_layout l;

	core_layout_init(&l, PAGE);
	for (uint64_t i = 0; i < 3; i++) {
		uint64_t at = i << 62;

		region(&l, at, at + (1ull << 62), 0);
		cr_assert_eq(core_layout_run(&l, at, at + (1ull << 62)), 0);
		cr_assert_eq(core_layout_end(&l), 0);
	}
	cr_assert_eq(core_layout_finish(&l, 100), -EFBIG);
	core_layout_free(&l);
}

Test(core, headers_say_where_everything_lies)
{
	struct core_layout l;
	unsigned char *buf;
	Elf64_Ehdr eh;
	Elf64_Phdr ph[3];

	core_layout_init(&l, PAGE);
	cr_assert_eq(core_layout_begin(&l, 0x1000, 0x3000, PROT_READ | PROT_EXEC, 0, 0), 0);
	cr_assert_eq(core_layout_run(&l, 0x1000, 0x2000), 0);
	cr_assert_eq(core_layout_end(&l), 0);
	region(&l, 0x5000, 0x6000, 0);
	cr_assert_eq(core_layout_run(&l, 0x5000, 0x6000), 0);
	cr_assert_eq(core_layout_end(&l), 0);
	cr_assert_eq(core_layout_finish(&l, 5000), 0);
	cr_assert_eq(core_layout_headers(&l, 5000, &buf), 0);
	cr_assert_eq(l.headers_len, sizeof(eh) + sizeof(ph));
	memcpy(&eh, buf, sizeof(eh));
	memcpy(ph, buf + sizeof(eh), sizeof(ph));
	cr_assert_eq(memcmp(eh.e_ident, ELFMAG, SELFMAG), 0);
	cr_assert_eq(eh.e_type, ET_CORE);
	cr_assert_eq(eh.e_machine, EM_X86_64);
	cr_assert_eq(eh.e_phnum, 3);
	cr_assert_eq(eh.e_shoff, 0u);
	cr_assert_eq(ph[0].p_type, (uint32_t)PT_NOTE);
	cr_assert_eq(ph[0].p_offset, l.notes_offset);
	cr_assert_eq(ph[0].p_filesz, 5000u);
	cr_assert_eq(ph[1].p_flags, (uint32_t)(PF_R | PF_X));
	cr_assert_eq(ph[1].p_offset, 8192u);
	cr_assert_eq(ph[1].p_filesz, 0x1000u);
	cr_assert_eq(ph[1].p_memsz, 0x2000u);
	cr_assert_eq(ph[2].p_flags, (uint32_t)(PF_R | PF_W));
	cr_assert_eq(ph[2].p_offset, ph[1].p_offset + ph[1].p_filesz);
	cr_assert_eq(l.file_len, ph[2].p_offset + ph[2].p_filesz);
	free(buf);
	core_layout_free(&l);
}

Test(core, more_segments_than_16_bits_are_counted_in_section_0)
{
	struct core_layout l;
	unsigned char *buf, raw[CORE_SHDR_BYTES];
	Elf64_Ehdr eh;
	Elf64_Shdr sh;
	const uint64_t regions = 70000;

	for (uint64_t n = 0xfffd; n <= 0xfffe; n++) {
		core_layout_init(&l, PAGE);
		for (uint64_t i = 0; i < n; i++) {
			region(&l, (2 * i + 1) * PAGE, (2 * i + 2) * PAGE, 0);
			cr_assert_eq(core_layout_end(&l), 0);
		}
		cr_assert_eq(core_layout_finish(&l, 0), 0);
		cr_assert_eq(l.shdr_offset != 0, n + 1 == PN_XNUM);
		core_layout_free(&l);
	}

	core_layout_init(&l, PAGE);
	for (uint64_t i = 0; i < regions; i++) {
		region(&l, (2 * i + 1) * PAGE, (2 * i + 2) * PAGE, 0);
		cr_assert_eq(core_layout_end(&l), 0);
	}
	cr_assert_eq(core_layout_finish(&l, 0), 0);
	cr_assert_eq(core_layout_headers(&l, 0, &buf), 0);
	memcpy(&eh, buf, sizeof(eh));
	cr_assert_eq(eh.e_phnum, PN_XNUM);
	cr_assert_eq(eh.e_shnum, 1);
	cr_assert_eq(eh.e_shoff, l.shdr_offset);
	core_layout_shdr(&l, raw);
	memcpy(&sh, raw, sizeof(sh));
	cr_assert_eq(sh.sh_info, regions + 1);
	cr_assert_eq(l.file_len, l.shdr_offset + sizeof(sh));
	free(buf);
	core_layout_free(&l);
}

#include <criterion/criterion.h>
#include <elf.h>
#include <errno.h>
#include <linux/capability.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/procfs.h>
#include <sys/syscall.h>

#include "common/util.h"
#include "restore/rthreads_internal.h"

/* ---- notes ------------------------------------------------------------------- */

struct notes {
	unsigned char p[32768];
	size_t len;
};

static void add_note(struct notes *n, uint32_t type, const void *desc, size_t len)
{
	Elf64_Nhdr h = {.n_namesz = 5, .n_descsz = (Elf64_Word)len, .n_type = type};

	memcpy(n->p + n->len, &h, sizeof(h));
	memcpy(n->p + n->len + sizeof(h), "CORE\0\0\0", 8);
	memcpy(n->p + n->len + sizeof(h) + 8, desc, len);
	n->len += sizeof(h) + 8 + ALIGN_UP(len, (size_t)4);
}

static struct user_regs_struct plain_regs(void)
{
	return (struct user_regs_struct){.cs = 0x33,
					 .ss = 0x2b,
					 .rip = 0x401000,
					 .rsp = 0x7ffff000,
					 .eflags = 0x246,
					 .orig_rax = (unsigned long)-1};
}

static void add_prstatus(struct notes *n, const struct user_regs_struct *regs)
{
	struct elf_prstatus pr = {.pr_pid = 7};

	memcpy(&pr.pr_reg, regs, sizeof(*regs));
	add_note(n, NT_PRSTATUS, &pr, sizeof(pr));
}

static const struct xlayout sse_only = {.features = 3, .size = 576};

/* Parses registers between sound notes. */
static int parse_regs(const struct user_regs_struct *regs, struct user_regs_struct *ret,
		      struct usnap_err *err)
{
	static struct notes n;
	struct rthread th = {.image_tid = 7};
	struct xmissing missing = {0};
	unsigned char fp[512] = {0};

	n.len = 0;
	add_prstatus(&n, regs);
	add_note(&n, NT_PRFPREG, fp, sizeof(fp));
	int r = rnotes_parse(&th, &sse_only, n.p, n.len, &missing, err);
	if (ret)
		*ret = th.regs;
	rthread_free(&th);
	return r;
}

Test(rnotes, takes_plain_registers)
{
	struct user_regs_struct regs = plain_regs(), got;
	struct usnap_err err = {0};

	cr_assert_eq(parse_regs(&regs, &got, &err), 0, "%s", err.text);
	cr_assert_eq(got.rip, 0x401000u);
	cr_assert_eq(got.eflags, 0x246u);
}

Test(rnotes, drops_flags_that_are_not_the_programs)
{
	struct user_regs_struct regs = plain_regs(), got;
	struct usnap_err err = {0};

	regs.eflags = ~0ul;
	cr_assert_eq(parse_regs(&regs, &got, &err), 0);
	cr_assert_eq(got.eflags, 0x54fd7u); /* no IOPL, VM, VIF, VIP */
}

Test(rnotes, refuses_registers_that_no_process_can_have)
{
	static const struct {
		size_t at;
		uint64_t v;
	} bad[] = {
		{offsetof(struct user_regs_struct, cs), 0x23}, /* 32-bit */
		{offsetof(struct user_regs_struct, cs), 0x10}, /* the kernel's */
		{offsetof(struct user_regs_struct, ss), 0},
		{offsetof(struct user_regs_struct, ds), 0x18},
		{offsetof(struct user_regs_struct, gs), 0x7}, /* of an LDT */
		{offsetof(struct user_regs_struct, rip), 0xffffffff81000000},
		{offsetof(struct user_regs_struct, fs_base), 0x8000000000000000},
		{offsetof(struct user_regs_struct, gs_base), 0xffff888000000000},
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct user_regs_struct regs = plain_regs();
		struct usnap_err err = {0};

		memcpy((char *)&regs + bad[i].at, &bad[i].v, 8);
		cr_assert_lt(parse_regs(&regs, NULL, &err), 0, "case %zu", i);
		cr_assert(err.text[0]);
	}
}

Test(rnotes, refuses_notes_cut_off_anywhere)
{
	static struct notes n;
	struct user_regs_struct regs = plain_regs();
	unsigned char fp[512] = {0};

	add_prstatus(&n, &regs);
	add_note(&n, NT_PRFPREG, fp, sizeof(fp));
	for (size_t len = 0; len < n.len; len++) {
		struct rthread th = {.image_tid = 7};
		struct xmissing missing = {0};
		struct usnap_err err = {0};
		/* An allocation of just these bytes: the sanitizer watches its end. */
		cleanup_free unsigned char *cut = malloc(len + !len);

		memcpy(cut, n.p, len);
		cr_assert_eq(rnotes_parse(&th, &sse_only, cut, len, &missing, &err), -EBADMSG,
			     "%zu bytes", len);
		rthread_free(&th);
	}
}

Test(rnotes, refuses_lengths_that_wrap_around)
{
	static struct notes n;
	struct user_regs_struct regs = plain_regs();
	struct rthread th = {.image_tid = 7};
	struct xmissing missing = {0};
	struct usnap_err err = {0};

	add_prstatus(&n, &regs);
	memset(n.p, 0xff, 8); /* name and description */
	cr_assert_eq(rnotes_parse(&th, &sse_only, n.p, n.len, &missing, &err), -EBADMSG);
}

/* ---- extended state ------------------------------------------------------------ */

static void put64(unsigned char *p, uint64_t v)
{
	memcpy(p, &v, 8);
}

/* AVX and AVX-512 as AMD lays them out, each component full of its number. */
static size_t amd_area(unsigned char p[4096], uint64_t used)
{
	memset(p, 0, 4096);
	put64(p + 464, 0xe7);
	put64(p + 512, used);
	memset(p + 576, 2, 256);
	memset(p + 832, 5, 64);
	memset(p + 896, 6, 512);
	memset(p + 1408, 7, 1024);
	return 2432;
}

static struct xlayout intel_layout(void)
{
	struct xlayout l = {.features = 0xe7, .size = 2688};

	l.c[2].offset = 576, l.c[2].size = 256;
	l.c[5].offset = 1088, l.c[5].size = 64;
	l.c[6].offset = 1152, l.c[6].size = 512;
	l.c[7].offset = 1664, l.c[7].size = 1024;
	return l;
}

Test(rxstate, moves_components_to_where_this_cpu_has_them)
{
	unsigned char from[4096], to[4096];
	struct xlayout here = intel_layout();
	struct xmissing missing = {0};
	const char *why;
	size_t len = amd_area(from, 0xe7);

	cr_assert_eq(xstate_relay(from, len, &here, to, &missing, &why), 0, "%s", why);
	cr_assert_eq(missing.known, 0u);
	cr_assert_eq(to[576], 2);
	cr_assert_eq(to[1088], 5);
	cr_assert_eq(to[1152 + 511], 6);
	cr_assert_eq(to[1664 + 1023], 7);
	cr_assert_eq(to[1151], 5);
	cr_assert_eq(to[832], 0);
}

Test(rxstate, names_what_this_cpu_lacks)
{
	unsigned char from[4096], to[4096];
	struct xlayout here = {.features = 7, .size = 832};
	struct xmissing missing = {0};
	const char *why;

	here.c[2].offset = 576, here.c[2].size = 256;
	size_t len = amd_area(from, 0x7);
	cr_assert_eq(xstate_relay(from, len, &here, to, &missing, &why), 0);
	cr_assert_eq(missing.known, 0xe0u);
	cr_assert_eq(missing.used, 0u);
	len = amd_area(from, 0x27);
	cr_assert_eq(xstate_relay(from, len, &here, to, &missing, &why), 0);
	cr_assert_eq(missing.used, 0x20u);
	cr_assert_str_eq(xfeature_name(missing.used), "AVX-512");
}

Test(rxstate, gives_the_default_protection_keys_where_there_were_none)
{
	unsigned char from[4096], to[4096];
	struct xlayout here = intel_layout();
	struct xmissing missing = {0};
	const char *why;
	uint32_t pkru;

	here.features |= 1 << 9;
	here.c[9].offset = 2688, here.c[9].size = 8;
	here.size = 2696;
	size_t len = amd_area(from, 0xe7);
	cr_assert_eq(xstate_relay(from, len, &here, to, &missing, &why), 0);
	memcpy(&pkru, to + 2688, 4);
	cr_assert_eq(pkru, 0x55555554u);
	cr_assert_eq(to[513], 2); /* bit 9 of what is used */
}

Test(rxstate, refuses_areas_that_are_none)
{
	static unsigned char from[4096], to[4096];
	struct xlayout here = intel_layout();
	struct xmissing missing = {0};
	const char *why;

	for (size_t len = 0; len < 2700; len++) {
		if (len == 512 || len == 2432 || len == 2688)
			continue;
		amd_area(from, 0xe7);
		cr_assert_eq(xstate_relay(from, len, &here, to, &missing, &why), -EBADMSG, "%zu",
			     len);
	}
	static const struct {
		size_t at;
		uint64_t v;
	} bad[] = {{464, 0},	      {464, ~0ull}, {512, 0x2e7},
		   {520, 1ull << 63}, {568, 1},	    {24, 1 << 16}};
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		size_t len = amd_area(from, 0xe7);

		put64(from + bad[i].at, bad[i].v);
		cr_assert_eq(xstate_relay(from, len, &here, to, &missing, &why), -EBADMSG, "%zu",
			     i);
		cr_assert(why);
	}
}

Test(rxstate, knows_this_machine)
{
	struct xlayout here;

	cr_assert(xlayout_here(&here));
	cr_assert_eq(here.features & 3, 3u);
	for (size_t i = 2; i < XSTATE_NR; i++)
		cr_assert_leq((size_t)here.c[i].offset + here.c[i].size, here.size);
}

/* ---- waits ----------------------------------------------------------------------- */

static struct user_regs_struct call_regs(long nr, uint64_t a0, uint64_t a1, uint64_t a2,
					 uint64_t a3)
{
	struct user_regs_struct g = plain_regs();

	g.orig_rax = (unsigned long)nr;
	g.rax = (unsigned long)-516;
	g.rdi = a0, g.rsi = a1, g.rdx = a2, g.r10 = a3;
	return g;
}

Test(rwaits, replace_the_time_by_what_is_left)
{
	struct rwait w = {.nr = SYS_nanosleep, .left_ns = 1500000001};
	struct user_regs_struct g = call_regs(SYS_nanosleep, 0x5000, 0x6000, 0, 0), c;
	struct timespec t;

	cr_assert(rwait_prepare(&g, &w, 0x9000, &c, &t));
	cr_assert_eq(c.rax, (unsigned)SYS_nanosleep);
	cr_assert_eq(c.rdi, 0x9000u);
	cr_assert_eq(c.rsi, 0x6000u, "the rest goes where the program wants it");
	cr_assert_eq(t.tv_sec, 1);
	cr_assert_eq(t.tv_nsec, 500000001);
}

Test(rwaits, never_end_early)
{
	static const struct {
		int64_t left_ns, ms;
	} cases[] = {{0, 0},	   {1, 1},	 {999999, 1},
		     {1000000, 1}, {1000001, 2}, {INT64_MAX, INT32_MAX}};
	struct user_regs_struct g = call_regs(SYS_poll, 0x5000, 2, 7000, 0), c;
	struct timespec t;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct rwait w = {.nr = SYS_poll, .left_ns = cases[i].left_ns};

		cr_assert(rwait_prepare(&g, &w, 0x9000, &c, &t));
		cr_assert_eq((int64_t)c.rdx, cases[i].ms);
	}
	struct rwait unknown = {.nr = SYS_poll, .left_ns = -1};
	cr_assert(rwait_prepare(&g, &unknown, 0x9000, &c, &t));
	cr_assert_eq(c.rdx, 7000u, "all of it again");
}

Test(rwaits, leave_absolute_times_alone)
{
	struct rwait w = {.nr = SYS_futex, .left_ns = 5};
	struct user_regs_struct g = call_regs(SYS_futex, 0x5000, FUTEX_WAIT_BITSET | 128, 1,
					      0x7000),
				c;
	struct timespec t;

	cr_assert(rwait_prepare(&g, &w, 0x9000, &c, &t));
	cr_assert_eq(c.r10, 0x7000u);
	g.rsi = FUTEX_WAIT | FUTEX_PRIVATE_FLAG;
	cr_assert(rwait_prepare(&g, &w, 0x9000, &c, &t));
	cr_assert_eq(c.r10, 0x9000u);
	w.nr = SYS_clock_nanosleep;
	g = call_regs(SYS_clock_nanosleep, 1, 1 /* TIMER_ABSTIME */, 0x7000, 0);
	cr_assert(rwait_prepare(&g, &w, 0x9000, &c, &t));
	cr_assert_eq(c.rdx, 0x7000u);
	w.nr = SYS_read;
	cr_assert_not(rwait_prepare(&g, &w, 0x9000, &c, &t));
}

Test(rwaits, tell_a_restarted_call_by_its_code)
{
	/* mov $7, %eax; syscall */
	unsigned char code[16] = {0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90,
				  0x90, 0xb8, 7,    0,	  0,	0,    0x0f, 0x05};
	struct user_regs_struct g = call_regs(SYS_restart_syscall, 0x5000, 2, 7000, 0);

	cr_assert_eq(rwait_guess(&g, code, sizeof(code)), SYS_poll);
	g.rdx = (unsigned long)-1; /* would not have been started again */
	cr_assert_eq(rwait_guess(&g, code, sizeof(code)), -1);
	code[10] = 0;
	cr_assert_eq(rwait_guess(&g, code, sizeof(code)), -1);
	for (size_t len = 0; len <= sizeof(code); len++)
		rwait_guess(&g, code, len);
}

/* ---- JSON -------------------------------------------------------------------------- */

static int parse(const char *text, struct rthread *th, struct usnap_err *err)
{
	json_t *o = json_loads(text, 0, NULL);

	cr_assert(o, "%s", text);
	*th = (struct rthread){0};
	*err = (struct usnap_err){0};
	int r = rthread_parse(th, o, err);
	json_decref(o);
	return r;
}

#define THREAD "'tid': 9, 'tid_ns': [9, 3], 'sigmask': '0x10000'"

static char *quoted(const char *text, const char *more)
{
	char *s;

	cr_assert_gt(asprintf(&s, "{%s%s}", text, more), 0);
	for (char *p = s; *p; p++)
		if (*p == '\'')
			*p = '"';
	return s;
}

Test(rthread, takes_the_innermost_number)
{
	cleanup_free char *text = quoted(
		THREAD,
		", 'sigaltstack': {'sp': '0x7000', 'size': 8192, 'flags': 1}, 'interrupted_call': "
		"{'nr': 35, 'how': 'restart-block', 'left_ns': 12}, 'sched': {'policy': 'fifo', "
		"'priority': 3}");
	struct rthread th;
	struct usnap_err err;

	cr_assert_eq(parse(text, &th, &err), 0, "%s", err.text);
	cr_assert_eq(th.tid, 3);
	cr_assert_eq(th.image_tid, 9);
	cr_assert_eq(th.altstack.ss_flags, 0, "being on it is no matter of flags");
	cr_assert_eq(th.wait.left_ns, 12);
	cr_assert_eq(th.sched.policy, 1u);
	rthread_free(&th);
}

Test(rthread, refuses_hostile_values)
{
	static const char *const bad[] = {
		", 'sched': {'policy': 'fifo', 'priority': 100}",
		", 'sched': {'policy': 'other', 'nice': -21}",
		", 'sched': {'policy': 300}",
		", 'sched': []",
		", 'robust_list': {'head': 'x'}",
		", 'rseq': {'addr': '0x1000', 'len': 1, 'sig': '0x1'}",
		", 'rseq': {'addr': '0x1000', 'len': 32, 'sig': '0x100000000'}",
		", 'sigaltstack': {'sp': '0x0', 'size': -1, 'flags': 0}",
		", 'pending': [{'signo': 9, 'code': 0}]",
		", 'pending': [{'signo': 65, 'code': 0}]",
		", 'pending': [{'signo': 5, 'siginfo': '00'}]",
		", 'pending': {}",
		", 'pdeathsig': 65",
		", 'interrupted_call': {'nr': -1}",
		", 'interrupted_call': {'nr': 35, 'left_ns': -5}",
		", 'seccomp_filters': [-1]",
		", 'seccomp_filters': ['a']",
		", 'affinity': '0'",
		", 'tid_ns': [0]",
		", 'creds': {'uid': [0, 0, 0], 'gid': [0, 0, 0, 0]}",
		", 'creds': {'uid': [0, 0, 0, 4294967295], 'gid': [0, 0, 0, 0]}",
		", 'creds': {'uid': [0, 0, 0, 0], 'gid': [0, 0, 0, 0], 'groups': ['a']}",
		(", 'creds': {'uid': [0, 0, 0, 0], 'gid': [0, 0, 0, 0], 'cap_permitted': '0x1', "
		 "'cap_effective': '0x3'}"),
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		cleanup_free char *text = quoted(THREAD, bad[i]);
		struct rthread th;
		struct usnap_err err;

		cr_assert_eq(parse(text, &th, &err), -EBADMSG, "%s", bad[i]);
		cr_assert(err.text[0]);
		rthread_free(&th);
	}
}

Test(rsignals, leave_a_stop_signal_for_the_end)
{
	json_t *o = json_loads("{\"pending\": [{\"signo\": 19, \"code\": 0}, {\"signo\": 10}]}", 0,
			       NULL);
	struct rsignals s;
	struct usnap_err err = {0};

	cr_assert_eq(rsignals_parse(&s, o, "pending", &err), 0, "%s", err.text);
	cr_assert_eq(s.n, 1u);
	cr_assert_eq(s.v[0].si_signo, 10);
	cr_assert(s.stop);
	rsignals_free(&s);
	json_decref(o);
}

/* ---- credentials ------------------------------------------------------------------- */

Test(rcreds, of_an_own_process_can_be_had)
{
	struct rcreds own, same;
	char why[128];

	cr_assert_eq(rcreds_own(&own), 0);
	same = own;
	cr_assert(rcreds_equal(&own, &same));
	cr_assert_not(rcreds_beyond(&same, &own, why, sizeof(why)));
	/* Fewer capabilities can always be had. */
	same.permitted = same.effective = 0;
	cr_assert_not(rcreds_beyond(&same, &own, why, sizeof(why)));
	rcreds_free(&own);
}

Test(rcreds, of_others_are_named)
{
	struct rcreds have = {.known = true, .uid = {7, 7, 7, 7}, .gid = {7, 7, 7, 7}};
	struct rcreds want = have;
	char why[128];

	want.uid[1] = 0;
	cr_assert(rcreds_beyond(&want, &have, why, sizeof(why)));
	cr_assert_str_eq(why, "it ran as user 0");
	have.permitted = (uint64_t)1 << CAP_SETUID;
	cr_assert_not(rcreds_beyond(&want, &have, why, sizeof(why)));
	want.permitted = (uint64_t)1 << CAP_SYS_ADMIN;
	cr_assert(rcreds_beyond(&want, &have, why, sizeof(why)));
}

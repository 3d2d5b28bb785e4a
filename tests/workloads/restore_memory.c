/*
 * Private memory after a restore; see restorework.h.
 */
#include "restorework.h"

#include <dlfcn.h>
#include <setjmp.h>
#include <sys/auxv.h>
#include <sys/prctl.h>

#ifndef SYS_mseal
#define SYS_mseal 462
#endif
#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

enum {
	PAGE = 4096
};

static char data_words[3 * PAGE] = "initialized";
static char bss_words[3 * PAGE];

static char *map(size_t len, int prot, int flags)
{
	char *p = mmap(NULL, len, prot, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);

	must(p != MAP_FAILED);
	return p;
}

/* ---- accesses that may fault ---------------------------------------------- */

static sigjmp_buf fault_jump;
static volatile int fault_signal;

static void on_fault(int signo)
{
	fault_signal = signo;
	siglongjmp(fault_jump, 1);
}

/* The signal that reading or writing there raises; 0: none. */
static int touch(volatile char *p, bool write_it)
{
	struct sigaction act = {.sa_handler = on_fault}, segv, bus;

	fault_signal = 0;
	sigaction(SIGSEGV, &act, &segv);
	sigaction(SIGBUS, &act, &bus);
	if (sigsetjmp(fault_jump, 1) == 0) {
		if (write_it)
			*p = 1;
		else
			(void)*p;
	}
	sigaction(SIGSEGV, &segv, NULL);
	sigaction(SIGBUS, &bus, NULL);
	return fault_signal;
}

/* ---- heap and stack ------------------------------------------------------- */

static void heap_grows(void)
{
	char *p = sbrk(1 << 20);

	must(p != (char *)-1);
	work_fill(p, 1 << 20, 1);
	char *end = sbrk(0);

	work_wait();
	must(sbrk(0) == end);
	must(work_filled(p, 1 << 20, 1));
	must(sbrk(8 << 20) == end);
	must(work_zero(end, 8 << 20));
	work_fill(end, 8 << 20, 2);
	must(sbrk(-(9 << 20)) == end + (8 << 20));
	must_equal(touch(p + PAGE, false), SIGSEGV);
}

static void malloc_goes_on(void)
{
	enum {
		N = 4000
	};
	static char *blocks[N];

	for (int i = 0; i < N; i++) {
		must((blocks[i] = malloc((size_t)i * 7 % 9000 + 1)) != NULL);
		work_fill(blocks[i], (size_t)i * 7 % 9000 + 1, (unsigned)i);
	}
	for (int i = 0; i < N; i += 3) {
		free(blocks[i]);
		blocks[i] = NULL;
	}
	work_wait();
	for (int i = 0; i < N; i++) {
		must(!blocks[i] || work_filled(blocks[i], (size_t)i * 7 % 9000 + 1, (unsigned)i));
		free(blocks[i]);
		must((blocks[i] = malloc((size_t)i * 13 % 20000 + 1)) != NULL);
		work_fill(blocks[i], (size_t)i * 13 % 20000 + 1, (unsigned)i);
	}
	for (int i = 0; i < N; i++)
		free(blocks[i]);
}

__attribute__((noinline)) static unsigned deep(unsigned levels)
{
	volatile unsigned char frame[PAGE];

	work_fill((void *)frame, PAGE, levels);
	unsigned below = levels ? deep(levels - 1) : 0;

	must(work_filled((void *)frame, PAGE, levels));
	return below + 1;
}

static void stack_grows(void)
{
	must_equal(deep(16), 17);
	work_wait();
	must_equal(deep(1200), 1201);
	must(strstr(work_smaps(__builtin_frame_address(0), ""), "[stack]") != NULL);
}

static void growsdown(void)
{
	char *area = map(64 * PAGE, PROT_NONE, 0);

	must(munmap(area, 64 * PAGE) == 0);
	char *p = mmap(area + 60 * PAGE, 4 * PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1, 0);

	must(p == area + 60 * PAGE);
	work_fill(p, 4 * PAGE, 3);
	work_wait();
	must(work_filled(p, 4 * PAGE, 3));
	must(work_vmflag(p, "gd"));
	for (int i = 1; i <= 20; i++)
		must_equal(touch(p - i * PAGE, true), 0);
}

static void static_data(void)
{
	work_fill(data_words + PAGE, PAGE, 4);
	work_fill(bss_words + PAGE, PAGE, 5);
	work_wait();
	must(strcmp(data_words, "initialized") == 0);
	must(work_filled(data_words + PAGE, PAGE, 4));
	must(work_filled(bss_words + PAGE, PAGE, 5));
	must(work_zero(bss_words, PAGE));
	work_fill(data_words, sizeof(data_words), 6);
	work_fill(bss_words, sizeof(bss_words), 7);
}

/* ---- protections ---------------------------------------------------------- */

static void guard_pages(void)
{
	enum {
		N = 64
	};
	char *p = map(2 * N * PAGE, PROT_READ | PROT_WRITE, 0);

	for (int i = 0; i < N; i++) {
		work_fill(p + 2 * i * PAGE, PAGE, (unsigned)i);
		must(mprotect(p + (2 * i + 1) * PAGE, PAGE, PROT_NONE) == 0);
	}
	work_wait();
	for (int i = 0; i < N; i++) {
		must(work_filled(p + 2 * i * PAGE, PAGE, (unsigned)i));
		must_equal(touch(p + (2 * i + 1) * PAGE, false), SIGSEGV);
	}
	must(mprotect(p, 2 * N * PAGE, PROT_READ | PROT_WRITE) == 0);
	must(work_zero(p + PAGE, PAGE));
}

static void prot_none(void)
{
	char *p = map(8 * PAGE, PROT_READ | PROT_WRITE, 0);

	work_fill(p, 4 * PAGE, 8);
	must(mprotect(p, 8 * PAGE, PROT_NONE) == 0);
	work_wait();
	must_equal(touch(p, false), SIGSEGV);
	must(mprotect(p, 8 * PAGE, PROT_READ | PROT_WRITE) == 0);
	must(work_filled(p, 4 * PAGE, 8));
	must(work_zero(p + 4 * PAGE, 4 * PAGE));
}

static void read_only(void)
{
	char *p = map(4 * PAGE, PROT_READ | PROT_WRITE, 0);

	work_fill(p, 4 * PAGE, 9);
	must(mprotect(p, 4 * PAGE, PROT_READ) == 0);
	work_wait();
	must(work_filled(p, 4 * PAGE, 9));
	must_equal(touch(p + PAGE, true), SIGSEGV);
	must(mprotect(p, 4 * PAGE, PROT_READ | PROT_WRITE) == 0);
	must_equal(touch(p + PAGE, true), 0);
}

static void jit(void)
{
	static const unsigned char code[] = {0xb8, 0x2a, 0, 0, 0, 0xc3}; /* mov $42,%eax; ret */
	char *p = map(PAGE, PROT_READ | PROT_WRITE, 0);
	char *rwx = map(PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, 0);
	int (*volatile f)(void) = (int (*)(void))(uintptr_t)p;
	int (*volatile g)(void) = (int (*)(void))(uintptr_t)rwx;

	memcpy(p, code, sizeof(code));
	memcpy(rwx, code, sizeof(code));
	must(mprotect(p, PAGE, PROT_READ | PROT_EXEC) == 0);
	must_equal(f() + g(), 84);
	work_wait();
	must_equal(f() + g(), 84);
	must_equal(touch(p, true), SIGSEGV);
	((volatile char *)rwx)[1] = 43;
	must_equal(g(), 43);
}

static void sealed(void)
{
	char *p = map(2 * PAGE, PROT_READ | PROT_WRITE, 0);

	work_fill(p, 2 * PAGE, 10);
	must(mprotect(p, 2 * PAGE, PROT_READ) == 0);
	if (syscall(SYS_mseal, p, 2 * PAGE, 0))
		work_skip("no mseal()");
	work_wait();
	must(work_filled(p, 2 * PAGE, 10));
	must(mprotect(p, 2 * PAGE, PROT_READ | PROT_WRITE) < 0 && errno == EPERM);
}

static void guard_markers(void)
{
	char *p = map(8 * PAGE, PROT_READ | PROT_WRITE, 0);
	char *s = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	must(s != MAP_FAILED);
	work_fill(p, 8 * PAGE, 11);
	work_fill(s, 4 * PAGE, 12);
	if (madvise(p + 2 * PAGE, 2 * PAGE, MADV_GUARD_INSTALL))
		work_skip("no MADV_GUARD_INSTALL");
	/* Of shared memory: Linux 6.15. */
	bool shared = madvise(s + PAGE, PAGE, MADV_GUARD_INSTALL) == 0;
	work_wait();
	must(work_filled(p, 2 * PAGE, 11));
	must_equal(touch(p + 2 * PAGE, false), SIGSEGV);
	must_equal(touch(p + 3 * PAGE, true), SIGSEGV);
	must_equal(touch(p + 4 * PAGE, true), 0);
	must(madvise(p, 8 * PAGE, MADV_GUARD_REMOVE) == 0 && work_zero(p + 2 * PAGE, 2 * PAGE));
	if (shared)
		must_equal(touch(s + PAGE, false), SIGSEGV);
	must(!shared || madvise(s, 4 * PAGE, MADV_GUARD_REMOVE) == 0);
	must(work_filled(s, 4 * PAGE, 12));
}

/* ---- advice ----------------------------------------------------------------- */

struct advice_check {
	char *p;
	size_t len;
	bool wiped;
};

static int child_sees(void *arg)
{
	struct advice_check *a = arg;

	return a->wiped ? !work_zero(a->p, a->len) : !work_filled(a->p, a->len, 12);
}

static char *advised(size_t len, int advice, const char *flag)
{
	char *p = map(len, PROT_READ | PROT_WRITE, 0);

	if (madvise(p, len, advice) && errno == EINVAL)
		work_skip("the kernel does not know this advice");
	work_fill(p, len, 12);
	must(work_vmflag(p, flag));
	work_wait();
	must(work_filled(p, len, 12));
	must(work_vmflag(p, flag));
	return p;
}

static void dontfork(void)
{
	struct advice_check a = {.p = advised(4 * PAGE, MADV_DONTFORK, "dc"), .len = 4 * PAGE};

	must_equal(work_in_child(child_sees, &a), 256 + SIGSEGV);
	must(madvise(a.p, a.len, MADV_DOFORK) == 0);
	must_equal(work_in_child(child_sees, &a), 0);
}

static void wipeonfork(void)
{
	struct advice_check a = {
		.p = advised(4 * PAGE, MADV_WIPEONFORK, "wf"), .len = 4 * PAGE, .wiped = true};

	must_equal(work_in_child(child_sees, &a), 0);
	must(work_filled(a.p, a.len, 12));
}

static void dontdump(void)
{
	advised(4 * PAGE, MADV_DONTDUMP, "dd");
}

static void hugepage(void)
{
	advised(8 << 20, MADV_HUGEPAGE, "hg");
}

static void nohugepage(void)
{
	advised(4 << 20, MADV_NOHUGEPAGE, "nh");
}

static void mergeable(void)
{
	advised(16 * PAGE, MADV_MERGEABLE, "mg");
}

static void locked(void)
{
	char *p = map(16 * PAGE, PROT_READ | PROT_WRITE, 0);
	char *q = map(16 * PAGE, PROT_READ | PROT_WRITE, 0);

	work_fill(p, 8 * PAGE, 13);
	must(mlock(p, 16 * PAGE) == 0);
	must(mlock2(q, 16 * PAGE, MLOCK_ONFAULT) == 0);
	work_fill(q, PAGE, 14);
	work_wait();
	must(work_filled(p, 8 * PAGE, 13) && work_filled(q, PAGE, 14));
	must(work_vmflag(p, "lo") && work_vmflag(q, "lo"));
	must_equal(strtol(work_smaps(p, "Locked"), NULL, 10), 64);
	must(work_zero(p + 8 * PAGE, 8 * PAGE));
	must(munlock(p, 16 * PAGE) == 0 && munlock(q, 16 * PAGE) == 0);
	must(strncmp(work_field("/proc/self/status", "VmLck"), "0 kB", 4) == 0);
}

static void anon_name(void)
{
	char *p = map(4 * PAGE, PROT_READ | PROT_WRITE, 0);

	if (prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, p, 4 * PAGE, "named"))
		work_skip("the kernel names no anonymous memory");
	work_fill(p, 4 * PAGE, 15);
	work_wait();
	must(strstr(work_smaps(p, ""), "[anon:named]") != NULL);
}

/* ---- where things lie ------------------------------------------------------- */

static void sparse(void)
{
	size_t len = (size_t)1 << 40;
	char *p = map(len, PROT_READ | PROT_WRITE, MAP_NORESERVE);
	char *q = map(len, PROT_NONE, MAP_NORESERVE);

	for (size_t i = 0; i < 8; i++)
		work_fill(p + i * (len / 8), 2 * PAGE, (unsigned)i);
	must(mprotect(q + len / 2, 4 * PAGE, PROT_READ | PROT_WRITE) == 0);
	work_fill(q + len / 2, 4 * PAGE, 16);
	work_wait();
	for (size_t i = 0; i < 8; i++) {
		must(work_filled(p + i * (len / 8), 2 * PAGE, (unsigned)i));
		must(work_zero(p + i * (len / 8) + 2 * PAGE, PAGE));
	}
	must(work_filled(q + len / 2, 4 * PAGE, 16));
	work_fill(p + len - PAGE, PAGE, 17);
	must_equal(touch(q + len - PAGE, false), SIGSEGV);
	must(mprotect(q + len - PAGE, PAGE, PROT_READ | PROT_WRITE) == 0);
	must_equal(touch(q + len - PAGE, true), 0);
}

static void many_mappings(void)
{
	enum {
		N = 8000
	};
	char *p = map((size_t)N * PAGE, PROT_READ | PROT_WRITE, 0);

	for (size_t i = 0; i < N; i++)
		*(size_t *)(void *)(p + i * PAGE) = i;
	for (size_t i = 0; i < N; i += 2)
		must(mprotect(p + i * PAGE, PAGE, PROT_READ) == 0);
	work_wait();
	for (size_t i = 0; i < N; i++)
		must_equal(*(size_t *)(void *)(p + i * PAGE), i);
	for (size_t i = 0; i < N; i += 97)
		must_equal(touch(p + i * PAGE, true), i % 2 ? 0 : SIGSEGV);
}

/* As near to both ends of what a program may have as it gets. */
static void edges(void)
{
	char *low = mmap((void *)(uintptr_t)0x10000, 4 * PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	char *high = mmap((void *)(uintptr_t)0x7fffffffe000, PAGE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	must(low != MAP_FAILED && high != MAP_FAILED);
	work_fill(low, 4 * PAGE, 18);
	work_fill(high, PAGE, 19);
	work_wait();
	must(work_filled(low, 4 * PAGE, 18) && work_filled(high, PAGE, 19));
}

static void mremap_grows(void)
{
	char *p = map(64 * PAGE, PROT_READ | PROT_WRITE, 0);

	work_fill(p, 64 * PAGE, 20);
	work_wait();
	char *q = mremap(p, 64 * PAGE, 4096 * PAGE, MREMAP_MAYMOVE);

	must(q != MAP_FAILED);
	must(work_filled(q, 64 * PAGE, 20) && work_zero(q + 64 * PAGE, 4032 * PAGE));
	must(madvise(q, 64 * PAGE, MADV_DONTNEED) == 0 && work_zero(q, 64 * PAGE));
}

static void vdso(void)
{
	void *before = (void *)getauxval(AT_SYSINFO_EHDR);

	must(before && memcmp(before, "\177ELF", 4) == 0);
	int64_t then = work_now(CLOCK_MONOTONIC);

	work_wait();
	must((void *)getauxval(AT_SYSINFO_EHDR) == before && memcmp(before, "\177ELF", 4) == 0);
	must(strstr(work_smaps(before, ""), "[vdso]") != NULL);
	for (int i = 0; i < 1000; i++) {
		struct timespec t;

		/* Between two readings that go past the vdso. */
		must(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &t) == 0);
		int64_t a = t.tv_sec * WORK_SECOND + t.tv_nsec;
		int64_t b = work_now(CLOCK_MONOTONIC);

		must(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &t) == 0);
		must(then <= a && a <= b && b <= t.tv_sec * WORK_SECOND + t.tv_nsec);
	}
}

static void libraries(void)
{
	void *m = dlopen("libm.so.6", RTLD_NOW);
	double (*volatile f)(double) = NULL;

	must(m != NULL);
	*(void **)(void *)&f = dlsym(m, "cbrt");
	must(f && f(27) > 2.99);
	work_wait();
	must(f(27) > 2.99 && f(27) < 3.01);
	void *u = dlopen("libutil.so.1", RTLD_NOW);

	must(u != NULL);
	must(dlclose(u) == 0 && dlclose(m) == 0);
}

static const struct work works[] = {
	{"heap", heap_grows, "the heap with its contents; brk() goes on growing and shrinking it"},
	{"malloc", malloc_goes_on, "blocks of malloc(), which are freed, and allocated anew"},
	{"stack", stack_grows, "the main stack, which goes on growing"},
	{"growsdown", growsdown, "MAP_GROWSDOWN mappings, which go on growing"},
	{"static-data", static_data, "initialized and zero-initialized variables, written or not"},
	{"guard-pages", guard_pages, "guard pages between pages in use: touching one is SIGSEGV"},
	{"guard-markers", guard_markers, "guard markers (MADV_GUARD_INSTALL)"},
	{"prot-none", prot_none, "pages under PROT_NONE with what was written before"},
	{"read-only", read_only, "pages made read-only after they were written"},
	{"jit", jit, "code made at run time, executable, writable or not"},
	{"sealed", sealed, "sealed mappings (mseal)"},
	{"dontfork", dontfork, "MADV_DONTFORK: children do not have the mapping"},
	{"wipeonfork", wipeonfork, "MADV_WIPEONFORK: children find zeros"},
	{"dontdump", dontdump, "MADV_DONTDUMP"},
	{"hugepage", hugepage, "MADV_HUGEPAGE"},
	{"nohugepage", nohugepage, "MADV_NOHUGEPAGE"},
	{"mergeable", mergeable, "MADV_MERGEABLE"},
	{"mlock", locked, "locked memory, populated or on fault, accounted as such"},
	{"anon-name", anon_name, "names of anonymous memory (PR_SET_VMA_ANON_NAME)"},
	{"sparse", sparse, "sparse reservations of a terabyte, readable or not"},
	{"many-mappings", many_mappings, "thousands of mappings, each with its protection"},
	{"edges", edges, "mappings at the lowest and the highest addresses"},
	{"mremap", mremap_grows, "mappings that mremap() then grows and madvise() discards"},
	{"vdso", vdso, "the vdso at its address: clocks are read without a system call"},
	{"libraries", libraries, "loaded libraries; others can be loaded and unloaded"},
};

int main(int argc, char **argv)
{
	return work_main(argc, argv, works, WORK_COUNT(works));
}

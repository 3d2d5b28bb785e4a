/*
 * Registers that hold something while the process is restored; see
 * restorework.h. A thread spins in a few instructions with values in
 * registers that nothing saves but the kernel, or waits in a system call.
 */
#include "restorework.h"

#include <asm/prctl.h>
#include <fenv.h>
#include <immintrin.h>
#include <sys/auxv.h>

volatile int released;

static void release_threads(void)
{
	released = 1;
}

static void join(struct work_thread *t)
{
	must(pthread_join(t->thread, NULL) == 0);
}

/* Starts fn and lets it be restored while it runs. */
static void across(void *(*fn)(struct work_thread *))
{
	static struct work_thread t;

	work_thread_start(&t, fn, NULL);
	work_until(t.state == 1);
	work_pause_ms(20);
	work_wait();
	/* It has run for a while before it looks. */
	work_pause_ms(20);
	release_threads();
	join(&t);
	must_equal(t.value, 1);
}

/* ---- vector registers -------------------------------------------------------- */

struct vectors {
	_Alignas(64) unsigned char zmm[32][64];
	uint64_t k[8];
};

#define Z_LOAD(i) "vmovdqu64 " #i "*64(%[in]), %%zmm" #i "\n\t"
#define Z_STORE(i) "vmovdqu64 %%zmm" #i ", " #i "*64(%[out])\n\t"
#define K_LOAD(i) "kmovq 2048+" #i "*8(%[in]), %%k" #i "\n\t"
#define K_STORE(i) "kmovq %%k" #i ", 2048+" #i "*8(%[out])\n\t"
#define EACH_8(op) op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7)
#define EACH_16(op) EACH_8(op) op(8) op(9) op(10) op(11) op(12) op(13) op(14) op(15)
#define EACH_32(op)                                                                                \
	EACH_16(op)                                                                                \
	op(16) op(17) op(18) op(19) op(20) op(21) op(22) op(23) op(24) op(25) op(26) op(27) op(28) \
		op(29) op(30) op(31)
#define SPIN                                                                                       \
	"movl $1, (%[state])\n"                                                                    \
	"1:\tpause\n\t"                                                                            \
	"cmpl $0, (%[flag])\n\t"                                                                   \
	"je 1b\n\t"
#define CLOBBER_16                                                                                 \
	"xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",   \
		"xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

static struct vectors in, out;

__attribute__((target("avx512f,avx512bw"))) static void *spin_avx512(struct work_thread *t)
{
	work_fill(&in, sizeof(in), 1);
	__asm__ volatile(
		EACH_32(Z_LOAD) EACH_8(K_LOAD) SPIN EACH_32(Z_STORE) EACH_8(K_STORE)
		:
		: [in] "r"(&in), [out] "r"(&out), [state] "r"(&t->state), [flag] "r"(&released)
		: "memory", "cc", CLOBBER_16, "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21",
		  "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30",
		  "xmm31", "k1", "k2", "k3", "k4", "k5", "k6", "k7");
	t->value = memcmp(&in, &out, sizeof(in)) == 0;
	return t;
}

static void avx512(void)
{
	if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw"))
		work_skip("the CPU has no AVX-512");
	across(spin_avx512);
}

#define Y_LOAD(i) "vmovdqu " #i "*64(%[in]), %%ymm" #i "\n\t"
#define Y_STORE(i) "vmovdqu %%ymm" #i ", " #i "*64(%[out])\n\t"

__attribute__((target("avx"))) static void *spin_avx(struct work_thread *t)
{
	work_fill(&in, sizeof(in), 2);
	__asm__ volatile(
		EACH_16(Y_LOAD) SPIN EACH_16(Y_STORE)
		:
		: [in] "r"(&in), [out] "r"(&out), [state] "r"(&t->state), [flag] "r"(&released)
		: "memory", "cc", CLOBBER_16);
	t->value = 1;
	for (int i = 0; i < 16; i++)
		if (memcmp(in.zmm[i], out.zmm[i], 32) != 0)
			t->value = 0;
	return t;
}

static void avx(void)
{
	if (!__builtin_cpu_supports("avx"))
		work_skip("the CPU has no AVX");
	across(spin_avx);
}

#define X_LOAD(i) "movdqu " #i "*64(%[in]), %%xmm" #i "\n\t"
#define X_STORE(i) "movdqu %%xmm" #i ", " #i "*64(%[out])\n\t"

/* In a system call that waits, which leaves these registers alone. */
static void *wait_sse(struct work_thread *t)
{
	int p[2];
	char c;
	long r;

	must(pipe(p) == 0);
	t->arg = (void *)(intptr_t)p[1];
	t->state = 1;
	work_fill(&in, sizeof(in), 3);
	__asm__ volatile(EACH_16(X_LOAD) "syscall\n\t" EACH_16(X_STORE)
			 : "=a"(r)
			 : "0"(SYS_read), "D"((long)p[0]), "S"(&c),
			   "d"(1L), [in] "r"(&in), [out] "r"(&out)
			 : "memory", "cc", "rcx", "r11", CLOBBER_16);
	must_equal(r, 1);
	t->value = 1;
	for (int i = 0; i < 16; i++)
		if (memcmp(in.zmm[i], out.zmm[i], 16) != 0)
			t->value = 0;
	return t;
}

static void sse_in_call(void)
{
	static struct work_thread t;

	work_thread_start(&t, wait_sse, NULL);
	work_until(work_call_of(t.tid) == SYS_read);
	work_wait();
	must(write((int)(intptr_t)t.arg, "x", 1) == 1);
	join(&t);
	must_equal(t.value, 1);
}

/* ---- the old floating point unit, control words ---------------------------------- */

static void *spin_x87(struct work_thread *t)
{
	static const double numbers[4] = {1.5, -2.25, 1e300, 3.0};
	static double back[4];
	uint16_t control = 0x0e7f, control_back = 0; /* chop, 53 bits */

	__asm__ volatile(
		"fninit\n\t"
		"fldcw %[cw]\n\t"
		"fldl (%[in])\n\tfldl 8(%[in])\n\tfldl 16(%[in])\n\tfldl 24(%[in])\n\t" SPIN
		"fstpl 24(%[out])\n\tfstpl 16(%[out])\n\tfstpl 8(%[out])\n\tfstpl (%[out])\n\t"
		"fnstcw %[back]\n\t"
		"fninit"
		: [back] "=m"(control_back)
		: [cw] "m"(control), [in] "r"(numbers), [out] "r"(back), [state] "r"(&t->state),
		  [flag] "r"(&released)
		: "memory", "cc", "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)",
		  "st(7)");
	t->value = memcmp(numbers, back, sizeof(numbers)) == 0 &&
		   (control_back & 0xf3f) == (control & 0xf3f);
	return t;
}

static void x87(void)
{
	across(spin_x87);
}

static void rounding(void)
{
	volatile double one = 1, three = 3;

	must(fesetround(FE_UPWARD) == 0);
	_mm_setcsr(_mm_getcsr() | _MM_FLUSH_ZERO_ON);
	feraiseexcept(FE_DIVBYZERO);
	unsigned csr = _mm_getcsr();

	/* Without calculating anything in between. */
	work_wait();
	must_equal(_mm_getcsr() & 0xffc0, csr & 0xffc0);
	must_equal(fegetround(), FE_UPWARD);
	must(fetestexcept(FE_DIVBYZERO));
	volatile double third = one / three;

	_mm_setcsr(_MM_MASK_MASK);
	must_equal(fesetround(FE_TONEAREST), 0);
	volatile double nearest = one / three;

	must(third > nearest);
}

/* ---- integer registers ---------------------------------------------------------------- */

struct words {
	uint64_t r[12], flags;
};

struct words words_in, words_out;

/* With the direction flag set, and what lies in the red zone. */
static void *spin_words(struct work_thread *t)
{
	uint64_t red = 0;

	work_fill(&words_in, sizeof(words_in), 4);
	__asm__ volatile("push %%rbp\n\t"
			 "movq $0x5a5a1234, -64(%%rsp)\n\t"
			 "movq $0x600dcafe, -128(%%rsp)\n\t"
			 "lea words_in(%%rip), %%rax\n\t"
			 "mov (%%rax), %%rbx\n\tmov 8(%%rax), %%rcx\n\tmov 16(%%rax), %%rdx\n\t"
			 "mov 24(%%rax), %%rbp\n\tmov 32(%%rax), %%r8\n\tmov 40(%%rax), %%r9\n\t"
			 "mov 48(%%rax), %%r10\n\tmov 56(%%rax), %%r11\n\tmov 64(%%rax), %%r12\n\t"
			 "mov 72(%%rax), %%r13\n\tmov 80(%%rax), %%r14\n\tmov 88(%%rax), %%r15\n\t"
			 "std\n\t"
			 "movl $1, (%[state])\n"
			 "1:\tpause\n\t"
			 "mov released(%%rip), %%eax\n\t"
			 "test %%eax, %%eax\n\t"
			 "je 1b\n\t"
			 "lea words_out(%%rip), %%rax\n\t"
			 "mov %%rbx, (%%rax)\n\tmov %%rcx, 8(%%rax)\n\tmov %%rdx, 16(%%rax)\n\t"
			 "mov %%rbp, 24(%%rax)\n\tmov %%r8, 32(%%rax)\n\tmov %%r9, 40(%%rax)\n\t"
			 "mov %%r10, 48(%%rax)\n\tmov %%r11, 56(%%rax)\n\tmov %%r12, 64(%%rax)\n\t"
			 "mov %%r13, 72(%%rax)\n\tmov %%r14, 80(%%rax)\n\tmov %%r15, 88(%%rax)\n\t"
			 "mov -64(%%rsp), %%rbx\n\t"
			 "mov -128(%%rsp), %%rcx\n\t"
			 "pushf\n\t"
			 "pop %%rdx\n\t"
			 "mov %%rdx, 96(%%rax)\n\t"
			 "cld\n\t"
			 "add %%rcx, %%rbx\n\t"
			 "mov %%rbx, %%rax\n\t"
			 "pop %%rbp"
			 : "=a"(red)
			 : [state] "S"(&t->state)
			 : "memory", "cc", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12",
			   "r13", "r14", "r15");
	t->value = memcmp(words_in.r, words_out.r, sizeof(words_in.r)) == 0 &&
		   red == 0x5a5a1234ULL + 0x600dcafeULL && (words_out.flags & 0x400);
	return t;
}

static void general(void)
{
	across(spin_words);
}

static void bases(void)
{
	static uint64_t here[4] = {0, 0xfeedface};
	uint64_t fs = 0, gs = 0, word;

	must(syscall(SYS_arch_prctl, ARCH_SET_GS, here) == 0);
	must(syscall(SYS_arch_prctl, ARCH_GET_FS, &fs) == 0);
	work_wait();
	must(syscall(SYS_arch_prctl, ARCH_GET_GS, &gs) == 0);
	must(gs == (uintptr_t)here);
	__asm__ volatile("movq %%gs:8, %0" : "=r"(word));
	must_equal(word, 0xfeedface);
	gs = fs;
	must(syscall(SYS_arch_prctl, ARCH_GET_FS, &fs) == 0);
	must(fs == gs);
	__asm__ volatile("movq %%fs:0, %0" : "=r"(word));
	must(word == fs);
}

static const struct work works[] = {
	{"general", general, "general registers, direction flag and red zone of a running thread"},
	{"sse-in-call", sse_in_call, "SSE registers during a system call that waits"},
	{"avx", avx, "AVX registers of a running thread"},
	{"avx512", avx512, "AVX-512 vector and mask registers of a running thread"},
	{"x87", x87, "x87 register stack and control word of a running thread"},
	{"rounding", rounding, "rounding mode, floating-point flags and MXCSR"},
	{"bases", bases, "the FS and GS bases"},
};

int main(int argc, char **argv)
{
	return work_main(argc, argv, works, WORK_COUNT(works));
}

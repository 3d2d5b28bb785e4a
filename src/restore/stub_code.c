/*
 * The code of the stub: position-independent, without a stack, never run
 * where it is linked but copied into the first page of the arena.
 *
 *	rbx	the thread's lane
 *	r12	the call
 *	r13	calls left
 *	r14	the number of the system call
 *
 * A lane (struct stub_lane_words):
 *	 0  u32 state	0 idle, 1 work to do, 2 done; a futex, shared
 *	 8  u64 calls	address of the first struct stub_call
 *	16  u64 nr_calls
 *	24  u64 nr_made	how many were made, the one that failed included
 *
 * A call (struct stub_call, 128 bytes): nr at 0, args at 8, ret at 56,
 * flags at 64.
 *
 * A system call keeps every register but rax, rcx and r11. The one that makes
 * a thread returns twice: the new thread's rax is 0, and its lane is args[5],
 * which clone3 does not look at. The new thread must not look at the call: by
 * the time it runs, another may lie there.
 */
#include "restore/stub_internal.h"

__asm__(".pushsection .rodata.usnap_stub, \"a\", @progbits\n"
	".balign 16\n"
	".globl usnap_stub_code\n"
	".hidden usnap_stub_code\n"
	"usnap_stub_code:\n"
	/* Wait until the state is no longer idle. */
	"1:	movl (%rbx), %eax\n"
	"	cmpl $1, %eax\n"
	"	je 2f\n"
	"	movl %eax, %edx\n" /* FUTEX_WAIT while it is what it was */
	"	movq %rbx, %rdi\n"
	"	xorl %esi, %esi\n"
	"	xorl %r10d, %r10d\n"
	"	movl $202, %eax\n"
	".globl usnap_stub_syscall\n"
	".hidden usnap_stub_syscall\n"
	"usnap_stub_syscall:\n"
	"	syscall\n"
	"	jmp 1b\n"
	/* Make the calls. */
	"2:	movq 8(%rbx), %r12\n"
	"	movq 16(%rbx), %r13\n"
	"3:	testq %r13, %r13\n"
	"	jz 5f\n"
	"	movq 0(%r12), %rax\n"
	"	movq %rax, %r14\n"
	"	movq 8(%r12), %rdi\n"
	"	movq 16(%r12), %rsi\n"
	"	movq 24(%r12), %rdx\n"
	"	movq 32(%r12), %r10\n"
	"	movq 40(%r12), %r8\n"
	"	movq 48(%r12), %r9\n"
	"	syscall\n"
	"	testq %rax, %rax\n"
	"	jnz 4f\n"
	"	cmpq $435, %r14\n" /* clone3, in the thread that it made */
	"	jne 4f\n"
	"	movq %r9, %rbx\n"
	"	jmp 1b\n"
	"4:	movq %rax, 56(%r12)\n"
	"	incq 24(%rbx)\n"
	"	decq %r13\n"
	"	cmpq $-4096, %rax\n"
	"	jbe 6f\n"
	"	testq $1, 64(%r12)\n"
	"	jz 5f\n"
	"6:	addq $128, %r12\n"
	"	jmp 3b\n"
	/* Done: tell, and wait for more. */
	"5:	movl $2, (%rbx)\n"
	"	movq %rbx, %rdi\n"
	"	movl $1, %esi\n" /* FUTEX_WAKE */
	"	movl $1, %edx\n"
	"	movl $202, %eax\n"
	"	syscall\n"
	"	jmp 1b\n"
	".globl usnap_stub_end\n"
	".hidden usnap_stub_end\n"
	"usnap_stub_end:\n"
	".popsection\n");

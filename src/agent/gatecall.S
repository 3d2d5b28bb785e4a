/* See gate.h. */
#include "agent/gate.h"

#define NR_munmap 11
#define NR_mmap 9
#define NR_brk 12
#define NR_mremap 25
#define NR_madvise 28
#define NR_execve 59
#define NR_exit_group 231
#define NR_execveat 322

#ifdef GATE_BLOB
/* A copy that goes into a process which has no agent: what it refers to is in it, or is named here
 * by whoever puts it there. */
	.section gateblob, "ax", @progbits
	.p2align 4
	.globl gate_control
	.hidden gate_control
gate_control:
	.quad	0
	.globl gate_back
gate_back:
	.fill	GATE_SITES, 8, 0

	.macro control reg
	mov	gate_control(%rip), \reg
	.endm
	/* Whether anybody is in here must be known before it is taken out. */
	.macro enter
	mov	gate_control(%rip), %rcx
	lock incq GATE_INSIDE(%rcx)
	.endm
	.macro leave_it
	mov	gate_control(%rip), %rcx
	lock decq GATE_INSIDE(%rcx)
	.endm
#else
	.hidden agent_control
	.hidden gate_exit
	.macro control reg
	lea	agent_control(%rip), \reg
	.endm
	.macro enter
	.endm
	.macro leave_it
	.endm
	.text
#endif

	.hidden gate_hold
	.hidden gate_mremap
	.hidden gate_back

/*
 * The call's number in rax, its arguments where the kernel wants them. As the
 * instruction "syscall" does, this changes rax, rcx and r11 and nothing else.
 */
	.p2align 4
	.globl gate_call
	.hidden gate_call
	.type gate_call, @function
gate_call:
	.cfi_startproc
	endbr64
	control	%rcx
	lea	GATE_ACTIVE(%rcx), %rcx
	xor	%r11d, %r11d
	/* From here to the system call no register may change: see critical_start. */
	.globl gate_critical_start
	.hidden gate_critical_start
gate_critical_start:
	cmp	%r11, (%rcx)
	jne	1f
	syscall
	.globl gate_critical_end
	.hidden gate_critical_end
gate_critical_end:
	ret
1:
	push	%rbp
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset %rbp, 0
	mov	%rsp, %rbp
	.cfi_def_cfa_register %rbp
	push	%r9
	push	%r8
	push	%r10
	push	%rdx
	push	%rsi
	push	%rdi
	push	%rax
	control	%rdi
	mov	%rsp, %rsi
	and	$-16, %rsp
	cld
	call	gate_hold
	mov	%rax, %r11
	lea	-56(%rbp), %rsp
	pop	%rax
	pop	%rdi
	pop	%rsi
	pop	%rdx
	pop	%r10
	pop	%r8
	pop	%r9
	pop	%rbp
	.cfi_def_cfa %rsp, 8
	.cfi_restore %rbp
	control	%rcx
	lea	GATE_ACTIVE(%rcx), %rcx
	jmp	gate_critical_start
	.cfi_endproc
	.size gate_call, . - gate_call

/*
 * Where libc's own calls are led to: the five bytes before its "syscall" jump
 * here, and it goes on behind it. Its code may use the red zone.
 */
	.macro held
	lea	-128(%rsp), %rsp
	call	gate_call
	lea	128(%rsp), %rsp
	.endm

	.macro entry number
	.p2align 4
gate_site_\number:
	.endm

	.macro out number
gate_out_\number:
	.endm

	.macro site number, nr
	entry	\number
	enter
	mov	$\nr, %eax
	held
	leave_it
gate_out_\number:
	jmp	*gate_back+8*\number(%rip)
	.endm

	.type gate_sites, @function
gate_sites:
	site GATE_MUNMAP, NR_munmap
	site GATE_MADVISE, NR_madvise
	site GATE_MMAP, NR_mmap
	site GATE_BRK, NR_brk
	site GATE_LD_MUNMAP, NR_munmap
	site GATE_EXECVE, NR_execve

/* mremap(2) takes more than one step. */
	entry	GATE_MREMAP
	enter
	lea	-128(%rsp), %rsp
	push	%rbp
	mov	%rsp, %rbp
	push	%r9
	push	%r8
	push	%r10
	push	%rdx
	push	%rsi
	push	%rdi
	push	$NR_mremap
	control	%rdi
	mov	%rsp, %rsi
	and	$-16, %rsp
	cld
	call	gate_mremap
	lea	-48(%rbp), %rsp
	pop	%rdi
	pop	%rsi
	pop	%rdx
	pop	%r10
	pop	%r8
	pop	%r9
	pop	%rbp
	lea	128(%rsp), %rsp
	leave_it
	out	GATE_MREMAP
	jmp	*gate_back+8*GATE_MREMAP(%rip)

/*
 * syscall(3): the instruction in place of which the jump here is, and only for
 * what may discard the gate: another call may return on another stack. It is
 * made where it always was.
 */
	entry	GATE_SYSCALL
	mov	8(%rsp), %r9
	cmp	$NR_munmap, %rax
	je	1f
	cmp	$NR_madvise, %rax
	je	1f
	cmp	$NR_mmap, %rax
	je	1f
	cmp	$NR_mremap, %rax
	je	1f
	cmp	$NR_brk, %rax
	je	1f
	cmp	$NR_execve, %rax
	je	1f
	cmp	$NR_execveat, %rax
	je	1f
	cmp	$NR_exit_group, %rax
	je	1f
	jmp	*gate_back+8*GATE_SYSCALL(%rip)
1:
	enter
	held
	leave_it
	mov	gate_back+8*GATE_SYSCALL(%rip), %rcx
	add	$2, %rcx
	jmp	*%rcx

#ifndef GATE_BLOB
/* _exit(2): "mov $231, %esi"; the call follows later, from a register. */
	entry	GATE_EXIT
	lea	-128(%rsp), %rsp
	push	%rdi
	push	%r8
	push	%rbp
	mov	%rsp, %rbp
	and	$-16, %rsp
	call	gate_exit
	mov	%rbp, %rsp
	pop	%rbp
	pop	%r8
	pop	%rdi
	lea	128(%rsp), %rsp
	mov	$NR_exit_group, %esi
	jmp	*gate_back+8*GATE_EXIT(%rip)
#endif
	.size gate_sites, . - gate_sites

/* uint64_t gate_entry(unsigned site) */
	.p2align 4
	.globl gate_entry
	.hidden gate_entry
	.type gate_entry, @function
gate_entry:
	lea	gate_offsets(%rip), %rax
	mov	%edi, %edi
	movslq	(%rax,%rdi,4), %rcx
	add	%rcx, %rax
	ret
	.size gate_entry, . - gate_entry

/* int64_t gate_make(uint64_t nr, uint64_t a0 ... a5) */
	.p2align 4
	.globl gate_make
	.hidden gate_make
	.type gate_make, @function
gate_make:
	mov	%rdi, %rax
	mov	%rsi, %rdi
	mov	%rdx, %rsi
	mov	%rcx, %rdx
	mov	%r8, %r10
	mov	%r9, %r8
	mov	8(%rsp), %r9
	jmp	gate_call
	.size gate_make, . - gate_make

	.macro offset number
	.long	gate_site_\number - gate_offsets
	.endm

#ifndef GATE_BLOB
	.section .rodata
#endif
	.p2align 2
	/* Of the entries, and of the last instruction of each. */
	.globl gate_offsets
	.hidden gate_offsets
gate_offsets:
	offset	GATE_MUNMAP
	offset	GATE_MADVISE
	offset	GATE_MREMAP
	offset	GATE_MMAP
	offset	GATE_BRK
	offset	GATE_LD_MUNMAP
	offset	GATE_EXECVE
	offset	GATE_SYSCALL
#ifndef GATE_BLOB
	offset	GATE_EXIT
#endif

#ifdef GATE_BLOB
	.macro offset_out number
	.long	gate_out_\number - gate_offsets
	.endm
	.globl gate_outs
	.hidden gate_outs
gate_outs:
	offset_out GATE_MUNMAP
	offset_out GATE_MADVISE
	offset_out GATE_MREMAP
	offset_out GATE_MMAP
	offset_out GATE_BRK
#endif

	.section .note.GNU-stack, "", @progbits

/*
 * What is looked up in the target before calls can be made in it: code in its
 * text, its own idea of process and thread IDs, what it does with signals.
 */
#include "process/remote_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "common/io.h"
#include "common/util.h"
#include "process/filters.h"
#include "process/maps.h"

static const unsigned char code_syscall_ret[] = {0x0f, 0x05, 0xc3};
/* mov $15, %rax; syscall   and   mov $15, %eax; syscall */
static const unsigned char code_restorer[] = {0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05};
static const unsigned char code_restorer_short[] = {0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05};

static const unsigned char code_pop_rax[] = {0x58, 0xc3};
static const unsigned char code_pop_rdi[] = {0x5f, 0xc3};
static const unsigned char code_pop_rsi[] = {0x5e, 0xc3};
static const unsigned char code_pop_rdx[] = {0x5a, 0xc3};
static const unsigned char code_pop_rdx_rbx[] = {0x5a, 0x5b, 0xc3};

static void search(uint64_t *ret, uint64_t addr, const unsigned char *text, size_t len,
		   const unsigned char *code, size_t code_len)
{
	const unsigned char *p;

	if (!*ret && (p = memmem(text, len, code, code_len)))
		*ret = addr + (uint64_t)(p - text);
}

#define SEARCH(field, code) search(&g->field, addr, text, len, code, sizeof(code))

static void search_text(struct remote_gadgets *g, uint64_t addr, const unsigned char *text,
			size_t len)
{
	SEARCH(syscall_ret, code_syscall_ret);
	SEARCH(restorer, code_restorer);
	SEARCH(restorer, code_restorer_short);
	SEARCH(pop_rax, code_pop_rax);
	SEARCH(pop_rdi, code_pop_rdi);
	SEARCH(pop_rsi, code_pop_rsi);
	if (!g->pop_rdx) {
		SEARCH(pop_rdx, code_pop_rdx);
		if (!g->pop_rdx) {
			SEARCH(pop_rdx, code_pop_rdx_rbx);
			g->rdx_junk = g->pop_rdx ? 1 : 0;
		}
	}
}

/* All that there is to be found. */
bool gadgets_complete(const struct remote_gadgets *g)
{
	return g->syscall_ret && g->restorer && g->pop_rax && g->pop_rdi && g->pop_rsi &&
	       g->pop_rdx;
}

static void search_vma(struct remote_gadgets *g, const struct target *t, const struct vma *v,
		       unsigned char *buf, size_t room)
{
	/* Windows overlap by the longest pattern. */
	for (uint64_t a = v->start; a + sizeof(code_restorer) < v->end;
	     a += room - sizeof(code_restorer)) {
		struct iovec local = {buf, MIN(room, v->end - a)};
		struct iovec remote = {(void *)(uintptr_t)a, local.iov_len};
		ssize_t n = process_vm_readv(t->pid, &local, 1, &remote, 1, 0);

		if (n <= 0 || gadgets_complete(g))
			return;
		search_text(g, a, buf, (size_t)n);
	}
}

static uint64_t status_field(const char *status, const char *name, int base)
{
	const char *p = strstr(status, name);

	return p ? strtoull(p + strlen(name), NULL, base) : 0;
}

int remote_find_gadgets(struct remote_gadgets *ret, const struct target *t, const struct maps *maps,
			struct usnap_err *err)
{
	static const int candidates[] = {SIGURG, SIGWINCH, SIGCHLD};
	struct remote_gadgets g = {0};
	size_t room = MIB(1);
	cleanup_free unsigned char *buf = malloc(room);
	if (!buf)
		return usnap_fail_errno(err, -ENOMEM, "cannot search the text of process %d",
					t->pid);

	/* The dynamic loader and libc hold both; they are the smaller ones, so look at small
	 * texts first and at large ones (a statically linked program) only when need be. */
	for (int large = 0; large <= 1 && !(g.syscall_ret && g.restorer); large++)
		for (size_t i = 0; i < maps->n && !gadgets_complete(&g); i++) {
			const struct vma *v = &maps->v[i];

			if ((v->prot & (PROT_READ | PROT_EXEC)) != (PROT_READ | PROT_EXEC) ||
			    v->kind != VMA_FILE || (v->end - v->start > MIB(4)) != (large == 1))
				continue;
			search_vma(&g, t, v, buf, room);
		}
	if (!g.syscall_ret || !g.restorer) {
		usnap_fail(err, -EOPNOTSUPP,
			   "cannot make system calls in process %d: its text holds no %s", t->pid,
			   g.syscall_ret ? "signal restorer" : "plain system call");
		return usnap_hint(err,
				  "programs that link libc, dynamically or statically, hold both");
	}

	cleanup_free char *status = NULL;
	int r = io_read_file_at(t->procfd, "status", 65536, &status, NULL);
	if (r < 0)
		return usnap_fail(err, -ESRCH, "cannot snapshot process %d: it has ended", t->pid);
	const char *features = strstr(status, "\nx86_Thread_features:");
	if (features && memmem(features, strcspn(features + 1, "\n") + 1, "shstk", 5))
		return usnap_fail(err, -EOPNOTSUPP,
				  "cannot make system calls in process %d: it has a shadow stack",
				  t->pid);
	uint64_t caught = status_field(status, "\nSigCgt:", 16);
	struct filters_seen filters;
	if (filters_look(t, &filters) < 0)
		return usnap_fail(err, -ESRCH, "cannot snapshot process %d: it has ended", t->pid);
	g.seccomp = filters.any;
	g.seccomp_harmless = filters.ours && filters_are_harmless();
	g.stop_signal = candidates[0];
	for (size_t i = 0; i < ARRAY_SIZE(candidates); i++)
		if (!(caught >> (candidates[i] - 1) & 1)) {
			g.stop_signal = candidates[i];
			break;
		}
	struct stat own, theirs;
	g.other_pidns = stat("/proc/self/ns/pid", &own) == 0 &&
			fstatat(t->procfd, "ns/pid", &theirs, 0) == 0 &&
			own.st_ino != theirs.st_ino;
	*ret = g;
	return 0;
}

/* Process and thread ID as the target itself knows them. */
int ids_inside(const struct target *t, pid_t tid, const struct remote_gadgets *g, pid_t *ret_tgid,
	       pid_t *ret_tid)
{
	*ret_tgid = t->pid;
	*ret_tid = tid;
	if (!g->other_pidns)
		return 0;

	char path[64];
	cleanup_free char *status = NULL;
	snprintf(path, sizeof(path), "task/%d/status", tid);
	int r = io_read_file_at(t->procfd, path, 65536, &status, NULL);
	if (r < 0)
		return r;
	static const char *const names[] = {"\nNStgid:", "\nNSpid:"};
	pid_t *out[] = {ret_tgid, ret_tid};
	for (size_t i = 0; i < 2; i++) {
		char *p = strstr(status, names[i]);
		if (!p)
			continue;
		/* One number for each namespace, the innermost last. */
		char *end;
		for (p += strlen(names[i]); *p && *p != '\n'; p = end) {
			long v = strtol(p, &end, 10);
			if (end == p)
				break;
			*out[i] = (pid_t)v;
		}
	}
	return 0;
}

/*
 * underfilter ERRNO|kill CALL[,CALL]... COMMAND...: the command, under a seccomp
 * filter that answers these system calls so, as that of a container. A call that
 * begins with '+' is answered with ENOSYS.
 */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static const struct {
	const char *name;
	unsigned nr;
} calls[] = {
	{"clone", SYS_clone},
	{"clone3", SYS_clone3},
	{"execve", SYS_execve},
	{"ioprio_get", SYS_ioprio_get},
	{"kcmp", SYS_kcmp},
	{"madvise", SYS_madvise},
	{"membarrier", SYS_membarrier},
	{"mount", SYS_mount},
	{"pidfd_getfd", SYS_pidfd_getfd},
	{"process_vm_readv", SYS_process_vm_readv},
	{"process_vm_writev", SYS_process_vm_writev},
	{"ptrace", SYS_ptrace},
	{"setns", SYS_setns},
	{"unshare", SYS_unshare},
	{"userfaultfd", SYS_userfaultfd},
};

static unsigned number_of(const char *name)
{
	for (size_t i = 0; i < sizeof(calls) / sizeof(*calls); i++)
		if (strcmp(calls[i].name, name) == 0)
			return calls[i].nr;
	fprintf(stderr, "underfilter: no such call: %s\n", name);
	exit(2);
}

int main(int argc, char **argv)
{
	struct sock_filter code[128] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	};
	unsigned short n = 4;

	if (argc < 4)
		return 2;
	unsigned answer = strcmp(argv[1], "kill") == 0
				  ? SECCOMP_RET_KILL_PROCESS
				  : SECCOMP_RET_ERRNO | (unsigned)atoi(argv[1]);
	char *rest = argv[2], *name;
	while ((name = strsep(&rest, ",")) && n < 126) {
		unsigned this = *name == '+' ? SECCOMP_RET_ERRNO | ENOSYS : answer;

		code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K,
							 number_of(name + (*name == '+')), 0, 1);
		code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, this);
	}
	code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog prog = {.len = n, .filter = code};
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
	    syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &prog) < 0) {
		perror("underfilter");
		return 1;
	}
	execvp(argv[3], argv + 3);
	perror(argv[3]);
	return 127;
}

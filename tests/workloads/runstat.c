/*
 * runstat [--kill-after US] FILE COMMAND [ARG]...: runs COMMAND, with
 * --kill-after killed by SIGKILL after so many microseconds, and writes to
 * FILE as one JSON object what it took: "max_rss_kib", "ns", "user_ns",
 * "system_ns", "status" (as a shell has it) and "killed". Exits with the
 * command's status.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static uint64_t clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t timeval_ns(struct timeval tv)
{
	return (uint64_t)tv.tv_sec * 1000000000u + (uint64_t)tv.tv_usec * 1000u;
}

/* Waits until pid has ended or the time has come; then kills it. */
static bool kill_after(pid_t pid, uint64_t us)
{
	struct timespec ts = {(time_t)(us / 1000000), (long)(us % 1000000 * 1000)};
	siginfo_t info = {.si_pid = 0};

	nanosleep(&ts, NULL);
	if (!waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) && info.si_pid == pid)
		return false;
	return kill(pid, SIGKILL) == 0;
}

int main(int argc, char **argv)
{
	int64_t after = -1;
	bool killed = false;
	struct rusage ru;
	uint64_t start;
	int status, code;
	pid_t pid;
	FILE *f;

	if (argc > 2 && !strcmp(argv[1], "--kill-after")) {
		after = atoll(argv[2]);
		argv += 2;
		argc -= 2;
	}
	if (argc < 3) {
		fprintf(stderr, "usage: runstat [--kill-after US] FILE COMMAND [ARG]...\n");
		return 2;
	}
	start = clock_ns();
	pid = fork();
	if (!pid) {
		execvp(argv[2], argv + 2);
		fprintf(stderr, "runstat: cannot run '%s': %s\n", argv[2], strerror(errno));
		_exit(127);
	}
	if (pid < 0)
		return 2;
	if (after >= 0)
		killed = kill_after(pid, (uint64_t)after);
	if (wait4(pid, &status, 0, &ru) != pid)
		return 2;
	code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	f = fopen(argv[1], "w");
	if (!f)
		return 2;
	fprintf(f,
		"{\"max_rss_kib\":%ld,\"ns\":%" PRIu64 ",\"user_ns\":%" PRIu64
		",\"system_ns\":%" PRIu64 ",\"status\":%d,\"killed\":%s}\n",
		ru.ru_maxrss, clock_ns() - start, timeval_ns(ru.ru_utime), timeval_ns(ru.ru_stime),
		code, killed ? "true" : "false");
	fclose(f);
	return code;
}

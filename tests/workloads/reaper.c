/*
 * reaper COMMAND...: runs it, and is parent to the orphans that come of it
 * (PR_SET_CHILD_SUBREAPER), which it waits for at once. The init of a container
 * may take seconds for that, and so long their PIDs are not free. Ends as the
 * command does.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int status;
	pid_t pid, ended;

	if (argc < 2 || prctl(PR_SET_CHILD_SUBREAPER, 1) < 0 || (pid = fork()) < 0) {
		perror("reaper");
		return 125;
	}
	if (!pid) {
		execvp(argv[1], argv + 1);
		perror(argv[1]);
		_exit(127);
	}
	while ((ended = wait(&status)) != pid)
		if (ended < 0 && errno != EINTR)
			return 125;
	if (WIFSIGNALED(status)) {
		signal(WTERMSIG(status), SIG_DFL);
		raise(WTERMSIG(status));
		return 128 + WTERMSIG(status);
	}
	return WEXITSTATUS(status);
}

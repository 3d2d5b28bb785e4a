#include "common/procstat.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/io.h"
#include "common/timens.h"
#include "common/util.h"

enum {
	FIELD_PPID = 4, /* proc_pid_stat(5) counts from 1 */
	FIELD_FLAGS = 9,
	FIELD_START = 22,
	FIELD_SIGNAL = 31, /* those that wait, of the first 31 */
	EXITING = 4 /* PF_EXITING of include/linux/sched.h */
};

/* "PID (COMM) S ...": COMM may hold parentheses and blanks, so the last one closes it. */
static int parse(const char *text, struct procstat *ret)
{
	const char *open = strchr(text, '('), *close = strrchr(text, ')');

	if (!open || !close || close < open || close[1] != ' ' || !close[2])
		return -EPROTO;
	size_t len = MIN((size_t)(close - open - 1), sizeof(ret->comm) - 1);
	memcpy(ret->comm, open + 1, len);
	ret->comm[len] = '\0';
	ret->state = close[2];

	const char *s = close + 2;
	ret->ends = ret->state == 'Z' || ret->state == 'X';
	for (unsigned nr = 4; nr <= FIELD_SIGNAL; nr++) {
		if (!(s = strchr(s, ' ')))
			return -EPROTO;
		s++;
		if (nr == FIELD_PPID)
			ret->ppid = (pid_t)strtol(s, NULL, 10);
		else if (nr == FIELD_FLAGS)
			ret->ends |= strtoull(s, NULL, 10) & EXITING;
		else if (nr == FIELD_START)
			ret->start_ticks = timens_start_ticks(strtoull(s, NULL, 10));
	}
	ret->ends |= strtoull(s, NULL, 10) >> (SIGKILL - 1) & 1;
	return 0;
}

int procstat_read(pid_t pid, struct procstat *ret)
{
	cleanup_free char *text = NULL;
	char path[32];
	int r;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	r = io_read_file_at(AT_FDCWD, path, KIB(16), &text, NULL);
	if (r < 0)
		return r == -ENOENT ? -ESRCH : r;
	*ret = (struct procstat){.pid = pid};
	return parse(text, ret);
}

bool procstat_same_start(uint64_t a, uint64_t b)
{
	return a - b + 1 <= 2;
}

bool procstat_is(pid_t pid, uint64_t start_ticks)
{
	struct procstat st;

	return procstat_read(pid, &st) == 0 && procstat_same_start(st.start_ticks, start_ticks) &&
	       st.state != 'Z' && st.state != 'X';
}

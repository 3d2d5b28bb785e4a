#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/io.h"
#include "common/procstat.h"
#include "common/util.h"
#include "store/registry.h"

/* XDG_RUNTIME_DIR; root has another that comes first, which is left as it was. */
static char top[64], dir[96];
static struct procstat self;

static void begin(void)
{
	snprintf(top, sizeof(top), "/tmp/usnap-registry.XXXXXX");
	cr_assert(mkdtemp(top));
	snprintf(dir, sizeof(dir), "%s/uffd-snap", top);
	cr_assert_eq(mkdir(dir, 0700), 0);
	setenv("XDG_RUNTIME_DIR", top, 1);
	cr_assert_eq(procstat_read(getpid(), &self), 0);
}

static void end(void)
{
	char command[160];

	snprintf(command, sizeof(command), "rm -rf '%s'", top);
	cr_assert_eq(system(command), 0);
}

TestSuite(registry, .init = begin, .fini = end);

static void put(const char *prefix, pid_t pid, uint64_t start, const char *text, size_t len)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/%s%d-%" PRIu64, dir, prefix, (int)pid, start);
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	cr_assert_geq(fd, 0);
	cr_assert_eq(io_write_full(fd, text, len), 0);
	close(fd);
}

static void put_self(const char *text)
{
	put(RUNDIR_READY, getpid(), self.start_ticks, text, strlen(text));
}

static bool exists(const char *prefix, pid_t pid, uint64_t start)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/%s%d-%" PRIu64, dir, prefix, (int)pid, start);
	return access(path, F_OK) == 0;
}

Test(registry, finds_an_entry_of_a_process_that_lives)
{
	struct registry r;

	put_self("name=here\nbeacon=7f0000001000\n");
	cr_assert_eq(registry_load(&r), 0);
	const struct registry_entry *e = registry_of(&r, getpid());
	cr_assert(e);
	cr_assert_str_eq(e->name, "here");
	cr_assert_eq(e->beacon, 0x7f0000001000);
	cr_assert_eq(e->start_ticks, self.start_ticks);
	registry_free(&r);
}

Test(registry, removes_what_others_have_left_and_nothing_else)
{
	struct registry r;

	put(RUNDIR_READY, getpid(), self.start_ticks + 2, "name=a\n", 7);
	put(RUNDIR_TAKEN, 999999999, 1, "", 0);
	put(RUNDIR_SERVED, 999999999, 1, "", 0);
	put("other-", 999999999, 1, "", 0);
	put(RUNDIR_READY, -5, 1, "", 0);
	cr_assert_eq(registry_load(&r), 0);
	cr_assert_not(registry_of(&r, getpid()));
	registry_free(&r);
	cr_assert_not(exists(RUNDIR_READY, getpid(), self.start_ticks + 2));
	cr_assert_not(exists(RUNDIR_TAKEN, 999999999, 1));
	cr_assert_not(exists(RUNDIR_SERVED, 999999999, 1));
	cr_assert(exists("other-", 999999999, 1));
	cr_assert(exists(RUNDIR_READY, -5, 1));
}

Test(registry, bounds_what_it_reads)
{
	static char text[100000];
	struct registry r;

	memset(text, 'x', sizeof(text));
	memcpy(text, "name=", 5);
	put(RUNDIR_READY, getpid(), self.start_ticks, text, sizeof(text));
	cr_assert_eq(registry_load(&r), 0);
	cr_assert(registry_of(&r, getpid()));
	cr_assert_str_eq(registry_of(&r, getpid())->name, "");
	registry_free(&r);
	put_self("\n\nbeacon=zz\nfollows=1-\nfollows=-\nname");
	cr_assert_eq(registry_load(&r), 0);
	cr_assert(registry_of(&r, getpid()));
	cr_assert_str_eq(registry_of(&r, getpid())->name, "");
	cr_assert_eq(registry_of(&r, getpid())->beacon, 0);
	registry_free(&r);
}

Test(registry, counts_a_daemon_when_its_parent_is_gone)
{
	struct procstat parent;
	struct registry r;
	char text[128];

	cr_assert_eq(procstat_read(getppid(), &parent), 0);
	snprintf(text, sizeof(text), "name=d\nbeacon=0\nfollows=%d-%" PRIu64 "\n", (int)getppid(),
		 parent.start_ticks);
	put_self(text);
	cr_assert_eq(registry_load(&r), 0);
	cr_assert_not(registry_of(&r, getpid()));
	cr_assert(registry_knows(&r, getpid()));
	cr_assert_not(registry_heir(&r, getppid(), parent.start_ticks));
	registry_free(&r);
	snprintf(text, sizeof(text), "name=d\nbeacon=0\nfollows=%d-%" PRIu64 "\n", (int)getppid(),
		 parent.start_ticks + 2);
	put_self(text);
	cr_assert_eq(registry_load(&r), 0);
	cr_assert(registry_of(&r, getpid()));
	cr_assert_not(registry_heir(&r, getppid(), parent.start_ticks));
	cr_assert(registry_heir(&r, getppid(), parent.start_ticks + 2));
	registry_free(&r);
}

Test(registry, lets_one_that_was_forked_twice_follow_both)
{
	struct procstat parent;
	struct registry r;
	char text[160];

	put_self("name=d\nbeacon=0\nfollows=999999998-1\nfollows=999999999-2\n");
	cr_assert_eq(registry_load(&r), 0);
	cr_assert(registry_heir(&r, 999999998, 1));
	cr_assert(registry_heir(&r, 999999999, 2));
	cr_assert_not(registry_heir(&r, 999999999, 1));
	registry_free(&r);
	cr_assert_eq(procstat_read(getppid(), &parent), 0);
	snprintf(text, sizeof(text),
		 "name=d\nbeacon=0\nfollows=999999998-1\nfollows=%d-%" PRIu64 "\n", (int)getppid(),
		 parent.start_ticks);
	put_self(text);
	cr_assert_eq(registry_load(&r), 0);
	cr_assert_not(registry_of(&r, getpid()));
	registry_free(&r);
}

Test(registry, leaves_a_directory_alone_in_which_others_can_write)
{
	struct registry r;

	put_self("name=here\nbeacon=0\n");
	cr_assert_eq(chmod(dir, 0777), 0);
	cr_assert_eq(registry_load(&r), 0);
	cr_assert_not(registry_of(&r, getpid()));
	registry_free(&r);
}

Test(registry, does_not_wait_for_a_pipe_nor_follow_a_link)
{
	struct registry r;
	char path[256];

	snprintf(path, sizeof(path), "%s/" RUNDIR_READY "%d-%" PRIu64, dir, (int)getpid(),
		 self.start_ticks);
	cr_assert_eq(mkfifo(path, 0600), 0);
	cr_assert_eq(registry_load(&r), 0);
	cr_assert_not(registry_of(&r, getpid()));
	registry_free(&r);
	unlink(path);
	cr_assert_eq(symlink("/proc/self/status", path), 0);
	cr_assert_eq(registry_load(&r), 0);
	cr_assert_not(registry_of(&r, getpid()));
	registry_free(&r);
}

Test(registry, tells_who_takes_a_process_and_what_was_taken_last)
{
	struct registry_taken t;

	int fd = registry_begin(getpid(), self.start_ticks);
	cr_assert_geq(fd, 0);
	cr_assert(registry_taken(getpid(), self.start_ticks, &t));
	cr_assert_eq(t.by, getpid());
	cr_assert_eq(t.t0_ms, 0);
	/* Another at the same time is not entered. */
	cr_assert_eq(registry_begin(getpid(), self.start_ticks), -EBUSY);
	registry_end(fd, 1234567, "/some/image.usnap");
	cr_assert(registry_taken(getpid(), self.start_ticks, &t));
	cr_assert_eq(t.by, 0);
	cr_assert_eq(t.t0_ms, 1234567);
	cr_assert_str_eq(t.file, "/some/image.usnap");
	fd = registry_begin(getpid(), self.start_ticks);
	registry_end(fd, 0, NULL);
	cr_assert(registry_taken(getpid(), self.start_ticks, &t));
	cr_assert_eq(t.by, 0);
	cr_assert_eq(t.t0_ms, 1234567);
	cr_assert_not(registry_taken(getpid(), self.start_ticks + 2, &t));
}

Test(procstat, reads_names_with_parentheses)
{
	struct procstat st;

	prctl(PR_SET_NAME, "a) Z 1 (b c");
	cr_assert_eq(procstat_read(getpid(), &st), 0);
	cr_assert_str_eq(st.comm, "a) Z 1 (b c");
	cr_assert_eq(st.state, 'R');
	cr_assert_eq(st.ppid, getppid());
	cr_assert(procstat_is(getpid(), st.start_ticks));
	cr_assert_not(procstat_is(getpid(), st.start_ticks + 2));
}

Test(procstat, takes_a_zombie_for_ended)
{
	struct procstat st;
	pid_t pid = fork();

	if (pid == 0)
		_exit(0);
	siginfo_t si;
	waitid(P_PID, (id_t)pid, &si, WEXITED | WNOWAIT);
	cr_assert_eq(procstat_read(pid, &st), 0);
	cr_assert_not(procstat_is(pid, st.start_ticks));
	waitpid(pid, NULL, 0);
	cr_assert_lt(procstat_read(pid, &st), 0);
}

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/util.h"
#include "restore/rfiles.h"

/* ---- a plan ------------------------------------------------------------------ */

static struct restore_options options;
static struct restore r;
static struct usnap_err err;

static int plan(const char *process)
{
	json_error_t e;

	memset(&err, 0, sizeof(err));
	r = (struct restore){.o = &options, .pid = 1234};
	r.process = json_loads(process, JSON_ALLOW_NUL, &e);
	cr_assert(r.process, "%s at %d of: %s", e.text, e.position, process);
	return rfiles_plan(&r, &err);
}

static void forget(void)
{
	rfiles_free(r.files);
	problems_free(&r);
	json_decref(r.process);
}

/* One descriptor, with these members after fd and flags. */
static int plan_one(const char *members)
{
	char text[2048];

	snprintf(text, sizeof(text), "{\"files\":[{\"fd\":5,\"flags\":\"0o2\",%s}]}", members);
	return plan(text);
}

static void refuses(const char *process, const char *what)
{
	cr_expect_eq(plan(process), -EBADMSG, "taken: %s", process);
	cr_expect(strstr(err.text, what), "'%s' instead of '%s' for %s", err.text, what, process);
	forget();
}

static void refuses_one(const char *members, const char *what)
{
	cr_expect_eq(plan_one(members), -EBADMSG, "taken: %s", members);
	cr_expect(strstr(err.text, what), "'%s' instead of '%s' for %s", err.text, what, members);
	forget();
}

static const struct restore_problem *problem(const char *kind)
{
	for (size_t i = 0; i < r.nr_problems; i++)
		if (!strcmp(r.problems[i].kind, kind))
			return &r.problems[i];
	return NULL;
}

/* What is said of a descriptor. */
static const char *said(int fd, const char *key)
{
	static char value[256];
	json_t *o = json_object(), *e;
	size_t i;

	value[0] = '\0';
	rfiles_describe(&r, o);
	json_array_foreach (json_object_get(o, "files"), i, e) {
		if (json_integer_value(json_object_get(e, "fd")) != fd)
			continue;
		json_t *v = json_object_get(e, key);
		if (json_is_integer(v))
			snprintf(value, sizeof(value), "%d", (int)json_integer_value(v));
		else if (v)
			snprintf(value, sizeof(value), "%s", json_string_value(v));
	}
	json_decref(o);
	return value;
}

Test(rfiles, numbers_and_types_are_checked)
{
	refuses("{\"files\":7}", "files");
	refuses("{\"files\":[7]}", "files[0]");
	refuses("{\"files\":[{}]}", "fd");
	refuses("{\"files\":[{\"fd\":-1}]}", "fd");
	refuses("{\"files\":[{\"fd\":2147483647}]}", "fd");
	refuses("{\"files\":[{\"fd\":\"3\"}]}", "fd");
	refuses("{\"files\":[{\"fd\":1}]}", "type");
	refuses("{\"files\":[{\"fd\":1,\"type\":\"file\"}]}", "flags");
	refuses("{\"files\":[{\"fd\":1,\"type\":\"file\",\"flags\":\"x\"}]}", "flags");
	refuses("{\"files\":[{\"fd\":1,\"description\":-4}]}", "description");
	refuses("{\"files\":[{\"fd\":1,\"cloexec\":1}]}", "cloexec");
	refuses("{\"files\":[{\"fd\":1,\"type\":\"eventfd\",\"flags\":\"0o2\"},"
		"{\"fd\":1,\"type\":\"eventfd\",\"flags\":\"0o2\"}]}",
		"descriptor 1 twice");
	refuses("{\"unlinked\":{}}", "unlinked");
	refuses("{\"unlinked\":[{\"dev\":\"00:01\"}]}", "inode");
	refuses("{\"unlinked\":[{\"inode\":1,\"dev\":\"00:\"}]}", "dev");
}

Test(rfiles, members_of_each_kind_are_checked)
{
	refuses_one("\"type\":\"file\",\"path\":\"/a\\u0000b\"", "NUL");
	refuses_one("\"type\":\"file\",\"path_hex\":\"2f00\"", "NUL");
	refuses_one("\"type\":\"file\",\"path_hex\":\"2g\"", "path_hex");
	refuses_one("\"type\":\"file\",\"path\":\"/\",\"offset\":-1", "offset");
	refuses_one("\"type\":\"file\",\"path\":\"/\",\"inode\":1,\"dev\":\"fe\"", "dev");
	refuses_one("\"type\":\"file\",\"path\":\"/\",\"inode\":1,\"dev\":\"-1:2\"", "dev");
	refuses_one("\"type\":\"file\",\"path\":\"/\",\"inode\":1,\"dev\":\"1:100000000\"", "dev");
	refuses_one("\"type\":\"file\",\"path\":\"/\",\"inode\":1,\"size\":-1", "size");
	refuses_one("\"type\":\"eventfd\",\"eventfd\":[]", "eventfd");
	refuses_one("\"type\":\"eventfd\",\"eventfd\":{\"count\":\"0xg\"}", "count");
	refuses_one("\"type\":\"eventfd\",\"eventfd\":{\"semaphore\":2}", "semaphore");
	refuses_one("\"type\":\"timerfd\",\"timerfd\":{\"value_ns\":-1}", "value_ns");
	refuses_one("\"type\":\"timerfd\",\"timerfd\":{\"clock\":99}", "clock");
	refuses_one("\"type\":\"signalfd\",\"signalfd\":{\"mask\":true}", "mask");
	refuses_one("\"type\":\"epoll\",\"epoll\":{\"set\":[{}]}", "fd");
	refuses_one("\"type\":\"epoll\",\"epoll\":{\"set\":[7]}", "fd");
	refuses_one("\"type\":\"epoll\",\"epoll\":{\"set\":[{\"fd\":1,\"events\":\"\"}]}",
		    "events");
	refuses_one("\"type\":\"inotify\",\"inotify\":{\"watches\":[{\"wd\":0}]}", "wd");
	refuses_one("\"type\":\"inotify\",\"inotify\":{\"watches\":["
		    "{\"wd\":1,\"inode\":0,\"mask\":1},{\"wd\":1,\"inode\":0,\"mask\":1}]}",
		    "watch 1 of descriptor 5 twice");
	refuses_one("\"type\":\"chr\",\"inode\":1,\"rdev\":\"5:2\",\"terminal\":{\"pty\":-1}",
		    "pty");
	refuses_one(
		"\"type\":\"chr\",\"inode\":1,\"rdev\":\"5:2\",\"terminal\":{\"termios\":\"0\"}",
		"termios");
	refuses_one("\"type\":\"pidfd\",\"pidfd\":{\"pid\":-2}", "pid");
	refuses("{\"files\":[{\"fd\":3,\"flags\":\"0o2\",\"type\":\"pipe\",\"inode\":9,\"pipe\":"
		"{\"data\":\"abc\"}}]}",
		"data");
	refuses("{\"unlinked\":[{\"inode\":9,\"content\":7}],\"files\":[{\"fd\":3,"
		"\"flags\":\"0o2\",\"type\":\"memfd\",\"inode\":9}]}",
		"content");
	refuses("{\"unlinked\":[{\"inode\":9,\"page_size\":12345}],\"files\":[{\"fd\":3,"
		"\"flags\":\"0o2\",\"type\":\"memfd\",\"inode\":9}]}",
		"page_size");
}

/* The image is of another machine: inode and handle mean nothing here. */
Test(rfiles, a_watch_from_elsewhere_is_put_on_its_path)
{
	cr_assert_eq(
		plan_one("\"type\":\"inotify\",\"inotify\":{\"watches\":[{\"wd\":1,"
			 "\"inode\":1,\"dev\":\"ff:ff\",\"mask\":\"0x2\",\"path\":\"/etc\"}]}"),
		0);
	const struct restore_problem *p = problem("watched-file");
	cr_assert(p && p->severity == RESTORE_NOTE);
	cr_assert(!problem("inotify-watch"));
	forget();
	cr_assert_eq(
		plan_one("\"type\":\"inotify\",\"inotify\":{\"watches\":[{\"wd\":1,"
			 "\"inode\":1,\"dev\":\"ff:ff\",\"mask\":\"0x2\",\"path\":\"/nowhere\"}]}"),
		0);
	cr_assert(problem("inotify-watch"));
	forget();
}

Test(rfiles, a_missing_file_is_named_with_its_descriptor)
{
	cr_assert_eq(plan_one("\"type\":\"file\",\"path\":\"/nowhere/file\",\"inode\":1"), 0);
	const struct restore_problem *p = problem("missing-file");
	cr_assert(p && p->severity == RESTORE_FATAL);
	cr_assert(strstr(p->detail, "fd 5: '/nowhere/file'"), "%s", p->detail);
	forget();
	/* Neither a type nor a path that anybody has heard of. */
	cr_assert_eq(plan_one("\"type\":\"file\""), 0);
	cr_assert(problem("missing-file"));
	forget();
	cr_assert_eq(plan_one("\"type\":\"of the future\""), 0);
	cr_assert_str_eq(said(5, "how"), "null");
	forget();
}

Test(rfiles, descriptors_of_one_description_share_it)
{
	cr_assert_eq(plan("{\"files\":["
			  "{\"fd\":9,\"flags\":\"0o2\",\"type\":\"eventfd\",\"description\":4},"
			  "{\"fd\":3,\"flags\":\"0o2\",\"type\":\"eventfd\",\"description\":4},"
			  "{\"fd\":4,\"flags\":\"0o2\",\"type\":\"eventfd\",\"description\":2}]}"),
		     0);
	cr_expect_str_eq(said(9, "shares"), "3");
	cr_expect_str_eq(said(3, "shares"), "");
	cr_expect_str_eq(said(4, "shares"), "");
	forget();
}

Test(rfiles, redirected_numbers_that_shared_an_offset_share_one_again)
{
	const struct restore_fd fds[] = {{1, "/dev/null"}, {2, "/dev/null"}, {5, "/dev/full"}};
	const char *process = "{\"files\":["
			      "{\"fd\":1,\"flags\":\"0o2\",\"type\":\"other\",\"description\":0},"
			      "{\"fd\":2,\"flags\":\"0o2\",\"type\":\"other\",\"description\":0},"
			      "{\"fd\":5,\"flags\":\"0o2\",\"type\":\"other\",\"description\":0},"
			      "{\"fd\":6,\"flags\":\"0o2\",\"type\":\"other\",\"description\":0}]}";

	options.fds = fds;
	options.nr_fds = 3;
	cr_assert_eq(plan(process), 0, "%s", err.text);
	cr_expect_str_eq(said(1, "path"), "/dev/null");
	cr_expect_str_eq(said(2, "shares"), "1");
	cr_expect_str_eq(said(5, "path"), "/dev/full");
	cr_expect_str_eq(said(6, "how"), "null");
	forget();
	options.fds = &(const struct restore_fd){7, NULL};
	options.nr_fds = 1;
	cr_expect_eq(plan(process), -ENOENT);
	forget();
}

static const char one_ended[] = "{\"files\":[{\"fd\":1,\"flags\":\"0o1\",\"type\":\"pipe\","
				"\"path\":\"pipe:[9]\",\"inode\":9,\"description\":1},"
				"{\"fd\":8,\"flags\":\"0o1\",\"type\":\"pipe\","
				"\"path\":\"pipe:[9]\",\"inode\":9,\"description\":2},"
				"{\"fd\":7,\"flags\":\"0o1\",\"type\":\"pipe\","
				"\"path\":\"pipe:[8]\",\"inode\":8,\"description\":3}]}";

Test(rfiles, pipes_that_lead_outside_are_the_restorers)
{
	cr_assert_eq(plan(one_ended), 0);
	cr_expect_str_eq(said(1, "how"), "inherited");
	cr_expect_str_eq(said(8, "how"), "inherited");
	cr_expect_str_eq(said(8, "from"), "1");
	cr_expect_str_eq(said(7, "how"), "null");
	forget();
}

Test(rfiles, mappings_find_files_without_a_name)
{
	cr_assert_eq(
		plan("{\"unlinked\":[{\"inode\":9,\"dev\":\"00:01\",\"map_inode\":19,"
		     "\"map_dev\":\"00:11\"},{\"inode\":8,\"dev\":\"00:01\"}],"
		     "\"maps\":[{\"inode\":8,\"dev\":\"00:01\"}],\"files\":["
		     "{\"fd\":3,\"flags\":\"0o0\",\"type\":\"memfd\",\"inode\":9,"
		     "\"dev\":\"00:01\"},"
		     "{\"fd\":4,\"flags\":\"0o2\",\"type\":\"memfd\",\"inode\":9,"
		     "\"dev\":\"00:01\"},"
		     "{\"fd\":5,\"flags\":\"0o0\",\"type\":\"file\",\"inode\":8,\"path\":\"/x\","
		     "\"dev\":\"00:01\",\"deleted\":true}]}"),
		0, "%s", err.text);
	cr_expect_eq(rfiles_find(&r, 0, 0x11, 19, PROT_READ), 3);
	cr_expect_eq(rfiles_find(&r, 0, 0x11, 19, PROT_READ | PROT_WRITE), 4);
	cr_expect_eq(rfiles_find(&r, 0, 1, 9, PROT_READ), -1);
	/* One is kept for the mapping: the process could only read. */
	cr_expect_eq(rfiles_find(&r, 0, 1, 8, PROT_READ | PROT_WRITE), 6);
	forget();
}

/* ---- built ----------------------------------------------------------------------- */

/* Builds in a child, which is left with what the process would have, and says whether it is so. */
static void build(const char *process, bool (*is_so)(void))
{
	int status;

	cr_assert_eq(plan(process), 0, "%s", err.text);
	struct usnap_err *shared =
		mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t pid = fork();
	if (!pid)
		_exit(rfiles_build(&r, shared) < 0 ? 2 : !is_so());
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert(status == 0, "status 0x%x: %s", status, shared->text);
	munmap(shared, 4096);
	forget();
}

static bool nothing_else_is_open(const int *fds, size_t n)
{
	for (int fd = 0; fd < 1000; fd++) {
		bool wanted = false;

		for (size_t i = 0; i < n; i++)
			wanted |= fds[i] == fd;
		if (wanted != (fcntl(fd, F_GETFD) >= 0))
			return false;
	}
	return true;
}

static bool is_pipe_with_content(void)
{
	char buf[16];

	return nothing_else_is_open((int[]){0, 7, 900}, 3) && read(900, buf, 16) == 3 &&
	       !memcmp(buf, "abc", 3) && fcntl(7, F_GETFL) == (O_WRONLY | O_NONBLOCK) &&
	       fcntl(0, F_GETFD) == FD_CLOEXEC && write(0, "x", 1) == 1 && write(7, "y", 1) == 1 &&
	       read(900, buf, 16) == 2 && fcntl(900, F_GETPIPE_SZ) == 4096;
}

Test(rfiles, pipes_are_built_with_what_waits_in_them)
{
	build("{\"files\":["
	      "{\"fd\":900,\"flags\":\"0o0\",\"type\":\"pipe\",\"inode\":9,\"description\":1,"
	      "\"pipe\":{\"size\":4096,\"queued\":3,\"data\":\"616263\"}},"
	      "{\"fd\":7,\"flags\":\"0o4001\",\"type\":\"pipe\",\"inode\":9,\"description\":2},"
	      "{\"fd\":0,\"cloexec\":true,\"flags\":\"0o100001\",\"type\":\"pipe\",\"inode\":9,"
	      "\"description\":3}]}",
	      is_pipe_with_content);
}

static bool is_epoll_with_moved_entry(void)
{
	struct epoll_event e[4];
	uint64_t one = 1;

	if (!nothing_else_is_open((int[]){3, 4, 6}, 3) || epoll_wait(3, e, 4, 0) != 0 ||
	    write(6, &one, 8) != 8)
		return false;
	/* Added as 4, which is another one's number by now, and as 5, which is nobody's. */
	return epoll_wait(3, e, 4, 0) == 2 && e[0].data.u64 + e[1].data.u64 == 33 &&
	       write(4, &one, 8) == 8 && epoll_wait(3, e, 4, 0) == 2;
}

Test(rfiles, epoll_entries_find_their_file_under_another_number)
{
	build("{\"files\":["
	      "{\"fd\":3,\"flags\":\"0o2\",\"type\":\"epoll\",\"description\":1,\"epoll\":{\"set\":"
	      "["
	      "{\"fd\":4,\"events\":\"0x1\",\"data\":\"0xb\",\"inode\":7,\"description\":3},"
	      "{\"fd\":5,\"events\":\"0x1\",\"data\":\"0x16\",\"inode\":7,\"description\":3},"
	      "{\"fd\":9,\"events\":\"0x1\",\"data\":\"0x63\",\"inode\":7,\"description\":null}]}},"
	      "{\"fd\":4,\"flags\":\"0o2\",\"type\":\"eventfd\",\"inode\":7,\"description\":2},"
	      "{\"fd\":6,\"flags\":\"0o2\",\"type\":\"eventfd\",\"inode\":7,\"description\":3}]}",
	      is_epoll_with_moved_entry);
}

static bool is_full(void)
{
	return nothing_else_is_open((int[]){1}, 1) && write(1, "x", 1) < 0 && errno == ENOSPC;
}

Test(rfiles, a_redirected_descriptor_is_opened)
{
	options.fds = &(const struct restore_fd){1, "/dev/full"};
	options.nr_fds = 1;
	build("{\"files\":[{\"fd\":1,\"flags\":\"0o1\",\"type\":\"file\",\"path\":\"/nowhere\","
	      "\"inode\":1}]}",
	      is_full);
}

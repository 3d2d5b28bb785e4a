/* Which numbers, which namespaces; place.h has the design. */
#include "restore/place.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/io.h"
#include "common/procstat.h"
#include "common/util.h"
#include "restore/place_internal.h"
#include "restore/rjson.h"

enum {
	MAX_THREADS = 1 << 22 /* PID_MAX_LIMIT */
};

__attribute__((format(printf, 2, 3))) static int because(struct place *p, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(p->why, sizeof(p->why), fmt, ap);
	va_end(ap);
	return 1;
}

static bool in_use(pid_t number)
{
	/* As a process or thread, or as a process group whose leader has ended. */
	return kill(number, 0) == 0 || errno != ESRCH || kill(-number, 0) == 0 || errno != ESRCH;
}

/* What was just killed, as by whoever moves it here, is gone in a moment, when it has been waited for. It
 * is asked twice, for there is an instant in which it does not show. */
static bool becomes_free(pid_t number)
{
	struct procstat stat;

	for (unsigned tries = 0, no = 0; tries < ID_TRIES && no < 2; tries++) {
		if (!in_use(number))
			return true;
		no = procstat_read(number, &stat) == 0 && stat.ends ? 0 : no + 1;
		usleep(ID_WAIT_US);
	}
	return !in_use(number);
}

static int check_number(struct place *p, const char *what, pid_t number, pid_t pid_max)
{
	cleanup_free char *comm = NULL;
	char path[32];

	if (number >= pid_max)
		return because(p, "%s %d is above kernel.pid_max, which is %d here", what,
			       (int)number, (int)pid_max);
	if (!in_use(number) || becomes_free(number))
		return 0;
	snprintf(path, sizeof(path), "/proc/%d/comm", (int)number);
	if (io_read_file_at(AT_FDCWD, path, 64, &comm, NULL) < 0)
		return because(p, "%s %d is in use", what, (int)number);
	return because(p, "%s %d is in use (%.*s)", what, (int)number, (int)strcspn(comm, "\n"),
		       comm);
}

static pid_t read_pid_max(void)
{
	cleanup_free char *text = NULL;

	if (io_read_file_at(AT_FDCWD, "/proc/sys/kernel/pid_max", 64, &text, NULL) < 0)
		return INT32_MAX;
	return (pid_t)strtol(text, NULL, 10);
}

/* Are the numbers free here, and may we give them? 1 and p->why when not. */
static int check_numbers(struct restore *r, struct place *p, struct usnap_err *err)
{
	pid_t pid_max = read_pid_max();
	json_t *threads, *t;
	size_t i;
	int code = place_may_choose_pids();

	if (code < 0)
		return because(p, code == -EPERM
					  ? "the right to choose PIDs is missing "
					    "(CAP_CHECKPOINT_RESTORE)"
					  : "this kernel or a seccomp filter does not let PIDs "
					    "be chosen (clone3(2))");
	code = check_number(p, "PID", r->pid, pid_max);
	if (code == 0)
		code = rjson_array(r->process, "threads", MAX_THREADS, &threads, err);
	if (code)
		return code;
	json_array_foreach (threads, i, t) {
		pid_t tid;

		code = rjson_innermost(t, "tid_ns", 0, &tid, err);
		if (code == 0 && tid > 0 && tid != r->pid)
			code = check_number(p, "thread ID", tid, pid_max);
		if (code)
			return code;
	}
	return 0;
}

static int plan_pids(struct restore *r, struct place *p, struct usnap_err *err)
{
	int code = 1;

	if (r->o->pids == RESTORE_PIDS_NAMESPACE)
		because(p, "asked for");
	else
		code = check_numbers(r, p, err);
	if (code <= 0)
		return code;
	if (r->o->pids == RESTORE_PIDS_SAME) {
		code = restore_problem(r, RESTORE_FATAL, "pid", "%s", p->why);
		return code < 0 ? code
				: restore_problem_hint(r, "without --same-pid a PID namespace "
							  "gives the process its numbers");
	}
	p->spaces.pids = true;
	p->spaces.users = !place_capable(CAP_SYS_ADMIN);
	if (r->pid == 1)
		return restore_problem(r, RESTORE_FATAL, "pid",
				       "it was process 1 of its PID namespace, and that place is "
				       "taken by the process that looks after it");
	return 0;
}

/* What the plan needs, tried out: a dry run is to say what a real one would meet. */
static int try_spaces(struct restore *r, struct place *p)
{
	struct place_spaces s = p->spaces;
	struct usnap_err why = {0};

	s.clocks = false;
	if (s.pids && place_try(&s, &why) < 0) {
		int code = restore_problem(r, RESTORE_FATAL, "pid-namespace", "%s, and here: %s",
					   why.text, p->why);
		return code < 0 ? code : restore_problem_hint(r, "%s", why.hint);
	}
	s.clocks = p->spaces.clocks;
	if (s.clocks && place_try(&s, &why) < 0) {
		p->spaces.clocks = false;
		return restore_problem(r, RESTORE_REFUSE, "clocks",
				       "the clocks of this machine are not those of the process, "
				       "and it cannot have its own: %s",
				       why.text);
	}
	return 0;
}

int place_plan(struct restore *r, struct usnap_err *err)
{
	struct place *p = calloc(1, sizeof(*p));

	if (!p)
		return usnap_fail_errno(err, -ENOMEM, "cannot restore '%s'", r->o->image);
	p->pidfd = p->channel = -1;
	r->place = p;
	int code = plan_pids(r, p, err);
	if (code == 0)
		code = place_plan_clocks(r, &p->spaces.offsets, &p->spaces.clocks, err);
	if (code == 0)
		code = try_spaces(r, p);
	return code;
}

void place_free(struct place *p)
{
	if (!p)
		return;
	if (p->pidfd >= 0)
		close(p->pidfd);
	if (p->channel >= 0)
		close(p->channel);
	free(p);
}

bool place_has_own_users(const struct restore *r)
{
	return r->place->spaces.users;
}

void place_describe(const struct restore *r, json_t *o)
{
	const struct place *p = r->place;
	json_t *place =
		json_pack("{s:b,s:b,s:b}", "pid_namespace", p->spaces.pids, "user_namespace",
			  p->spaces.users, "time_namespace", p->spaces.clocks);

	if (place && p->why[0])
		json_object_set_new(place, "why", json_string(p->why));
	json_object_set_new(o, "place", place);
}

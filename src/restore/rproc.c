/* What belongs to the process as a whole: the plan, and what the builder makes
 * in plain C. */
#include "restore/rproc.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/membarrier.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/io.h"
#include "common/util.h"
#include "restore/rcreds.h"
#include "restore/rjson.h"
#include "restore/rproc_internal.h"

#ifndef PR_SET_MDWE /* Linux 6.3 */
#define PR_SET_MDWE 65
#endif
#ifndef PR_SET_MEMORY_MERGE /* Linux 6.4 */
#define PR_SET_MEMORY_MERGE 67
#endif
#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif
#define MDWE_BITS 3 /* PR_MDWE_REFUSE_EXEC_GAIN, PR_MDWE_NO_INHERIT */
#define DELETED " (deleted)"

/* ---- plan
 * -------------------------------------------------------------------------------
 */

/* true, false or not known: 1, 0, -1. */
static int plan_switch(const json_t *o, const char *key, int *ret, struct usnap_err *err)
{
	const json_t *v = json_object_get(o, key);
	bool on = false;

	*ret = -1;
	if (!v || json_is_null(v))
		return 0;
	int r = rjson_bool_or(o, key, false, &on, err);
	if (r == 0)
		*ret = on;
	return r;
}

/* As prctl(PR_GET_DUMPABLE) has it, or whether it is at all. */
static int plan_dumpable(struct rproc *p, const json_t *o, struct usnap_err *err)
{
	int64_t v;

	if (!json_is_integer(json_object_get(o, "dumpable")))
		return plan_switch(o, "dumpable", &p->dumpable, err);
	int r = rjson_int(o, "dumpable", 0, 2, &v, err);
	/* 2, readable by root alone, cannot be asked for; 0 forbids no less. */
	if (r == 0)
		p->dumpable = v == 1;
	return r;
}

static int plan_numbers(struct restore *r, struct rproc *p, struct usnap_err *err)
{
	const json_t *o = r->process;
	uint64_t mask = 0;
	uint64_t mdwe, merge, flusher;
	int64_t oom;
	int e;

	p->umask = -1;
	if ((e = rjson_word_or(o, "umask", UINT64_MAX, &mask, err)) < 0 ||
	    (e = rjson_int_or(o, "oom_score_adj", -1000, 1000, 1001, &oom, err)) < 0 ||
	    (e = rjson_word_or(o, "coredump_filter", UINT64_MAX, &p->coredump_filter, err)) < 0 ||
	    (e = rjson_word_or(o, "mdwe", 0, &mdwe, err)) < 0 ||
	    (e = rjson_word_or(o, "memory_merge", 0, &merge, err)) < 0 ||
	    (e = rjson_word_or(o, "io_flusher", 0, &flusher, err)) < 0 ||
	    (e = rjson_word_or(o, "membarrier", UINT64_MAX, &p->membarrier, err)) < 0 ||
	    (e = plan_dumpable(p, o, err)) < 0 ||
	    (e = plan_switch(o, "thp_disable", &p->thp_disable, err)) < 0 ||
	    (e = plan_switch(o, "child_subreaper", &p->child_subreaper, err)) < 0)
		return e;
	if (mask <= 0777)
		p->umask = (int)mask;
	p->mdwe = (int)(mdwe & MDWE_BITS);
	p->memory_merge = merge != 0;
	p->io_flusher = flusher != 0;
	p->has_oom = oom <= 1000;
	p->oom_score_adj = (int)oom;
	p->has_filter = p->coredump_filter <= UINT32_MAX;
	return 0;
}

static bool strip_deleted(char *path)
{
	size_t len = strlen(path), end = strlen(DELETED);

	if (len < end || strcmp(path + len - end, DELETED) != 0)
		return false;
	path[len - end] = '\0';
	return true;
}

static int plan_directories(struct restore *r, struct rproc *p, struct usnap_err *err)
{
	struct stat st, own;
	int e;

	if ((e = rjson_path(r->process, "cwd", &p->cwd, err)) < 0 ||
	    (e = rjson_path(r->process, "root", &p->root, err)) < 0)
		return e;
	/* The image itself says that one was deleted ("deleted-directory"). */
	p->cwd_deleted = p->cwd && stat(p->cwd, &st) < 0 && strip_deleted(p->cwd);
	if (p->cwd && !p->cwd_deleted && (stat(p->cwd, &st) < 0 || !S_ISDIR(st.st_mode)))
		e = restore_problem(r, RESTORE_REFUSE, "working-directory",
				    "its working directory '%s' is not there (ignored: '/')",
				    p->cwd);
	if (p->root && e == 0 && stat("/", &own) == 0 &&
	    (stat(p->root, &st) < 0 || st.st_ino != own.st_ino || st.st_dev != own.st_dev)) {
		if (stat(p->root, &st) < 0 || !S_ISDIR(st.st_mode))
			e = restore_problem(r, RESTORE_REFUSE, "root-directory",
					    "its root directory '%s' is not there (ignored: the "
					    "restorer's)",
					    p->root);
	} else {
		free(p->root);
		p->root = NULL;
	}
	return e < 0 ? usnap_fail_errno(err, e, "cannot restore") : 0;
}

static int own_number(const char *path, long *ret)
{
	cleanup_free char *text = NULL;
	int e = io_read_file_at(AT_FDCWD, path, 64, &text, NULL);

	if (e == 0)
		*ret = strtol(text, NULL, 10);
	return e;
}

static int judge_rest(struct restore *r, struct rproc *p, struct usnap_err *err)
{
	long own_oom = 0;
	int e = 0;
	struct rcreds own;

	bool may = rcreds_own(&own) == 0 && own.effective >> 24 & 1; /* CAP_SYS_RESOURCE */
	rcreds_free(&own);
	if (p->has_oom && !may && own_number("/proc/self/oom_score_adj", &own_oom) == 0 &&
	    p->oom_score_adj < own_oom)
		e = restore_problem(r, RESTORE_NOTE, "oom-score",
				    "its oom_score_adj of %d is below the restorer's, which may "
				    "not lower it (CAP_SYS_RESOURCE): %ld",
				    p->oom_score_adj, own_oom);
	p->leads_session = r->sid == r->pid;
	p->leads_group = r->pgid == r->pid;
	if (e == 0 && !p->leads_group && !r->o->detach && r->pgid != getpgrp())
		e = restore_problem(r, RESTORE_NOTE, "process-group",
				    "it was in process group %d, which it did not lead; it comes "
				    "back in the restorer's",
				    (int)r->pgid);
	return e < 0 ? usnap_fail_errno(err, e, "cannot restore") : 0;
}

int rproc_plan(struct restore *r, struct usnap_err *err)
{
	struct rproc *p = calloc(1, sizeof(*p));
	json_t *signals;
	int e;

	r->proc = p;
	if (!p)
		return usnap_fail_errno(err, -ENOMEM, "cannot restore");
	if ((e = plan_numbers(r, p, err)) < 0 || (e = plan_directories(r, p, err)) < 0 ||
	    (e = rjson_object(r->process, "signals", &signals, err)) < 0 ||
	    (e = ractions_parse(&p->actions, signals, err)) < 0 ||
	    (e = rsignals_parse(&p->pending, signals, "pending", err)) < 0 ||
	    (e = rlimits_plan(r, &p->limits, err)) < 0 ||
	    (e = rtimers_plan(r, &p->timers, err)) < 0 || (e = judge_rest(r, p, err)) < 0)
		return e;
	return rspaces_judge(r, err);
}

void rproc_free(struct rproc *p)
{
	if (!p)
		return;
	rsignals_free(&p->pending);
	rtimers_free(&p->timers);
	free(p->cwd);
	free(p->root);
	free(p);
}

void rproc_describe(const struct restore *r, json_t *o)
{
	const struct rproc *p = r->proc;
	json_t *cwd = p->cwd ? json_string(p->cwd) : NULL;

	json_object_set_new(o, "cwd", cwd ? cwd : json_null());
	json_object_set_new(o, "session", json_string(p->leads_session ? "own" : "restorer's"));
	json_object_set_new(o, "process_group", json_string(p->leads_group ? "own" : "restorer's"));
	json_object_set_new(o, "posix_timers", json_integer((json_int_t)p->timers.n));
}

/* ---- in the builder --------------------------------------------------------------------------- */

int rproc_begin(struct restore *r, struct usnap_err *err)
{
	const struct rproc *p = r->proc;

	/* Left to itself, it is not to get what the terminal of whoever started us sends. */
	if (p->leads_session || r->o->detach) {
		if (setsid() < 0)
			return usnap_fail_errno(err, -errno, "cannot begin a session");
	} else if (p->leads_group && setpgid(0, 0) < 0) {
		return usnap_fail_errno(err, -errno, "cannot begin a process group");
	}
	return 0;
}

/* A file of /proc/self; what it refuses was told before. */
static int write_own(const char *path, const char *text, struct usnap_err *err)
{
	cleanup_fd int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return usnap_fail_errno(err, -errno, "cannot open '%s'", path);
	if (write(fd, text, strlen(text)) < 0 && errno != EACCES && errno != EPERM)
		return usnap_fail_errno(err, -errno, "cannot write '%s'", path);
	return 0;
}

/* A directory that nobody can find any more. */
static int enter_deleted(struct usnap_err *err)
{
	char path[] = "/tmp/uffd-snap-XXXXXX";

	if (!mkdtemp(path))
		return usnap_fail_errno(err, -errno, "cannot make a working directory in '/tmp'");
	int e = chdir(path) < 0 ? -errno : 0;
	rmdir(path);
	return e < 0 ? usnap_fail_errno(err, e, "cannot enter '%s'", path) : 0;
}

static int enter_directories(struct restore *r, struct usnap_err *err)
{
	const struct rproc *p = r->proc;
	int e = 0;

	if (p->cwd_deleted)
		e = enter_deleted(err);
	else if (p->cwd && chdir(p->cwd) < 0)
		e = restore_ignores(r, "working-directory") && chdir("/") == 0
			    ? 0
			    : usnap_fail_errno(err, -errno, "cannot enter '%s'", p->cwd);
	return e;
}

int rproc_build(struct restore *r, struct usnap_err *err)
{
	const struct rproc *p = r->proc;
	char text[32];
	long own;
	int e = 0;

	if (p->has_oom && own_number("/proc/self/oom_score_adj", &own) == 0 &&
	    own != p->oom_score_adj) {
		snprintf(text, sizeof(text), "%d", p->oom_score_adj);
		e = write_own("/proc/self/oom_score_adj", text, err);
	}
	if (e == 0 && p->has_filter) {
		snprintf(text, sizeof(text), "0x%llx", (unsigned long long)p->coredump_filter);
		e = write_own("/proc/self/coredump_filter", text, err);
	}
	if (e == 0)
		e = enter_directories(r, err);
	if (e == 0 && p->umask >= 0)
		umask((mode_t)p->umask);
	return e;
}

/* ---- by remote calls -------------------------------------------------------------------------- */

/* By now nothing more is looked up for the process in the restorer's directories. */
static int enter_root(struct restore *r, struct usnap_err *err)
{
	const struct rproc *p = r->proc;
	struct stub_batch b;

	if (!p->root)
		return 0;
	stub_reset(r->stub);
	stub_begin(&b, r->stub, 1);
	stub_add(&b, SYS_chroot, stub_data(&b, p->root, strlen(p->root) + 1), 0, 0, 0, 0, 0);
	int e = stub_run(&b, stub_main_lane(r->stub), NULL);
	if (e == 0 || restore_ignores(r, "root-directory"))
		return 0;
	return usnap_fail_errno(err, e, "cannot make '%s' the root directory", p->root);
}

/* membarrier(2) fails in a process that has not registered for its commands. Where it is not known
 * whether one has, to be registered for all costs it next to nothing. */
static void add_membarrier(struct rcalls *c, uint64_t registrations)
{
	static const uint64_t commands[] = {
		MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED,
		MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED,
		MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE,
		MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ,
	};

	for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
		if (registrations & commands[i])
			rcalls_try(c, "register it for barriers", SYS_membarrier, commands[i], 0, 0,
				   0, 0);
}

static int restore_switches(struct restore *r, struct usnap_err *err)
{
	const struct rproc *p = r->proc;
	struct rcalls c;

	stub_reset(r->stub);
	rcalls_begin(&c, r->stub, stub_main_lane(r->stub), r->pid);
	if (p->thp_disable >= 0)
		rcalls_try(&c, "set whether it has huge pages", SYS_prctl, PR_SET_THP_DISABLE,
			   (uint64_t)p->thp_disable, 0, 0, 0);
	if (p->child_subreaper > 0)
		rcalls_add(&c, "make it a reaper of its descendants", SYS_prctl,
			   PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
	if (p->memory_merge > 0)
		rcalls_try(&c, "have its memory merged", SYS_prctl, PR_SET_MEMORY_MERGE, 1, 0, 0,
			   0);
	if (p->io_flusher > 0)
		rcalls_try(&c, "make it a flusher", SYS_prctl, PR_SET_IO_FLUSHER, 1, 0, 0, 0);
	add_membarrier(&c, p->membarrier);
	return rcalls_run(&c, 1, err);
}

int rproc_restore(struct restore *r, struct usnap_err *err)
{
	struct rproc *p = r->proc;
	int e;

	/* An action that ignores a signal drops those that wait. */
	if ((e = enter_root(r, err)) < 0 || (e = ractions_restore(r, &p->actions, err)) < 0 ||
	    (e = rlimits_raise(r, &p->limits, err)) < 0 || (e = restore_switches(r, err)) < 0 ||
	    (e = rtimers_create(r, &p->timers, err)) < 0)
		return e;
	return rsignals_queue(r, stub_main_lane(r->stub), r->pid, true, &p->pending, err);
}

int rproc_settle(struct restore *r, struct usnap_err *err)
{
	const struct rproc *p = r->proc;
	struct rcalls c;

	stub_reset(r->stub);
	rcalls_begin(&c, r->stub, stub_main_lane(r->stub), r->pid);
	/* Not known: as of any process. */
	rcalls_add(&c, "set whether it may be dumped", SYS_prctl, PR_SET_DUMPABLE, p->dumpable != 0,
		   0, 0, 0);
	if (p->mdwe > 0)
		rcalls_add(&c, "forbid it memory to write and execute", SYS_prctl, PR_SET_MDWE,
			   (uint64_t)p->mdwe, 0, 0, 0);
	return rcalls_run(&c, 1, err);
}

int rproc_arm(struct restore *r, struct usnap_err *err)
{
	const struct rproc *p = r->proc;
	int e = rlimits_restore(r, &p->limits, err);

	return e < 0 ? e : rtimers_arm(r, &p->timers, err);
}

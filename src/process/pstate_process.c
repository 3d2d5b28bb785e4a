/* What is true of the process as a whole, in JSON; pstate.c has the format. */
#include <stdlib.h>
#include <string.h>

#include "common/util.h"
#include "process/pstate_internal.h"

/* Field nr of /proc/PID/stat, counted from 1; 3 and up. */
uint64_t stat_field(const char *stat, unsigned nr)
{
	const char *s = strrchr(stat, ')');

	for (unsigned i = 2; s && i < nr; i++) {
		s = strchr(s, ' ');
		if (s)
			s++;
	}
	return s ? strtoull(s, NULL, 10) : 0;
}

static json_t *rlimit_value(rlim_t v)
{
	return json_integer(v == RLIM_INFINITY ? -1 : (json_int_t)v);
}

static json_t *limits_json(const struct pstate *ps)
{
	static const char *const names[RLIM_NLIMITS] = {
		[RLIMIT_CPU] = "cpu",		[RLIMIT_FSIZE] = "fsize",
		[RLIMIT_DATA] = "data",		[RLIMIT_STACK] = "stack",
		[RLIMIT_CORE] = "core",		[RLIMIT_RSS] = "rss",
		[RLIMIT_NPROC] = "nproc",	[RLIMIT_NOFILE] = "nofile",
		[RLIMIT_MEMLOCK] = "memlock",	[RLIMIT_AS] = "as",
		[RLIMIT_LOCKS] = "locks",	[RLIMIT_SIGPENDING] = "sigpending",
		[RLIMIT_MSGQUEUE] = "msgqueue", [RLIMIT_NICE] = "nice",
		[RLIMIT_RTPRIO] = "rtprio",	[RLIMIT_RTTIME] = "rttime",
	};
	json_t *a = json_array();

	for (unsigned i = 0; i < RLIM_NLIMITS; i++)
		if (ps->has_limit[i] && names[i])
			json_array_append_new(
				a, json_pack("{s:s,s:o,s:o}", "resource", names[i], "soft",
					     rlimit_value(ps->limits[i].rlim_cur), "hard",
					     rlimit_value(ps->limits[i].rlim_max)));
	return a;
}

static json_t *numbers_json(const char *status, const char *key)
{
	json_t *a = json_array();
	uint64_t v;

	for (unsigned n = 0; text_number(status, key, n, 10, &v); n++)
		json_array_append_new(a, json_integer((json_int_t)v));
	return a;
}

static json_t *cmdline_json(const struct pstate *ps, json_t *root)
{
	json_t *a = json_array();
	bool lossy = false;

	for (size_t i = 0; i < ps->cmdline_len;) {
		const char *arg = ps->cmdline + i;
		size_t len = strnlen(arg, ps->cmdline_len - i);
		json_t *j = json_stringn(arg, len);

		if (!j) {
			lossy = true;
			j = json_null();
		}
		json_array_append_new(a, j);
		i += len + 1;
	}
	if (lossy)
		json_object_set_new(root, "cmdline_hex", json_hex(ps->cmdline, ps->cmdline_len));
	return a;
}

static json_t *children_json(const struct pstate *ps)
{
	json_t *a = json_array();

	for (const char *s = ps->children; s && *s;) {
		char *end;
		long pid = strtol(s, &end, 10);

		if (end == s)
			break;
		json_array_append_new(a, json_integer(pid));
		s = end + strspn(end, " \n");
	}
	return a;
}

/* The kernel's number of a device in /proc/PID/stat: minor 12 bits above 20, 8 below the major. */
static void terminal_json(json_t *root, const char *stat)
{
	unsigned nr = (unsigned)stat_field(stat, 7);

	if (nr)
		json_object_set_new(root, "tty",
				    json_pack("{s:o,s:i}", "rdev",
					      json_sprintf("%u:%u", nr >> 8 & 0xfff,
							   (nr & 0xff) | (nr >> 12 & 0xfff00)),
					      "pgrp", (int)stat_field(stat, 8)));
}

void process_identity_json(const struct pstate *ps, json_t *root, const char *status)
{
	const char *stat = span_text(ps->stat);
	uint64_t v;

	json_object_set_new(root, "pid", json_integer(ps->t->pid));
	json_object_set_new(root, "ppid", json_integer((json_int_t)stat_field(stat, 4)));
	json_object_set_new(root, "pgid", json_integer((json_int_t)stat_field(stat, 5)));
	json_object_set_new(root, "sid", json_integer((json_int_t)stat_field(stat, 6)));
	terminal_json(root, stat);
	json_object_set_new(root, "pid_ns", numbers_json(status, "NStgid"));
	json_object_set_new(root, "pgid_ns", numbers_json(status, "NSpgid"));
	json_object_set_new(root, "sid_ns", numbers_json(status, "NSsid"));
	json_set_text(root, "comm", ps->t->comm);
	json_set_text(root, "exe", ps->exe);
	json_object_set_new(root, "cmdline", cmdline_json(ps, root));
	json_set_text(root, "cwd", ps->cwd[0] ? ps->cwd : NULL);
	json_set_text(root, "root", ps->root);
	if (text_number(status, "Umask", 0, 8, &v))
		json_object_set_new(root, "umask", json_sprintf("0o%llo", (unsigned long long)v));
}

/* The owner of /proc/PID is the process's own user when it may be dumped,
 * root otherwise: for root's processes nothing can be seen from outside. */
static json_t *dumpable_json(const struct pstate *ps, const char *status)
{
	uint64_t euid = 0;

	if (!text_number(status, "Uid", 1, 10, &euid) || euid == 0)
		return json_null();
	return json_boolean(ps->proc_uid == (uid_t)euid);
}

static void set_word(json_t *o, const char *key, int64_t v)
{
	if (v >= 0)
		json_object_set_new(o, key, json_integer(v));
}

static void facts_json(const struct pstate *ps, json_t *root, const char *status)
{
	const struct process_facts *f = &ps->facts;

	json_object_set_new(root, "dumpable",
			    f->dumpable >= 0 ? json_integer(f->dumpable)
					     : dumpable_json(ps, status));
	set_word(root, "securebits", f->securebits);
	set_word(root, "mdwe", f->mdwe);
	set_word(root, "memory_merge", f->memory_merge);
	set_word(root, "io_flusher", f->io_flusher);
	set_word(root, "membarrier", f->membarrier);
}

void process_attributes_json(const struct pstate *ps, json_t *root, const char *status)
{
	uint64_t v;

	json_object_set_new(root, "limits", limits_json(ps));
	json_object_set_new(root, "creds", creds_json(status));
	json_object_set_new(root, "personality",
			    ps->personality ? json_address(strtoull(ps->personality, NULL, 16))
					    : json_null());
	json_object_set_new(root, "oom_score_adj",
			    ps->oom_score_adj ? json_integer(atoi(ps->oom_score_adj))
					      : json_null());
	json_object_set_new(root, "coredump_filter",
			    ps->coredump_filter
				    ? json_address(strtoull(ps->coredump_filter, NULL, 16))
				    : json_null());
	if (ps->loginuid)
		json_object_set_new(root, "loginuid",
				    json_integer((json_int_t)strtoull(ps->loginuid, NULL, 10)));
	facts_json(ps, root, status);
	/* Also false where the kernel has no huge pages; a restore then has nothing to forbid. */
	if (text_number(status, "THP_enabled", 0, 10, &v))
		json_object_set_new(root, "thp_disable", json_boolean(!v));
	json_object_set(root, "namespaces", ps->namespaces);
	json_object_set(root, "clock_offsets", ps->clock_offsets);
	json_set_text(root, "cgroup", ps->cgroup);
	json_object_set_new(root, "children", children_json(ps));
}

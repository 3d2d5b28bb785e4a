#include "cli/names.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <regex.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/readiness.h"
#include "common/io.h"
#include "common/util.h"

enum {
	MAX_CMDLINE = 1 << 20,
	MAX_LISTED = 6
};

struct proc {
	pid_t pid, ppid;
	bool fits, ours; /* ours: runs uffd-snap */
};

struct search {
	const struct names_query *q;
	regex_t match;
	bool compiled;
	char *exe, *own_exe; /* resolved */
	bool by_title; /* exe is also what a process calls its program */
	char unit[NAMES_UNIT_MAX + 1];
	const char *cgroup;
	pid_t only; /* from the pidfile or the query, or 0 */
	struct registry ready;
	bool by_name; /* a process that is ready has it */
	struct proc *procs;
	size_t nr;
};

static bool has_no_words(const struct names_query *q)
{
	return !q->comm && !q->exe && !q->cgroup && !q->unit && !q->pidfile && !q->match;
}

bool names_query_is_empty(const struct names_query *q)
{
	return !q->pid && has_no_words(q);
}

bool names_query_is_pid(const struct names_query *q)
{
	return q->pid && has_no_words(q);
}

static char *proc_text(pid_t pid, const char *file, size_t *ret_len)
{
	char path[64], *text;

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, file);
	return io_read_file_at(AT_FDCWD, path, MAX_CMDLINE, &text, ret_len) < 0 ? NULL : text;
}

static char *proc_exe(pid_t pid)
{
	static const char deleted[] = " (deleted)";
	char path[64], *exe;
	size_t len;

	snprintf(path, sizeof(path), "/proc/%d/exe", (int)pid);
	if (io_readlink_at(AT_FDCWD, path, &exe) < 0)
		return NULL;
	/* After an upgrade the old program runs on until the service is restarted. */
	len = strlen(exe);
	if (len > strlen(deleted) && !strcmp(exe + len - strlen(deleted), deleted))
		exe[len - strlen(deleted)] = '\0';
	return exe;
}

/* The arguments with spaces between, as pgrep -f sees them. */
static char *proc_cmdline(pid_t pid)
{
	size_t len;
	char *text = proc_text(pid, "cmdline", &len);

	for (size_t i = 0; text && i + 1 < len; i++)
		if (!text[i])
			text[i] = ' ';
	return text;
}

/* The PPID and the state from /proc/PID/stat; comm may hold anything, even parentheses. */
static bool proc_parent(pid_t pid, pid_t *ret)
{
	cleanup_free char *text = proc_text(pid, "stat", NULL);
	char *end = text ? strrchr(text, ')') : NULL, state;
	int ppid;

	if (!end || sscanf(end + 1, " %c %d", &state, &ppid) != 2 || state == 'Z' || state == 'X')
		return false;
	*ret = ppid;
	return true;
}

/* ---- does it fit? ------------------------------------------------------------------------------ */

static bool is_called(const struct search *s, pid_t pid, bool look)
{
	char name[RUNDIR_NAME_MAX + 1];

	return readiness_of(&s->ready, pid, look, name) && !strcmp(name, s->q->comm);
}

static bool fits_comm(pid_t pid, const char *want)
{
	size_t len;
	cleanup_free char *comm = proc_text(pid, "comm", &len);

	if (!comm || !len)
		return false;
	comm[len - 1] = '\0'; /* the newline */
	/* The kernel keeps 15 bytes. */
	return strncmp(comm, want, 15) == 0;
}

static const char *last_part(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

/* By argv[0], behind which a title may have more: "/usr/bin/redis-server 127.0.0.1:6379". */
static bool is_titled(pid_t pid, const char *want)
{
	cleanup_free char *title = proc_text(pid, "cmdline", NULL);

	if (!title)
		return false;
	if (!strcmp(last_part(title), want))
		return true;
	title[strcspn(title, " ")] = '\0';
	return !strcmp(last_part(title), want);
}

/* Where the name that it was started by is a link, as redis-server and python3 of Debian, the kernel tells
 * only what that leads to. */
static bool fits_exe(const struct search *s, pid_t pid)
{
	cleanup_free char *exe = proc_exe(pid);

	if (!exe)
		return false;
	if (strchr(s->exe, '/'))
		return !strcmp(exe, s->exe);
	return !strcmp(last_part(exe), s->exe) || (s->by_title && is_titled(pid, s->exe));
}

/* Is one of the parts of path, between slashes, this? systemd puts an underscore before what the
 * kernel could take for a file of its own: "_memory.service". */
static bool has_part(const char *path, const char *part)
{
	size_t len = strlen(part);

	for (const char *p = path; (p = strstr(p, part)); p++) {
		const char *before = p > path && p[-1] == '_' ? p - 1 : p;

		if (before > path && before[-1] == '/' && (!p[len] || p[len] == '/'))
			return true;
	}
	return false;
}

static bool is_below(const char *path, const char *dir)
{
	size_t len = strlen(dir);

	while (len && dir[len - 1] == '/')
		len--;
	return strncmp(path, dir, len) == 0 && (!path[len] || path[len] == '/');
}

/* Lines "N:controllers:/path", one of them with cgroup v2. */
bool names_fit_cgroup(char *text, const char *unit, const char *cgroup)
{
	bool has_unit = !unit, has_cgroup = !cgroup;

	for (char *save, *line = strtok_r(text, "\n", &save); line;
	     line = strtok_r(NULL, "\n", &save)) {
		char *path = strchr(line, ':');

		if (!path || !(path = strchr(path + 1, ':')))
			continue;
		has_unit |= unit && has_part(path + 1, unit);
		has_cgroup |= cgroup && is_below(path + 1, cgroup);
	}
	return has_unit && has_cgroup;
}

static bool fits_cgroup(const struct search *s, pid_t pid)
{
	cleanup_free char *text = proc_text(pid, "cgroup", NULL);

	return text && names_fit_cgroup(text, *s->unit ? s->unit : NULL, s->cgroup);
}

static bool fits(const struct search *s, pid_t pid)
{
	const struct names_query *q = s->q;

	if (pid == getpid() || (s->only && pid != s->only))
		return false;
	if (q->comm && !(s->by_name ? is_called(s, pid, false) : fits_comm(pid, q->comm)))
		return false;
	if (q->exe && !fits_exe(s, pid))
		return false;
	if ((*s->unit || s->cgroup) && !fits_cgroup(s, pid))
		return false;
	if (q->match) {
		cleanup_free char *line = proc_cmdline(pid);

		/* Kernel threads have none. */
		return line && *line && regexec(&s->match, line, 0, NULL, 0) == 0;
	}
	return true;
}

/* ---- units ------------------------------------------------------------------------------------- */

/* Not every dot begins one: "app@my.host" is a service. */
static bool has_unit_type(const char *unit)
{
	static const char *const types[] = {".service", ".scope", ".slice",	".socket",
					    ".target",	".mount", ".automount", ".swap",
					    ".timer",	".path",  ".device"};
	const char *dot = strrchr(unit, '.');

	for (size_t i = 0; dot && i < ARRAY_SIZE(types); i++)
		if (!strcmp(dot, types[i]))
			return true;
	return false;
}

void names_unit(const char *unit, char ret[NAMES_UNIT_MAX + 1])
{
	snprintf(ret, NAMES_UNIT_MAX + 1, "%s%s", unit, has_unit_type(unit) ? "" : ".service");
}

void names_of_unit(const char *unit, char ret[STORE_NAME_MAX + 1])
{
	static const char usual[] = ".service";
	char full[NAMES_UNIT_MAX + 1];

	names_unit(unit, full);
	size_t len = strlen(full);
	if (len > strlen(usual) && !strcmp(full + len - strlen(usual), usual))
		full[len - strlen(usual)] = '\0';
	store_name_from(full, ret);
}

/* ---- the search -------------------------------------------------------------------------------- */

static int read_pidfile(const char *path, pid_t *ret, struct usnap_err *err)
{
	cleanup_free char *text = NULL;
	char *end;
	int r = io_read_file_at(AT_FDCWD, path, 4096, &text, NULL);

	if (r < 0)
		return usnap_fail_errno(err, r, "cannot read pidfile '%s'", path);
	errno = 0;
	long v = strtol(text, &end, 10);

	if (end == text || errno || v < 1 || v > INT32_MAX ||
	    !(isspace((unsigned char)*end) || !*end))
		return usnap_fail(err, -EINVAL, "cannot read pidfile '%s': it holds no PID", path);
	*ret = (pid_t)v;
	if (kill(*ret, 0) < 0 && errno == ESRCH)
		return usnap_fail(err, -ESRCH,
				  "cannot find the process of pidfile '%s': there is no process %d",
				  path, (int)*ret);
	return 0;
}

static int search_begin(struct search *s, struct usnap_err *err)
{
	const struct names_query *q = s->q;
	int r;

	s->only = q->pid;
	if (q->pidfile && (r = read_pidfile(q->pidfile, &s->only, err)) < 0)
		return r;
	if (q->unit)
		names_unit(q->unit, s->unit);
	s->cgroup = q->cgroup;
	if (s->cgroup && is_below(s->cgroup, "/sys/fs/cgroup"))
		s->cgroup += strlen("/sys/fs/cgroup");
	if (q->exe) {
		s->exe = strchr(q->exe, '/') ? realpath(q->exe, NULL) : NULL;
		if (!s->exe && !(s->exe = strdup(q->exe)))
			return usnap_fail_errno(err, -ENOMEM, "cannot search for processes");
	}
	if (q->match && (r = regcomp(&s->match, q->match, REG_EXTENDED | REG_NOSUB))) {
		char why[128];

		regerror(r, &s->match, why, sizeof(why));
		return usnap_fail(err, -EINVAL, "cannot match '%s': %s", q->match, why);
	}
	s->compiled = q->match;
	s->own_exe = proc_exe(getpid());
	if (q->comm && registry_load(&s->ready) == 0)
		for (size_t i = 0; i < s->ready.nr; i++)
			s->by_name |= s->ready.entry[i].counts &&
				      !strcmp(s->ready.entry[i].name, q->comm);
	return 0;
}

static int scan(struct search *s)
{
	cleanup_dir DIR *d = opendir("/proc");
	struct dirent *e;
	size_t room = 0;

	if (!d)
		return -errno;
	while ((e = readdir(d))) {
		struct proc p = {.pid = atoi(e->d_name)};

		if (p.pid <= 0 || !proc_parent(p.pid, &p.ppid))
			continue;
		cleanup_free char *exe = s->q->match ? proc_exe(p.pid) : NULL;

		p.ours = exe && s->own_exe && !strcmp(exe, s->own_exe);
		p.fits = fits(s, p.pid);
		if (s->nr == room) {
			struct proc *more =
				realloc(s->procs, (room = room * 2 + 256) * sizeof(*more));

			if (!more)
				return -ENOMEM;
			s->procs = more;
		}
		s->procs[s->nr++] = p;
	}
	return 0;
}

static bool found_any(const struct search *s)
{
	for (size_t i = 0; i < s->nr; i++)
		if (s->procs[i].fits)
			return true;
	return false;
}

/* Anybody can call himself anything: where there is one whose program has the name, that is it. */
static void look_at_titles(struct search *s)
{
	if (found_any(s))
		return;
	s->by_title = true;
	for (size_t i = 0; i < s->nr; i++)
		s->procs[i].fits = fits(s, s->procs[i].pid);
}

/* Where /run and /tmp are the service's own, the registry does not tell. */
static void look_into_all(struct search *s)
{
	if (found_any(s))
		return;
	for (size_t i = 0; i < s->nr; i++) {
		struct names_query rest = *s->q;

		rest.comm = NULL;
		struct search others = *s;
		others.q = &rest;
		s->procs[i].fits =
			fits(&others, s->procs[i].pid) && is_called(s, s->procs[i].pid, true);
	}
}

static struct proc *find_proc(struct search *s, pid_t pid)
{
	for (size_t i = 0; i < s->nr; i++)
		if (s->procs[i].pid == pid)
			return &s->procs[i];
	return NULL;
}

/* The shell that cron started for us has our pattern in its command line. */
static void drop_callers(struct search *s)
{
	for (size_t i = 0; i < s->nr; i++) {
		struct proc *p = &s->procs[i];

		if (!p->ours)
			continue;
		for (size_t depth = 0; p && depth < s->nr; depth++) {
			p->fits = false;
			p = find_proc(s, p->ppid);
		}
	}
}

static bool parent_fits(struct search *s, const struct proc *p)
{
	const struct proc *parent = find_proc(s, p->ppid);

	return parent && parent->fits;
}

static int by_pid(const void *a, const void *b)
{
	return *(const pid_t *)a - *(const pid_t *)b;
}

static void describe(const struct names_query *q, char *buf, size_t room)
{
	const struct {
		const char *what, *value;
	} parts[] = {{"name", q->comm},	  {"--exe", q->exe},	     {"--cgroup", q->cgroup},
		     {"--unit", q->unit}, {"--pidfile", q->pidfile}, {"--match", q->match}};
	size_t len = 0;

	buf[0] = '\0';
	for (size_t i = 0; i < ARRAY_SIZE(parts); i++)
		if (parts[i].value && len < room)
			len += (size_t)snprintf(buf + len, room - len, "%s%s '%s'", len ? ", " : "",
						parts[i].what, parts[i].value);
}

/* One that is nearly it. */
static void hint_none(const struct search *s, struct usnap_err *err)
{
	const struct names_query *q = s->q;
	const bool by_exe = q->exe && !q->comm, by_comm = q->comm && !q->exe;

	for (size_t i = 0; (by_exe || by_comm) && i < s->nr; i++) {
		const pid_t pid = s->procs[i].pid;
		cleanup_free char *exe = pid == getpid() ? NULL : proc_exe(pid);

		if (exe && by_exe && fits_comm(pid, last_part(q->exe))) {
			usnap_hint(err, "process %d calls itself so, and its program is '%s'",
				   (int)pid, exe);
			return;
		}
		if (exe && by_comm &&
		    (!strcmp(last_part(exe), q->comm) || is_titled(pid, q->comm))) {
			usnap_hint(err, "process %d runs a program of this name: --exe finds it",
				   (int)pid);
			return;
		}
	}
	usnap_hint(err, "'uffd-snap ps' lists processes; a NAME is what they call themselves, and "
			"--match looks at command lines");
}

int names_find(const struct names_query *q, pid_t **ret, size_t *ret_nr, struct usnap_err *err)
{
	struct search s = {.q = q};
	char what[256];
	pid_t *pids = NULL;
	size_t n = 0;
	int r = search_begin(&s, err);

	if (r < 0)
		goto out;
	if ((r = scan(&s)) < 0 || !(pids = calloc(s.nr + 1, sizeof(*pids)))) {
		usnap_fail_errno(err, r = r < 0 ? r : -ENOMEM, "cannot search for processes");
		goto out;
	}
	if (q->exe && !strchr(q->exe, '/'))
		look_at_titles(&s);
	if (q->comm)
		look_into_all(&s);
	if (q->match)
		drop_callers(&s);
	for (size_t i = 0; i < s.nr; i++)
		if (s.procs[i].fits && !parent_fits(&s, &s.procs[i]))
			pids[n++] = s.procs[i].pid;
	if (!n) {
		describe(q, what, sizeof(what));
		r = usnap_fail(err, -ESRCH, "cannot find a process: none fits %s", what);
		hint_none(&s, err);
		goto out;
	}
	qsort(pids, n, sizeof(*pids), by_pid);
	*ret = pids;
	*ret_nr = n;
	pids = NULL;
out:
	free(pids);
	free(s.procs);
	free(s.exe);
	free(s.own_exe);
	registry_free(&s.ready);
	if (s.compiled)
		regfree(&s.match);
	return r;
}

int names_ambiguous(const struct names_query *q, const pid_t *pids, size_t nr,
		    struct usnap_err *err)
{
	char what[256], list[400];
	size_t len = 0;

	describe(q, what, sizeof(what));
	usnap_fail(err, -EEXIST, "cannot choose among %zu processes that fit %s", nr, what);
	for (size_t i = 0; i < nr && i < MAX_LISTED; i++) {
		cleanup_free char *line = proc_cmdline(pids[i]);

		len += (size_t)snprintf(list + len, sizeof(list) - len, "%s%d (%.40s)",
					i ? ", " : "", (int)pids[i], line ? line : "?");
		len = MIN(len, sizeof(list) - 1);
	}
	return usnap_hint(err, "%s%s; say which, or --all", list, nr > MAX_LISTED ? " ..." : "");
}

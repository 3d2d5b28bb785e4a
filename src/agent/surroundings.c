#include "agent/surroundings.h"

#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent/control.h"
#include "agent/raw.h"
#include "common/rundir.h"
#include "common/timens.h"

#define ADDR(p) ((uint64_t)(uintptr_t)(p))
#define AT_HERE ((uint64_t)AT_FDCWD)

enum {
	PATH_ROOM = 512,
	FIELD_PPID = 4, /* proc_pid_stat(5) counts from 1 */
	FIELD_START = 22,
	NR_DIRS = 3
};

/* ---- text ---------------------------------------------------------------------------------- */

void around_add(struct around_text *t, const char *s)
{
	size_t n = strlen(s);

	if (t->too_long || n >= t->room - t->len) {
		t->too_long = true;
		return;
	}
	memcpy(t->buf + t->len, s, n + 1);
	t->len += n;
}

void around_add_number(struct around_text *t, uint64_t n, unsigned base)
{
	char digits[24], *p = digits + sizeof(digits);

	*--p = '\0';
	do {
		*--p = "0123456789abcdef"[n % base];
		n /= base;
	} while (n);
	around_add(t, p);
}

static uint64_t parse_number(const char **s)
{
	uint64_t n = 0;

	while (**s >= '0' && **s <= '9' && n < UINT64_MAX / 16)
		n = n * 10 + (uint64_t)(*(*s)++ - '0');
	return n;
}

/* ---- the environment ----------------------------------------------------------------------- */

const char *around_env(const char *name)
{
	size_t len = strlen(name);

	for (char **e = environ; e && *e; e++)
		if (!strncmp(*e, name, len) && (*e)[len] == '=')
			return *e + len + 1;
	return NULL;
}

bool around_env_is_set(const char *name)
{
	const char *value = around_env(name);

	return value && !strcmp(value, "1");
}

/* ---- processes ----------------------------------------------------------------------------- */

static int64_t open_at(int64_t dir, const char *path, int flags, unsigned mode)
{
	return raw_call(SYS_openat, (uint64_t)dir, ADDR(path), (uint64_t)flags | O_CLOEXEC, mode, 0,
			0);
}

static uint32_t own_uid(void)
{
	return (uint32_t)raw_call(SYS_geteuid, 0, 0, 0, 0, 0, 0);
}

static void close_fd(int64_t fd)
{
	raw_call(SYS_close, (uint64_t)fd, 0, 0, 0, 0, 0);
}

/* As much as there is room for, as a string. */
static bool read_file(int64_t dir, const char *path, char *buf, size_t room)
{
	int64_t fd = open_at(dir, path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0), n;

	if (raw_failed(fd))
		return false;
	n = raw_call(SYS_read, (uint64_t)fd, ADDR(buf), room - 1, 0, 0, 0);
	close_fd(fd);
	if (raw_failed(n))
		return false;
	buf[n] = '\0';
	return true;
}

/* timens.h. "monotonic  0  0\nboottime  -5000  0\n" */
static int64_t own_boottime_ns(void)
{
	char text[256];
	const char *s;

	if (!read_file(AT_FDCWD, "/proc/self/timens_offsets", text, sizeof(text)) ||
	    !(s = strstr(text, "boottime")))
		return 0;
	s += strlen("boottime");
	while (*s == ' ')
		s++;
	int64_t sign = *s == '-' ? -1 : 1;
	s += *s == '-';
	int64_t seconds = sign * (int64_t)parse_number(&s);
	while (*s == ' ')
		s++;
	return seconds * 1000000000 + (int64_t)parse_number(&s);
}

bool around_look(uint32_t pid, struct around *ret)
{
	char path[64], text[1024];
	struct around_text t = {path, sizeof(path), 0, false};
	const char *s = text;

	around_add(&t, "/proc/");
	if (pid)
		around_add_number(&t, pid, 10);
	else
		around_add(&t, "self");
	around_add(&t, "/stat");
	if (!read_file(AT_FDCWD, path, text, sizeof(text)))
		return false;
	*ret = (struct around){.pid = (uint32_t)parse_number(&s)};
	/* What the process calls itself may hold anything. */
	if (!(s = strrchr(text, ')')) || s[1] != ' ')
		return false;
	s += 2;
	if (*s == 'Z' || *s == 'X')
		return false;
	for (unsigned nr = 4; nr <= FIELD_START; nr++) {
		if (!(s = strchr(s, ' ')))
			return false;
		s++;
		if (nr == FIELD_PPID)
			ret->ppid = (uint32_t)parse_number(&s);
	}
	ret->start = timens_ticks_outside(parse_number(&s), own_boottime_ns());
	return true;
}

/* ---- the agent in another ------------------------------------------------------------------ */

static int64_t open_of(const struct around *who, const char *file)
{
	char path[64];
	struct around_text t = {path, sizeof(path), 0, false};

	around_add(&t, "/proc/");
	around_add_number(&t, who->pid, 10);
	around_add(&t, file);
	return open_at(AT_FDCWD, path, O_RDONLY, 0);
}

/* By all its user IDs. Others can have whoever reads their memory wait for ever. */
static bool is_ours(const struct around *who)
{
	char text[2048];
	int64_t fd = open_of(who, "/status"), n;
	const char *s;

	if (raw_failed(fd))
		return false;
	n = raw_call(SYS_read, (uint64_t)fd, ADDR(text), sizeof(text) - 1, 0, 0, 0);
	close_fd(fd);
	text[raw_failed(n) ? 0 : n] = '\0';
	if (!(s = strstr(text, "\nUid:")))
		return false;
	s += strlen("\nUid:");
	for (int i = 0; i < 4; i++) {
		if (*s++ != '\t' || *s < '0' || *s > '9' || parse_number(&s) != own_uid())
			return false;
	}
	return true;
}

static bool read_at(int64_t mem, uint64_t addr, void *buf, size_t len)
{
	return raw_call(SYS_pread64, (uint64_t)mem, ADDR(buf), len, addr, 0, 0) == (int64_t)len;
}

static bool says_ready(int64_t mem, uint64_t at)
{
	struct agent_beacon b;
	struct agent_control c;
	const size_t head = offsetof(struct agent_control, beacon) + sizeof(c.beacon);

	return read_at(mem, at, &b, sizeof(b)) && !memcmp(b.magic, AGENT_MAGIC, sizeof(b.magic)) &&
	       b.self == at && read_at(mem, b.control, &c, head) &&
	       !memcmp(c.magic, AGENT_MAGIC, sizeof(c.magic)) && c.beacon == at &&
	       !(c.flags & AGENT_INJECTED) && c.pid > 0;
}

/* A line of maps as that of a beacon begins: "START-END r--p". */
static bool is_beacon(const char *line, uint64_t *ret)
{
	uint64_t v[2] = {0};
	const char *s = line;

	for (int i = 0; i < 2; i++, s++) {
		for (; (*s >= '0' && *s <= '9') || (*s >= 'a' && *s <= 'f'); s++)
			v[i] = v[i] << 4 | (uint64_t)(*s <= '9' ? *s - '0' : *s - 'a' + 10);
		if (*s != (i ? ' ' : '-'))
			return false;
	}
	*ret = v[0];
	return v[1] - v[0] == (uint64_t)AGENT_BEACON_PAGES * AGENT_PAGE && !strncmp(s, "r--p", 4);
}

bool around_is_ready(const struct around *who)
{
	char text[4096], line[64];
	size_t len = 0;
	int64_t maps = is_ours(who) ? open_of(who, "/maps") : -1, mem, n;
	uint64_t at;
	bool ready = false;

	if (raw_failed(maps))
		return false;
	mem = open_of(who, "/mem");
	while (!ready && !raw_failed(mem) &&
	       (n = raw_call(SYS_read, (uint64_t)maps, ADDR(text), sizeof(text), 0, 0, 0)) > 0)
		for (int64_t i = 0; i < n && !ready; i++) {
			if (text[i] != '\n') {
				if (len + 1 < sizeof(line))
					line[len++] = text[i];
				continue;
			}
			line[len] = '\0';
			len = 0;
			ready = is_beacon(line, &at) && says_ready(mem, at);
		}
	close_fd(maps);
	if (!raw_failed(mem))
		close_fd(mem);
	return ready;
}

/* ---- the run directory --------------------------------------------------------------------- */

/* Those of rundir.h in their order. False: it is none of ours. */
static bool dir_path(unsigned nr, char path[PATH_ROOM])
{
	struct around_text t = {path, PATH_ROOM, 0, false};
	const char *xdg = around_env("XDG_RUNTIME_DIR");

	if (nr == 0) {
		around_add(&t, RUNDIR_ROOT);
	} else if (nr == 1) {
		if (!xdg || *xdg != '/')
			return false;
		around_add(&t, xdg);
		around_add(&t, RUNDIR_IN_XDG);
	} else {
		around_add(&t, RUNDIR_TMP);
		around_add_number(&t, own_uid(), 10);
	}
	return !t.too_long;
}

/* Belongs to us, or, to look into only, to root; and nobody else can write in it. */
static int64_t open_dir(unsigned nr, bool make)
{
	char path[PATH_ROOM];
	struct stat st;

	if (!dir_path(nr, path) || (make && nr == 0 && own_uid()))
		return -1;
	if (make)
		/* Others can ask for a name that they know, and cannot list. */
		raw_call(SYS_mkdirat, AT_HERE, ADDR(path), nr == 0 ? 0711 : 0700, 0, 0, 0);
	int64_t fd = open_at(AT_FDCWD, path, O_PATH | O_DIRECTORY | O_NOFOLLOW, 0);
	if (raw_failed(fd))
		return -1;
	if (raw_call(SYS_fstat, (uint64_t)fd, ADDR(&st), 0, 0, 0, 0) == 0 && !(st.st_mode & 022) &&
	    (st.st_uid == own_uid() || (!make && !st.st_uid)))
		return fd;
	close_fd(fd);
	return -1;
}

static void file_name(char name[96], const char *prefix, const struct around *who)
{
	struct around_text t = {name, 96, 0, false};

	around_add(&t, prefix);
	around_add(&t, RUNDIR_READY);
	around_add_number(&t, who->pid, 10);
	around_add(&t, "-");
	around_add_number(&t, who->start, 10);
}

bool around_has_entry(const struct around *who)
{
	char name[96];
	bool found = false;

	file_name(name, "", who);
	for (unsigned nr = 0; nr < NR_DIRS && !found; nr++) {
		int64_t dir = open_dir(nr, false);

		if (dir < 0)
			continue;
		found = raw_call(SYS_faccessat, (uint64_t)dir, ADDR(name), F_OK, 0, 0, 0) == 0;
		close_fd(dir);
	}
	return found;
}

static bool lives(uint32_t pid, uint64_t start)
{
	struct around a;

	return around_look(pid, &a) && a.start == start;
}

bool around_entry_waits(const struct around *who)
{
	char name[96], text[RUNDIR_FILE_MAX];
	bool waits = false;

	file_name(name, "", who);
	for (unsigned nr = 0; nr < NR_DIRS && !waits; nr++) {
		int64_t dir = open_dir(nr, false);
		const char *s;

		if (dir < 0)
			continue;
		s = read_file(dir, name, text, sizeof(text)) ? text : NULL;
		while (s && !waits && (s = strstr(s, "\n" RUNDIR_KEY_FOLLOWS))) {
			s += strlen("\n" RUNDIR_KEY_FOLLOWS);
			uint32_t pid = (uint32_t)parse_number(&s);

			s += *s == '-';
			waits = pid && lives(pid, parse_number(&s));
		}
		close_fd(dir);
	}
	return waits;
}

void around_drop_entry(const struct around *who)
{
	char name[96];

	file_name(name, "", who);
	for (unsigned nr = 0; nr < NR_DIRS; nr++) {
		int64_t dir = open_dir(nr, false);

		if (dir < 0)
			continue;
		raw_call(SYS_unlinkat, (uint64_t)dir, ADDR(name), 0, 0, 0, 0);
		close_fd(dir);
	}
}

static bool write_entry(int64_t dir, const struct around *who, const char *text, size_t len)
{
	char name[96], part[96];

	file_name(name, "", who);
	file_name(part, ".", who);
	raw_call(SYS_unlinkat, (uint64_t)dir, ADDR(part), 0, 0, 0, 0);
	int64_t fd = open_at(dir, part, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
	if (raw_failed(fd))
		return false;
	bool done = raw_call(SYS_write, (uint64_t)fd, ADDR(text), len, 0, 0, 0) == (int64_t)len &&
		    raw_call(SYS_renameat, (uint64_t)dir, ADDR(part), (uint64_t)dir, ADDR(name), 0,
			     0) == 0;
	close_fd(fd);
	if (!done)
		raw_call(SYS_unlinkat, (uint64_t)dir, ADDR(part), 0, 0, 0, 0);
	return done;
}

void around_enter(const struct around *who, const char *name, uint64_t beacon,
		  const struct around *follows, unsigned nr)
{
	char text[512];
	struct around_text t = {text, sizeof(text), 0, false};

	around_add(&t, RUNDIR_KEY_NAME);
	around_add(&t, name);
	around_add(&t, "\n" RUNDIR_KEY_BEACON);
	around_add_number(&t, beacon, 16);
	for (unsigned i = 0; i < nr; i++) {
		if (!follows[i].pid)
			continue;
		around_add(&t, "\n" RUNDIR_KEY_FOLLOWS);
		around_add_number(&t, follows[i].pid, 10);
		around_add(&t, "-");
		around_add_number(&t, follows[i].start, 10);
	}
	around_add(&t, "\n");
	for (unsigned i = 0; i < NR_DIRS; i++) {
		int64_t dir = open_dir(i, true);
		bool done = dir >= 0 && write_entry(dir, who, text, t.len);

		if (dir >= 0)
			close_fd(dir);
		if (done)
			return;
	}
}

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/msg.h"
#include "cli/readiness.h"
#include "cli/show.h"
#include "common/io.h"
#include "common/procstat.h"
#include "common/util.h"
#include "store/storetime.h"

struct row {
	struct procstat stat;
	bool ready, known; /* known: something is in taken */
	char name[RUNDIR_NAME_MAX + 1];
	uint64_t heap_bytes; /* private and shared memory without a file, swapped out or not */
	struct registry_taken taken;
};

struct list {
	struct row *row;
	size_t nr, room;
	bool only_ready, json;
};

static char *proc_text(pid_t pid, const char *file, size_t *ret_len)
{
	char path[64], *text;

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, file);
	return io_read_file_at(AT_FDCWD, path, MIB(1), &text, ret_len) < 0 ? NULL : text;
}

/* "Key:\t 123 kB" of status, in bytes. */
static uint64_t status_bytes(const char *status, const char *key)
{
	const char *s = strstr(status, key);

	return s ? strtoull(s + strlen(key), NULL, 10) << 10 : 0;
}

/* False: not to be listed. */
static bool look_at(struct list *l, const struct registry *r, pid_t pid, struct row *ret)
{
	cleanup_free char *status = NULL;
	const char *uid;

	*ret = (struct row){0};
	if (pid == getpid() || procstat_read(pid, &ret->stat) < 0 || ret->stat.state == 'Z' ||
	    ret->stat.state == 'X' || !(status = proc_text(pid, "status", NULL)))
		return false;
	uid = strstr(status, "\nUid:\t");
	/* Kernel threads have no memory. */
	if (!uid || (geteuid() && strtoul(uid + 6, NULL, 10) != getuid()) ||
	    !strstr(status, "\nRssAnon:"))
		return false;
	ret->heap_bytes = status_bytes(status, "\nRssAnon:") + status_bytes(status, "\nRssShmem:") +
			  status_bytes(status, "\nVmSwap:");
	ret->ready = readiness_of(r, pid, true, ret->name);
	if (l->only_ready && !ret->ready)
		return false;
	ret->known = registry_taken(pid, ret->stat.start_ticks, &ret->taken);
	return true;
}

static int add(struct list *l, const struct row *row)
{
	if (l->nr == l->room) {
		size_t room = l->room * 2 + 64;
		struct row *more = realloc(l->row, room * sizeof(*more));

		if (!more)
			return -ENOMEM;
		l->row = more;
		l->room = room;
	}
	l->row[l->nr++] = *row;
	return 0;
}

static int load(struct list *l)
{
	cleanup_dir DIR *d = opendir("/proc");
	struct registry r;
	struct dirent *e;
	struct row row;
	int code;

	if (!d)
		return -errno;
	code = registry_load(&r);
	while (code == 0 && (e = readdir(d))) {
		pid_t pid = atoi(e->d_name);

		if (pid > 0 && look_at(l, &r, pid, &row))
			code = add(l, &row);
	}
	registry_free(&r);
	return code;
}

/* Those that are ready first; then by size, as one looks for them. */
static int order(const void *pa, const void *pb)
{
	const struct row *a = pa, *b = pb;

	if (a->ready != b->ready)
		return b->ready - a->ready;
	if (a->heap_bytes != b->heap_bytes)
		return a->heap_bytes < b->heap_bytes ? 1 : -1;
	return a->stat.pid - b->stat.pid;
}

/* The arguments with spaces between; what has none is shown as ps shows it. */
static char *command_line(const struct row *row)
{
	size_t len = 0;
	char *text = proc_text(row->stat.pid, "cmdline", &len);

	while (len && !text[len - 1])
		len--;
	if (text && len) {
		for (size_t i = 0; i < len; i++)
			if (!text[i])
				text[i] = ' ';
		return text;
	}
	free(text);
	return asprintf(&text, "[%s]", row->stat.comm) < 0 ? NULL : text;
}

static int print_json(const struct list *l)
{
	json_t *all = json_array();

	for (size_t i = 0; i < l->nr; i++) {
		const struct row *row = &l->row[i];
		cleanup_free char *line = command_line(row);
		json_t *j = json_pack("{s:i, s:I, s:b, s:I, s:b}", "pid", (int)row->stat.pid,
				      "start_ticks", (json_int_t)row->stat.start_ticks, "ready",
				      (int)row->ready, "heap_bytes", (json_int_t)row->heap_bytes,
				      "running", row->taken.by != 0);

		if (*row->name)
			json_object_set_new(j, "name", show_json_text(row->name));
		json_object_set_new(j, "comm", show_json_text(row->stat.comm));
		if (line)
			json_object_set_new(j, "command", show_json_text(line));
		if (row->taken.by)
			json_object_set_new(j, "running_pid", json_integer(row->taken.by));
		if (row->taken.t0_ms) {
			json_object_set_new(j, "last_t0_ms",
					    json_integer((json_int_t)row->taken.t0_ms));
			json_object_set_new(j, "last_file", show_json_text(row->taken.file));
		}
		json_array_append_new(all, j);
	}
	return show_json(json_pack("{s:o}", "processes", all));
}

static void print_row(const struct row *row)
{
	cleanup_free char *line = command_line(row);
	char size[24], last[STORETIME_LOCAL + 1] = "-";

	if (row->taken.t0_ms)
		storetime_local(row->taken.t0_ms, last);
	printf("%7d  %-5s  ", (int)row->stat.pid, row->ready ? "yes" : "-");
	/* Valid as the name of a directory: it has nothing in it that moves a cursor. */
	printf("%-16s  %9s  %-19s  %-3s  ", *row->name ? row->name : "-",
	       show_size(size, row->heap_bytes), last, row->taken.by ? "yes" : "-");
	if (line && strlen(line) > 60)
		strcpy(line + 57, "...");
	show_text(line);
	putchar('\n');
}

static int run_ps(int argc, char **argv)
{
	static const struct option options[] = {
		{"ready", no_argument, NULL, 'r'}, {"json", no_argument, NULL, 'j'}, {0}};
	struct list l = {0};
	struct usnap_err err = {0};
	int code;

	opterr = 0;
	for (int o; (o = getopt_long(argc, argv, ":", options, NULL)) != -1;) {
		if (o == 'r')
			l.only_ready = true;
		else if (o == 'j')
			l.json = true;
		else
			return cli_usage_error(&cmd_ps, "cannot list: unknown option '%s'",
					       argv[optind - 1]);
	}
	if (optind < argc)
		return cli_usage_error(&cmd_ps, "cannot list '%s': no argument is expected",
				       argv[optind]);
	code = load(&l);
	if (code < 0) {
		usnap_fail_errno(&err, code, "cannot list processes");
		free(l.row);
		return msg_failure(&err);
	}
	if (l.nr)
		qsort(l.row, l.nr, sizeof(*l.row), order);
	if (l.json) {
		code = print_json(&l);
	} else {
		printf("%7s  %-5s  %-16s  %9s  %-19s  %-3s  %s\n", "PID", "READY", "NAME", "HEAP",
		       "LAST SNAPSHOT", "NOW", "COMMAND");
		for (size_t i = 0; i < l.nr; i++)
			print_row(&l.row[i]);
		code = EXIT_DONE;
	}
	free(l.row);
	return code;
}

const struct cli_command cmd_ps = {
	.name = "ps",
	.args = "[OPTION]...",
	.summary = "show processes, and which are ready for snapshots",
	.help = "      --ready  only those that are ready: that have the agent loaded\n"
		"      --json   print JSON\n"
		"\n"
		"For each process: whether it is ready, its name, the size of its memory, when\n"
		"it was taken last, and whether it is being taken now. Root sees all processes,\n"
		"others their own.\n",
	.run = run_ps,
};

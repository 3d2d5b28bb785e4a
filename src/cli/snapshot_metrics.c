#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "cli/snapshot_run.h"
#include "common/io.h"
#include "common/util.h"

enum {
	MAX_FILE = 1 << 20,
	MAX_LABEL = 2 * 128 + 64
};

/* In the order they are written; of_success ones are kept over a failure. */
enum {
	RUN_TIME,
	RUN_SUCCESS,
	SUCCESS_TIME,
	DURATION,
	PAUSE,
	FAULT_50,
	FAULT_99,
	FAULT_999,
	FAULT_MAX,
	FAULTS,
	MEMORY,
	FILE_BYTES,
	RATIO,
	TORN,
	HELD,
	NR_METRICS
};

#define PREFIX "uffd_snap_"

static const struct metric {
	const char *name, *label, *help;
	bool of_success;
} metrics[NR_METRICS] = {
	[RUN_TIME] = {"last_run_timestamp_seconds", "", "When the last run ended.", false},
	[RUN_SUCCESS] = {"last_run_success", "", "Whether the last run took an image.", false},
	[SUCCESS_TIME] = {"last_success_timestamp_seconds", "", "T0 of the last image.", true},
	[DURATION] = {"duration_seconds", "", "How long the last image took.", true},
	[PAUSE] = {"pause_seconds", "", "How long the process stood still for it.", true},
	[FAULT_50] = {"fault_seconds", ",quantile=\"0.5\"", "What a first write to a page waited.",
		      true},
	[FAULT_99] = {"fault_seconds", ",quantile=\"0.99\"", NULL, true},
	[FAULT_999] = {"fault_seconds", ",quantile=\"0.999\"", NULL, true},
	[FAULT_MAX] = {"fault_seconds", ",quantile=\"1\"", NULL, true},
	[FAULTS] = {"faults", "", "First writes that waited.", true},
	[MEMORY] = {"memory_bytes", "", "Memory that the image holds.", true},
	[FILE_BYTES] = {"file_bytes", "", "Size of the image.", true},
	[RATIO] = {"ratio", "", "Size of the image by that of the memory.", true},
	[TORN] = {"torn_retries", "", "Attempts before the one that became the image.", true},
	[HELD] = {"held", "", "Whether the threads were held for the copy.", true},
};

static void fill(double v[NR_METRICS], const struct snapshot_run *run)
{
	const struct capture_stats *s = &run->stats;

	v[RUN_TIME] = (double)(wall_ns() / 1000000) / 1e3;
	v[RUN_SUCCESS] = !run->error;
	if (run->error)
		return;
	v[SUCCESS_TIME] = (double)(s->t0_realtime_ns / 1000000) / 1e3;
	v[DURATION] = (double)run->elapsed_ns / 1e9;
	v[PAUSE] = (double)s->pause_ns / 1e9;
	v[FAULT_50] = (double)capture_fault_ns(s, 0.5) / 1e9;
	v[FAULT_99] = (double)capture_fault_ns(s, 0.99) / 1e9;
	v[FAULT_999] = (double)capture_fault_ns(s, 0.999) / 1e9;
	v[FAULT_MAX] = (double)s->fault_max_ns / 1e9;
	v[FAULTS] = (double)s->faults;
	v[MEMORY] = (double)s->bytes_populated;
	v[FILE_BYTES] = (double)run->written.file_bytes;
	v[RATIO] = s->bytes_populated ? (double)run->written.file_bytes / (double)s->bytes_populated
				      : 0;
	v[TORN] = s->torn;
	v[HELD] = s->held;
}

/* A value of a label, in quotes. */
static void quote(const char *text, char *buf, size_t room)
{
	size_t n = 0;

	for (; *text && n + 3 < room; text++) {
		if (*text == '"' || *text == '\\')
			buf[n++] = '\\';
		if (*text == '\n') {
			buf[n++] = '\\';
			buf[n++] = 'n';
		} else {
			buf[n++] = *text;
		}
	}
	buf[n] = '\0';
}

/* Does a line of the old file stay: of this metric, and of another name or not known anew? */
static bool stays(const char *line, const struct metric *m, const char *name_label, bool success)
{
	size_t len = strlen(PREFIX);
	const char *labels;

	if (strncmp(line, PREFIX, len) != 0 || strncmp(line + len, m->name, strlen(m->name)) != 0)
		return false;
	labels = line + len + strlen(m->name);
	/* name="..." is always the first label. */
	if (strncmp(labels, name_label, strlen(name_label)) != 0)
		return *labels == '{';
	return m->of_success && !success;
}

static int write_all(FILE *out, char *old, const struct snapshot_run *run)
{
	double v[NR_METRICS];
	char name[MAX_LABEL], label[MAX_LABEL + 16];
	cleanup_free char **lines = NULL;
	size_t nr = 0, room = 0;

	for (char *save, *line = old ? strtok_r(old, "\n", &save) : NULL; line;
	     line = strtok_r(NULL, "\n", &save)) {
		if (nr == room) {
			char **more = realloc(lines, (room = room * 2 + 64) * sizeof(*more));

			if (!more)
				return -ENOMEM;
			lines = more;
		}
		lines[nr++] = line;
	}
	fill(v, run);
	quote(run->name, name, sizeof(name));
	snprintf(label, sizeof(label), "{name=\"%s\"", name);
	for (size_t m = 0; m < NR_METRICS; m++) {
		/* Quantiles are one metric: the first of them writes what stays of all. */
		if (metrics[m].help) {
			fprintf(out, "# HELP " PREFIX "%s %s\n# TYPE " PREFIX "%s gauge\n",
				metrics[m].name, metrics[m].help, metrics[m].name);
			for (size_t i = 0; i < nr; i++)
				if (stays(lines[i], &metrics[m], label, !run->error))
					fprintf(out, "%s\n", lines[i]);
		}
		if (!metrics[m].of_success || !run->error)
			fprintf(out, PREFIX "%s%s%s} %.17g\n", metrics[m].name, label,
				metrics[m].label, v[m]);
	}
	return fflush(out) ? -errno : 0;
}

/* Not an image: whoever scrapes it reads it. No fsync: after a crash the next run writes it. */
static int replace(const char *path, const char *part, char *old, const struct snapshot_run *run)
{
	int fd = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644), r;
	cleanup_file FILE *out = fd < 0 ? NULL : fdopen(fd, "w");

	if (!out)
		return -errno;
	fchmod(fd, 0644);
	r = write_all(out, old, run);
	if (r == 0 && rename(part, path) < 0)
		r = -errno;
	if (r < 0)
		unlink(part);
	return r;
}

static int lock_directory(const char *path)
{
	const char *slash = strrchr(path, '/');
	cleanup_free char *dir =
		slash ? strndup(path, MAX((size_t)(slash - path), 1u)) : strdup(".");
	int fd = dir ? open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

	while (fd >= 0 && flock(fd, LOCK_EX) < 0 && errno == EINTR)
		;
	return fd;
}

int snapshot_metrics(const struct snapshot_args *a, const struct snapshot_run *run,
		     struct usnap_err *err)
{
	cleanup_free char *old = NULL, *part = NULL;
	cleanup_fd int dir = -1;
	const char *slash;
	int r;

	if (!a->metrics)
		return 0;
	slash = strrchr(a->metrics, '/');
	if (asprintf(&part, "%.*s.%s.part", slash ? (int)(slash - a->metrics + 1) : 0, a->metrics,
		     slash ? slash + 1 : a->metrics) < 0)
		return usnap_fail_errno(err, -ENOMEM, "cannot write '%s'", a->metrics);
	/* Runs for other names may keep theirs in the same file. */
	dir = lock_directory(a->metrics);
	r = io_read_file_at(AT_FDCWD, a->metrics, MAX_FILE, &old, NULL);
	if (r < 0 && r != -ENOENT)
		return usnap_fail_errno(err, r, "cannot read '%s'", a->metrics);
	r = replace(a->metrics, part, old, run);
	return r < 0 ? usnap_fail_errno(err, r, "cannot write '%s'", a->metrics) : 0;
}

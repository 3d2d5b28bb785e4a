/* snapshot.json, process.json and the notes of the threads, written into the image after T0. */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/utsname.h>

#include "capture/session.h"
#include "common/io.h"
#include "common/util.h"

static void set_file(json_t *j, const char *key, int dirfd_, const char *path)
{
	cleanup_free char *text = NULL;

	if (io_read_file_at(dirfd_, path, 4096, &text, NULL) == 0) {
		text[strcspn(text, "\n")] = '\0';
		json_object_set_new(j, key, json_string(text));
	}
}

static json_t *cmdline(const struct target *t)
{
	cleanup_free char *text = NULL;
	size_t len = 0;
	json_t *args = json_array();

	/* Longer ones are cut: this says what the process is, process.json has all of it. */
	if (io_read_file_at(t->procfd, "cmdline", 65536, &text, &len) < 0)
		return args;
	for (size_t at = 0; at < len && json_array_size(args) < 256; at += strlen(text + at) + 1) {
		json_t *s = json_string(text + at);

		/* Not UTF-8: shown as far as it is. */
		json_array_append_new(args, s ? s : json_string("?"));
	}
	return args;
}

static void set_lineage(json_t *j, const struct capture *c)
{
	const struct capture_options *o = &c->options;
	char run[33];

	json_object_set_new(j, "parent", o->parent_id ? json_string(o->parent_id) : json_null());
	json_object_set_new(j, "depth", json_integer(o->parent_id ? (json_int_t)o->depth : 0));
	/* A path that is not UTF-8 is left out. */
	if (o->parent_id && o->parent_path)
		json_object_set_new(j, "parent_path", json_string(o->parent_path));
	if (capture_run_id(c->target, run) == 0)
		json_object_set_new(j, "run", json_string(run));
}

int identity_write(struct capture *c, struct usnap_err *err)
{
	unsigned char id[16];
	char hex[2 * sizeof(id) + 1];
	struct utsname u;
	cleanup_free char *exe = NULL, *text = NULL;
	const struct capture_stats *s = &c->stats;

	if (getrandom(id, sizeof(id), 0) != sizeof(id) || uname(&u) < 0)
		return usnap_fail_errno(err, -EIO, "cannot name the image");
	for (size_t i = 0; i < sizeof(id); i++)
		snprintf(hex + 2 * i, 3, "%02x", id[i]);

	json_t *j = json_pack("{s:s, s:i, s:s, s:{s:I, s:I, s:I}, s:s, s:s, s:s, s:i}", "format",
			      "uffd-snap image", "version", 1, "id", hex, "t0", "realtime_ns",
			      (json_int_t)s->t0_realtime_ns, "monotonic_ns",
			      (json_int_t)s->t0_monotonic_ns, "boottime_ns",
			      (json_int_t)s->t0_boottime_ns, "host", u.nodename, "kernel",
			      u.release, "arch", u.machine, "page_size", (int)PAGE_BYTES);
	set_lineage(j, c);
	json_t *t = json_pack("{s:i, s:I}", "pid", (int)c->target->pid, "start_ticks",
			      (json_int_t)c->target->start_ticks);
	json_t *comm = json_string(c->target->comm);
	json_object_set_new(t, "comm", comm ? comm : json_string("?"));
	if (io_readlink_at(c->target->procfd, "exe", &exe) == 0)
		json_object_set_new(t, "exe", json_string(exe));
	json_object_set_new(t, "cmdline", cmdline(c->target));
	set_file(t, "boot_id", AT_FDCWD, "/proc/sys/kernel/random/boot_id");
	json_object_set_new(j, "target", t);
	json_object_set_new(j, "tool", json_string("uffd-snap " USNAP_VERSION));
	json_object_set_new(j, "strategy", json_string(s->held ? "held" : "cow"));
	text = json_dumps(j, JSON_INDENT(1));
	json_decref(j);
	if (!text)
		return usnap_fail_errno(err, -ENOMEM, "cannot name the image");
	return image_writer_member(c->writer, "snapshot.json", text, strlen(text), err);
}

int identity_write_state(struct capture *c, struct usnap_err *err)
{
	json_t *j = NULL;
	int r = pstate_finish(c->pstate, &j, err);

	if (r < 0)
		return r;
	if (c->excluded.n)
		json_object_set_new(j, "excluded", exclude_json(c));
	if (c->options.judge)
		r = c->options.judge(c->options.judge_arg, j, err);
	cleanup_free char *text = r < 0 ? NULL : json_dumps(j, JSON_INDENT(1));
	json_decref(j);
	if (r < 0)
		return r;
	if (!text)
		return usnap_fail_errno(err, -ENOMEM, "cannot write the state of process %d",
					c->target->pid);
	r = image_writer_member(c->writer, "process.json", text, strlen(text), err);
	for (size_t i = 0; i < pstate_nr_threads(c->pstate) && r == 0; i++) {
		char name[64];
		const void *notes;
		size_t len;
		pid_t tid;

		r = pstate_notes(c->pstate, i, &tid, &notes, &len);
		if (r < 0)
			return usnap_fail_errno(err, r, "cannot write the state of a thread");
		snprintf(name, sizeof(name), "threads/%d.notes", tid);
		r = image_writer_member(c->writer, name, notes, len, err);
	}
	return r;
}

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "cli/show.h"
#include "cli/snapshot_run.h"

static void print_json(FILE *out, const struct snapshot_run *run)
{
	const struct capture_stats *s = &run->stats;
	json_t *j = json_pack(
		"{s:i, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:i, s:b, s:I, s:I}",
		"pid", (int)run->pid, "file", show_json_text(run->path), "t0_realtime_ns",
		(json_int_t)s->t0_realtime_ns, "t0_monotonic_ns", (json_int_t)s->t0_monotonic_ns,
		"pause_ns", (json_int_t)s->pause_ns, "elapsed_ns", (json_int_t)run->elapsed_ns,
		"memory_bytes", (json_int_t)s->bytes_populated, "file_bytes",
		(json_int_t)run->written.file_bytes, "faults", (json_int_t)s->faults,
		"fault_max_ns", (json_int_t)s->fault_max_ns, "arm_ns", (json_int_t)s->arm_ns,
		"torn", (int)s->torn, "held", (int)s->held, "threads", (json_int_t)s->threads,
		"regions", (json_int_t)s->regions);
	char *text;

	if (j && *run->name)
		json_object_set_new(j, "name", show_json_text(run->name));
	if (j) {
		json_object_set_new(j, "pages_new",
				    json_integer((json_int_t)run->written.nr_pages_stored));
		json_object_set_new(j, "pages_referred",
				    json_integer((json_int_t)run->written.nr_pages_referred));
	}
	if (j && run->full_because && *run->full_because)
		json_object_set_new(j, "full_because", show_json_text(run->full_because));
	text = j ? json_dumps(j, JSON_COMPACT) : NULL;
	if (text)
		fprintf(out, "%s\n", text);
	free(text);
	json_decref(j);
}

static void print_summary(FILE *out, const struct snapshot_args *a, const struct snapshot_run *run)
{
	const struct capture_stats *s = &run->stats;
	char memory[24], file[24];

	fprintf(out, "%s: %s of memory in %s, %.1f s, pause %.2f ms", run->path,
		show_size(memory, s->bytes_populated), show_size(file, run->written.file_bytes),
		(double)run->elapsed_ns / 1e9, (double)s->pause_ns / 1e6);
	if (run->continues)
		fprintf(out, ", %" PRIu64 " pages new, %" PRIu64 " referred to",
			run->written.nr_pages_stored, run->written.nr_pages_referred);
	if (s->held)
		fprintf(out, " (%s)", a->kill ? "stopped at T0" : "threads held for the copy");
	if (s->torn)
		fprintf(out, ", %u torn attempt%s: %s", s->torn, s->torn == 1 ? "" : "s",
			s->torn_reason);
	if (run->full_because && *run->full_because)
		fprintf(out, ", a full image: %s", run->full_because);
	fputc('\n', out);
}

void snapshot_print(FILE *out, const struct snapshot_args *a, const struct snapshot_run *run)
{
	if (a->json)
		print_json(out, run);
	else if (!a->quiet)
		print_summary(out, a, run);
}

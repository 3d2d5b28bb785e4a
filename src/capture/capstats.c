/* stats.json: what the snapshot cost, in nanoseconds, bytes and counts. */
#include <jansson.h>
#include <stdlib.h>

#include "capture/session.h"
#include "common/util.h"

uint64_t capture_fault_ns(const struct capture_stats *s, double share)
{
	uint64_t total = 0, seen = 0;

	for (int i = 0; i < CAPTURE_HISTOGRAM; i++)
		total += s->fault_latency[i];
	for (int i = 0; i < CAPTURE_HISTOGRAM; i++) {
		seen += s->fault_latency[i];
		if (total && (double)seen >= share * (double)total)
			return i + 1 < CAPTURE_HISTOGRAM ? MIN((uint64_t)1 << i, s->fault_max_ns)
							 : s->fault_max_ns;
	}
	return 0;
}

static void set(json_t *j, const char *key, uint64_t v)
{
	json_object_set_new(j, key, json_integer((json_int_t)v));
}

char *capture_stats_json(const struct capture *c)
{
	const struct capture_stats *s = &c->stats;
	struct image_writer_stats w;
	json_t *j = json_object(), *phases = json_object(), *freeze = json_object();
	json_t *faults = json_object(), *histogram = json_array(), *bytes = json_object();
	json_t *output = json_object();

	image_writer_get_stats(c->writer, &w);
	set(phases, "attach_ns", s->attach_ns);
	set(phases, "arm_ns", s->arm_ns);
	set(phases, "preserve_ns", s->preserve_ns);
	set(phases, "release_ns", s->release_ns);
	json_object_set_new(j, "phases", phases);

	set(j, "pause_ns", s->pause_ns);
	set(freeze, "stop_ns", s->stop_ns);
	set(freeze, "state_ns", s->state_ns);
	set(freeze, "memory_ns", s->memory_ns);
	set(freeze, "pages", s->frozen_pages);
	set(freeze, "logged_pages", s->arm_left);
	set(freeze, "retries", s->freeze_retries);
	set(freeze, "retry_pause_ns", s->freeze_retry_pause_ns);
	json_object_set_new(j, "freeze", freeze);

	set(j, "arm_passes", s->arm_passes);
	set(j, "arm_faults", s->arm_faults);
	set(faults, "count", s->faults);
	set(faults, "pages", s->fault_pages);
	set(faults, "missing", s->missing_faults);
	set(faults, "p50_ns", capture_fault_ns(s, 0.50));
	set(faults, "p99_ns", capture_fault_ns(s, 0.99));
	set(faults, "p999_ns", capture_fault_ns(s, 0.999));
	set(faults, "max_ns", s->fault_max_ns);
	for (int i = 0; i < CAPTURE_HISTOGRAM; i++)
		json_array_append_new(histogram, json_integer((json_int_t)s->fault_latency[i]));
	json_object_set_new(faults, "histogram_log2_ns", histogram);
	json_object_set_new(j, "faults", faults);

	set(j, "discards", s->events);
	set(j, "rescued_pages", s->rescued_pages);
	set(j, "asks", s->asks);
	set(j, "asked_pages", s->asked_pages);
	json_object_set_new(j, "injected", json_boolean(s->injected));
	if (s->ended_told)
		json_object_set_new(j, "ended_told", json_integer(s->ended_told));
	if (s->inject_left)
		json_object_set_new(j, "inject_left", json_true());
	set(j, "torn", s->torn);
	if (s->torn)
		json_object_set_new(j, "torn_reason", json_string(s->torn_reason));
	json_object_set_new(j, "held", json_boolean(s->held));
	set(j, "pages_stored", w.nr_pages_stored);
	set(j, "pages_referred", w.nr_pages_referred);
	set(j, "pages_equal", w.nr_pages_equal);
	if (c->options.full_because) {
		json_t *why = json_string(c->options.full_because);

		/* A path that is not UTF-8 is not shown. */
		json_object_set_new(j, "full_because",
				    why ? why : json_string("the parent cannot be continued"));
	}
	set(j, "regions", s->regions);
	set(j, "threads", s->threads);

	set(bytes, "populated", s->bytes_populated);
	set(bytes, "swept", s->sweep_pages * PAGE_BYTES);
	set(bytes, "frozen", s->frozen_pages * PAGE_BYTES);
	set(bytes, "zero", w.nr_pages_zero * PAGE_BYTES);
	set(bytes, "raw", w.raw_bytes);
	set(bytes, "equal", w.nr_pages_equal * PAGE_BYTES);
	set(bytes, "referred", w.nr_pages_referred * PAGE_BYTES);
	set(bytes, "compressed", w.compressed_bytes);
	set(bytes, "shared_held", s->held_bytes);
	json_object_set_new(j, "bytes", bytes);

	set(output, "longest_write_ns", w.longest_write_ns);
	json_object_set_new(j, "output", output);

	char *text = json_dumps(j, JSON_INDENT(1));
	json_decref(j);
	return text;
}

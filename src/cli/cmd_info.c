#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "cli/cli.h"
#include "cli/msg.h"
#include "cli/refs.h"
#include "cli/show.h"
#include "common/util.h"

struct info_options {
	int json, maps, threads, files; /* as getopt_long() sets them */
};

struct facts {
	const char *file;
	struct usnap_image *img;
	struct usnap_info info;
	json_t *snapshot, *process, *stats;
};

static int load(struct usnap_image *img, const char *name, json_t **ret)
{
	const char *text;
	size_t len;
	int r = usnap_image_get_member(img, name, &text, &len);

	if (r < 0)
		return show_image_failure(img, r);
	*ret = json_loadb(text, len, 0, NULL);
	if (!json_is_object(*ret)) {
		msg_error("cannot read '%s': it is no JSON object", name);
		return EXIT_DAMAGED;
	}
	return EXIT_DONE;
}

static const char *str(const json_t *j, const char *key)
{
	const char *s = json_string_value(json_object_get(j, key));

	return s ? s : "";
}

static void line(const char *label, const char *text)
{
	if (!*text)
		return;
	printf("%-11s", label);
	show_text(text);
	putchar('\n');
}

/* The last column, which may be empty. */
static void end_line(const char *text)
{
	if (*text)
		putchar(' ');
	show_text(text);
	putchar('\n');
}

/* T0 in UTC and in the time of whoever reads it. */
static void print_time(uint64_t ns)
{
	time_t t = (time_t)(ns / 1000000000u);
	struct tm utc, local;
	char a[64], b[64];

	if (!ns || !gmtime_r(&t, &utc) || !localtime_r(&t, &local))
		return;
	strftime(a, sizeof(a), "%Y-%m-%d %H:%M:%S", &utc);
	strftime(b, sizeof(b), "%Y-%m-%d %H:%M:%S %Z", &local);
	printf("taken      %s.%06" PRIu64 " UTC", a, ns % 1000000000u / 1000);
	if (local.tm_gmtoff)
		printf(" (%s)", b);
	putchar('\n');
}

/* Statistics come in groups; the pause is in one of them. */
static const json_t *find_key(const json_t *j, const char *key)
{
	const json_t *found = json_object_get(j, key), *v;
	const char *k;

	json_object_foreach ((json_t *)j, k, v) {
		if (found)
			break;
		if (json_is_object(v))
			found = json_object_get(v, key);
	}
	return found;
}

static void print_pause(const json_t *stats)
{
	const json_t *pause = find_key(stats, "pause_ns"), *torn = find_key(stats, "torn");
	json_int_t n = json_integer_value(torn);

	if (json_is_integer(pause))
		printf("pause      %.3f ms\n", (double)json_integer_value(pause) / 1e6);
	if (n > 0)
		printf("torn       %" JSON_INTEGER_FORMAT " %s before this one\n", n,
		       n == 1 ? "attempt" : "attempts");
	if (json_is_true(find_key(stats, "held")))
		puts("held       the process stood still for the copy");
}

/* How many of each kind there are, in the order they are met. */
struct tally {
	const char *what;
	uint64_t count, bytes;
};

enum {
	MAX_KINDS = 40
};

static void tally_add(struct tally *t, size_t *n, const char *what, uint64_t bytes)
{
	size_t i = 0;

	while (i < *n && strcmp(t[i].what, what) != 0)
		i++;
	if (i == MAX_KINDS)
		i--;
	else if (i == *n)
		t[(*n)++].what = what;
	t[i].count++;
	t[i].bytes += bytes;
}

static int print_memory(struct facts *f)
{
	struct tally t[MAX_KINDS] = {0};
	uint64_t total = 0;
	char a[24], b[24];
	size_t n, kinds = 0;
	int r = usnap_image_get_nr_regions(f->img, &n);

	if (r < 0)
		return show_image_failure(f->img, r);
	for (size_t i = 0; i < n; i++) {
		struct usnap_region g;

		usnap_image_get_region(f->img, i, &g, sizeof(g));
		tally_add(t, &kinds, g.kind, g.end - g.start);
		total += g.end - g.start;
	}
	printf("memory     %s stored, in %s of file\n",
	       show_size(a, f->info.nr_pages * f->info.page_size),
	       show_size(b, f->info.file_bytes));
	printf("regions    %zu, %s of address space\n", n, show_size(a, total));
	for (size_t i = 0; i < kinds; i++) {
		printf("           %6" PRIu64 " ", t[i].count);
		show_text(t[i].what);
		printf(", %s\n", show_size(a, t[i].bytes));
	}
	return EXIT_DONE;
}

/* What the program did not want in its image. */
static void print_excluded(const json_t *excluded)
{
	uint64_t bytes = 0;
	char size[24];
	const json_t *v;
	size_t i;

	if (!json_array_size(excluded))
		return;
	json_array_foreach ((json_t *)excluded, i, v) {
		const char *start = json_string_value(json_array_get(v, 0));
		const char *end = json_string_value(json_array_get(v, 1));

		if (start && end)
			bytes += strtoull(end, NULL, 16) - strtoull(start, NULL, 16);
	}
	printf("excluded   %zu range%s by the program, %s of address space\n",
	       json_array_size(excluded), json_array_size(excluded) == 1 ? "" : "s",
	       show_size(size, bytes));
}

static void print_file_kinds(const json_t *files)
{
	struct tally t[MAX_KINDS] = {0};
	size_t kinds = 0, i;
	const json_t *v;

	json_array_foreach ((json_t *)files, i, v)
		tally_add(t, &kinds, str(v, "type"), 0);
	printf("files      %zu", json_array_size(files));
	for (i = 0; i < kinds; i++) {
		printf("%s%" PRIu64 " ", i ? ", " : ": ", t[i].count);
		show_text(t[i].what);
	}
	putchar('\n');
}

static void print_limits(const json_t *limits)
{
	const json_t *v;
	size_t i;

	if (!json_array_size(limits))
		return;
	puts("a restored process would lack:");
	json_array_foreach ((json_t *)limits, i, v) {
		fputs("  ", stdout);
		show_text(str(v, "what"));
		fputs(": ", stdout);
		show_text(str(v, "detail"));
		puts(strcmp(str(v, "severity"), "refuse") ? "" : " (restoring is refused)");
	}
}

/* What it refers to, and what of that is not to be found. */
static void print_ancestors(struct usnap_image *img)
{
	struct usnap_ancestor a;
	uint64_t pages = 0;
	char text[64];
	size_t n;

	if (usnap_image_get_nr_ancestors(img, &n) < 0 || !n)
		return;
	for (size_t i = 0; i < n; i++)
		if (usnap_image_get_ancestor(img, i, &a, sizeof(a)) == 0)
			pages += a.nr_pages;
	snprintf(text, sizeof(text), "%zu image%s, for %" PRIu64 " pages", n, n == 1 ? "" : "s",
		 pages);
	line("refers to", text);
	for (size_t i = 0; i < n; i++) {
		if (usnap_image_get_ancestor(img, i, &a, sizeof(a)) < 0 || a.path)
			continue;
		snprintf(text, sizeof(text), "%s, for %" PRIu64 " pages", a.id, a.nr_pages);
		line("missing", text);
	}
}

static int print_summary(struct facts *f)
{
	const struct usnap_info *i = &f->info;
	char text[512];
	int r;

	line("image", f->file);
	line("id", i->id);
	line("parent", i->parent ? i->parent : "");
	if (i->parent)
		print_ancestors(f->img);
	snprintf(text, sizeof(text), "%s, PID %d%s%s", i->comm, i->pid, *i->exe ? ", " : "",
		 i->exe);
	line("process", text);
	snprintf(text, sizeof(text), "%s, Linux %s, %s", i->host, i->kernel, i->arch);
	line("host", text);
	print_time(i->t0_realtime_ns);
	line("by", i->tool);
	line("strategy", i->strategy);
	print_pause(f->stats);
	if ((r = print_memory(f)) != EXIT_DONE)
		return r;
	print_excluded(json_object_get(f->process, "excluded"));
	printf("threads    %zu\n", json_array_size(json_object_get(f->process, "threads")));
	print_file_kinds(json_object_get(f->process, "files"));
	print_limits(json_object_get(f->process, "limits_of_restore"));
	return EXIT_DONE;
}

static int print_maps(struct facts *f)
{
	size_t n;
	int r = usnap_image_get_nr_regions(f->img, &n);

	if (r < 0)
		return show_image_failure(f->img, r);
	for (size_t i = 0; i < n; i++) {
		struct usnap_region g;

		usnap_image_get_region(f->img, i, &g, sizeof(g));
		printf("%012" PRIx64 "-%012" PRIx64 " %c%c%c%c %08" PRIx64 " ", g.start, g.end,
		       g.prot & PROT_READ ? 'r' : '-', g.prot & PROT_WRITE ? 'w' : '-',
		       g.prot & PROT_EXEC ? 'x' : '-', g.shared ? 's' : 'p', g.offset);
		show_text(g.kind);
		end_line(g.path);
	}
	return EXIT_DONE;
}

static int print_threads(struct facts *f)
{
	size_t n;
	int r = usnap_image_get_nr_threads(f->img, &n);

	if (r < 0)
		return show_image_failure(f->img, r);
	for (size_t i = 0; i < n; i++) {
		struct usnap_thread t;

		usnap_image_get_thread(f->img, i, &t, sizeof(t));
		printf("%d ", t.tid);
		show_text(t.comm);
		putchar('\n');
	}
	return EXIT_DONE;
}

static int print_files(struct facts *f)
{
	const json_t *v;
	size_t i;

	json_array_foreach (json_object_get(f->process, "files"), i, v) {
		printf("%" JSON_INTEGER_FORMAT " ", json_integer_value(json_object_get(v, "fd")));
		show_text(str(v, "type"));
		end_line(str(v, "path"));
	}
	return EXIT_DONE;
}

static int print_json(struct facts *f)
{
	return show_json(json_pack(
		"{s:O,s:O,s:O,s:{s:I,s:I,s:I}}", "snapshot", f->snapshot, "process", f->process,
		"stats", f->stats, "image", "pages", (json_int_t)f->info.nr_pages, "frames",
		(json_int_t)f->info.nr_frames, "bytes", (json_int_t)f->info.file_bytes));
}

static int show(struct facts *f, const struct info_options *o)
{
	int r = usnap_image_open(f->img, f->file);

	if (r < 0)
		return show_image_failure(f->img, r);
	usnap_image_get_info(f->img, &f->info, sizeof(f->info));
	if ((r = load(f->img, "snapshot.json", &f->snapshot)) != EXIT_DONE ||
	    (r = load(f->img, "process.json", &f->process)) != EXIT_DONE ||
	    (r = load(f->img, "stats.json", &f->stats)) != EXIT_DONE)
		return r;
	if (o->json)
		return print_json(f);
	if (!o->maps && !o->threads && !o->files)
		return print_summary(f);
	if (o->maps && (r = print_maps(f)) != EXIT_DONE)
		return r;
	if (o->threads && (r = print_threads(f)) != EXIT_DONE)
		return r;
	return o->files ? print_files(f) : EXIT_DONE;
}

static int run_info(int argc, char **argv)
{
	struct info_options o = {0};
	const struct option options[] = {
		{"store", required_argument, NULL, 's'}, {"json", no_argument, &o.json, true},
		{"maps", no_argument, &o.maps, true},	 {"threads", no_argument, &o.threads, true},
		{"files", no_argument, &o.files, true},	 {0}};
	struct facts f = {0};
	struct refs refs = {0};
	struct usnap_err err = {0};
	const char *store = NULL;
	int r;

	opterr = 0;
	while ((r = getopt_long(argc, argv, ":", options, NULL)) != -1)
		if (r == 's')
			store = optarg;
		else if (r == ':')
			return cli_usage_error(&cmd_info,
					       "cannot show an image: '%s' takes a value",
					       argv[optind - 1]);
		else if (r)
			return cli_usage_error(&cmd_info,
					       "cannot show an image: unknown option '%s'",
					       argv[optind - 1]);
	if (argc - optind != 1)
		return cli_usage_error(&cmd_info, "cannot show an image: %s",
				       argc == optind ? "no file given"
						      : "more than one file given");
	if (refs_add(&refs, argv[optind], store, REFS_ONE, &err) < 0) {
		refs_close(&refs);
		return msg_failure(&err);
	}
	f.file = refs.path[0];
	f.img = usnap_image_new();
	r = f.img ? show(&f, &o) : show_image_failure(NULL, -ENOMEM);
	json_decref(f.snapshot);
	json_decref(f.process);
	json_decref(f.stats);
	usnap_image_free(f.img);
	refs_close(&refs);
	return r;
}

const struct cli_command cmd_info = {
	.name = "info",
	.args = "[OPTION]... FILE|NAME[@TIME]",
	.summary = "show what an image holds",
	.help = "      --maps       list the mapped regions\n"
		"      --threads    list the threads\n"
		"      --files      list the open files\n"
		"      --store DIR  the store, if not the usual one\n"
		"      --json       print everything that is known as one JSON object\n",
	.run = run_info,
};

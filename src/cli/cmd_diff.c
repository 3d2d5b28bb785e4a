#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "cli/cli.h"
#include "cli/msg.h"
#include "cli/refs.h"
#include "cli/show.h"
#include "common/util.h"
#include "export/diff.h"

enum {
	NR_KINDS = 3
};

static const char *const kind_names[NR_KINDS] = {"changed", "new", "gone"};

struct diff_run_args {
	const char *file[2], *ancestors, *store;
	bool json, bytes;
};

/* Pages of one region, by kind. */
struct counts {
	uint64_t pages[NR_KINDS];
};

struct comparison {
	const struct diff_run_args *args;
	struct usnap_image *img[2];
	uint32_t page_size;
	size_t nr_regions[2];
	struct counts *regions[2]; /* what is gone counts in the first, all else in the second */
	struct counts total;
	json_t *ranges; /* with --json --bytes */
	unsigned char *page[2];
};

/* ---- bytes -------------------------------------------------------------------------------------- */

/* What an image has there, or zeros: memory that is as in a file is not in it. */
static int read_side(struct comparison *c, int side, uint64_t addr)
{
	int r = usnap_image_read(c->img[side], addr, c->page[side], c->page_size);

	if (r != -EFAULT && r != -ENODATA)
		return r;
	memset(c->page[side], 0, c->page_size);
	return 0;
}

static int print_bytes(struct comparison *c, const struct diff_run *run)
{
	for (uint64_t addr = run->start; addr < run->start + run->len; addr += c->page_size) {
		for (int side = 0; side < 2; side++) {
			int r = read_side(c, side, addr);

			if (r < 0)
				return show_image_failure(c->img[side], r);
		}
		for (uint32_t at = 0; at < c->page_size; at += 16) {
			if (!memcmp(c->page[0] + at, c->page[1] + at, 16))
				continue;
			if (run->kind != DIFF_NEW)
				show_hex_line("-", addr + at, c->page[0] + at, 16);
			if (run->kind != DIFF_GONE)
				show_hex_line("+", addr + at, c->page[1] + at, 16);
		}
	}
	return EXIT_DONE;
}

/* ---- runs --------------------------------------------------------------------------------------- */

static void count(struct comparison *c, const struct diff_run *run)
{
	int side = run->kind == DIFF_GONE ? 0 : 1;
	uint64_t at = run->start, end = run->start + run->len;

	c->total.pages[run->kind] += run->len / c->page_size;
	while (at < end) {
		struct usnap_region g;
		size_t nr;

		/* A page in no region is damage, which verify names. */
		if (usnap_image_find_region(c->img[side], at, &nr) != 1 ||
		    usnap_image_get_region(c->img[side], nr, &g, sizeof(g)) < 0)
			return;
		uint64_t part = MIN(end, g.end) - at;

		c->regions[side][nr].pages[run->kind] += part / c->page_size;
		at += part;
	}
}

static int walk(struct comparison *c)
{
	struct usnap_err err = {0};
	struct diff *d = NULL;
	struct diff_run run;
	int code = EXIT_DONE;
	int r = diff_new(&d, c->img[0], c->img[1], &err);

	while (r == 0 && code == EXIT_DONE && (r = diff_next(d, &run, &err)) == 1) {
		char addr[24];

		r = 0;
		count(c, &run);
		snprintf(addr, sizeof(addr), "0x%" PRIx64, run.start);
		if (c->args->json && c->args->bytes)
			json_array_append_new(c->ranges, json_pack("{s:s,s:I,s:s}", "start", addr,
								   "bytes", (json_int_t)run.len,
								   "kind", kind_names[run.kind]));
		else if (c->args->bytes)
			code = print_bytes(c, &run);
	}
	diff_free(d);
	return r < 0 ? msg_failure(&err) : code;
}

/* ---- what was found ----------------------------------------------------------------------------- */

static bool any(const struct counts *n)
{
	return n->pages[0] || n->pages[1] || n->pages[2];
}

static json_t *describe(const struct comparison *c, int side, size_t nr)
{
	const struct counts *n = &c->regions[side][nr];
	struct usnap_region g;
	char start[24], end[24];

	usnap_image_get_region(c->img[side], nr, &g, sizeof(g));
	snprintf(start, sizeof(start), "0x%" PRIx64, g.start);
	snprintf(end, sizeof(end), "0x%" PRIx64, g.end);
	json_t *j = json_pack("{s:s,s:s,s:s,s:b}", "start", start, "end", end, "kind", g.kind,
			      "gone", side == 0);

	json_object_set_new(j, "path", show_json_text(g.path));
	for (int k = 0; k < NR_KINDS; k++) {
		char key[24];

		snprintf(key, sizeof(key), "pages_%s", kind_names[k]);
		json_object_set_new(j, key, json_integer((json_int_t)n->pages[k]));
	}
	return j;
}

static int show_as_json(struct comparison *c)
{
	json_t *j = json_object(), *files = json_array(), *regions = json_array();

	for (int side = 0; side < 2; side++) {
		struct usnap_info info;

		usnap_image_get_info(c->img[side], &info, sizeof(info));
		json_array_append_new(files,
				      json_pack("{s:o,s:s,s:I}", "file",
						show_json_text(c->args->file[side]), "id", info.id,
						"t0_realtime_ns", (json_int_t)info.t0_realtime_ns));
		for (size_t i = 0; i < c->nr_regions[side]; i++)
			if (any(&c->regions[side][i]))
				json_array_append_new(regions, describe(c, side, i));
	}
	json_object_set_new(j, "images", files);
	json_object_set_new(j, "page_size", json_integer(c->page_size));
	for (int k = 0; k < NR_KINDS; k++) {
		char key[24];

		snprintf(key, sizeof(key), "pages_%s", kind_names[k]);
		json_object_set_new(j, key, json_integer((json_int_t)c->total.pages[k]));
	}
	json_object_set_new(j, "regions", regions);
	if (c->args->bytes)
		json_object_set(j, "ranges", c->ranges);
	return show_json(j);
}

static void print_counts(const struct counts *n)
{
	const char *comma = "";

	for (int k = 0; k < NR_KINDS; k++) {
		if (!n->pages[k])
			continue;
		printf("%s%" PRIu64 " %s", comma, n->pages[k], kind_names[k]);
		comma = ", ";
	}
	fputs(*comma ? "" : "none", stdout);
}

static void show_as_text(const struct comparison *c)
{
	uint64_t pages = 0;
	char bytes[24];

	for (int side = 0; side < 2; side++) {
		for (size_t i = 0; i < c->nr_regions[side]; i++) {
			struct usnap_region g;

			if (!any(&c->regions[side][i]))
				continue;
			usnap_image_get_region(c->img[side], i, &g, sizeof(g));
			printf("%012" PRIx64 "-%012" PRIx64 " %c%c%c ", g.start, g.end,
			       g.prot & PROT_READ ? 'r' : '-', g.prot & PROT_WRITE ? 'w' : '-',
			       g.prot & PROT_EXEC ? 'x' : '-');
			print_counts(&c->regions[side][i]);
			fputs("  ", stdout);
			show_text(*g.path ? g.path : g.kind);
			putchar('\n');
		}
	}
	for (int k = 0; k < NR_KINDS; k++)
		pages += c->total.pages[k];
	fputs("pages: ", stdout);
	print_counts(&c->total);
	printf(", %s in all\n", show_size(bytes, pages * c->page_size));
}

static int prepare(struct comparison *c, int side)
{
	struct usnap_info info;
	int r;

	c->img[side] = usnap_image_new();
	r = c->img[side] ? usnap_image_open(c->img[side], c->args->file[side]) : -ENOMEM;
	if (r == 0 && c->args->ancestors)
		r = usnap_image_add_ancestors(c->img[side], c->args->ancestors);
	if (r == 0)
		r = usnap_image_get_nr_regions(c->img[side], &c->nr_regions[side]);
	if (r < 0)
		return show_image_failure(c->img[side], r);
	usnap_image_get_info(c->img[side], &info, sizeof(info));
	c->page_size = info.page_size;
	c->regions[side] = calloc(c->nr_regions[side] + 1, sizeof(struct counts));
	c->page[side] = malloc(info.page_size);
	if (c->regions[side] && c->page[side])
		return EXIT_DONE;
	msg_error("cannot compare images: out of memory");
	return EXIT_FAILED;
}

static int compare(const struct diff_run_args *args)
{
	struct comparison c = {.args = args, .ranges = json_array()};
	int code = prepare(&c, 0);

	if (code == EXIT_DONE)
		code = prepare(&c, 1);
	if (code == EXIT_DONE)
		code = walk(&c);
	if (code == EXIT_DONE && args->json)
		code = show_as_json(&c);
	else if (code == EXIT_DONE)
		show_as_text(&c);
	for (int side = 0; side < 2; side++) {
		usnap_image_free(c.img[side]);
		free(c.regions[side]);
		free(c.page[side]);
	}
	json_decref(c.ranges);
	return code;
}

static int run_diff(int argc, char **argv)
{
	static const struct option options[] = {{"bytes", no_argument, NULL, 'b'},
						{"ancestors", required_argument, NULL, 'a'},
						{"store", required_argument, NULL, 's'},
						{"json", no_argument, NULL, 'j'},
						{0}};
	struct diff_run_args a = {0};

	opterr = 0;
	for (int o; (o = getopt_long(argc, argv, ":b", options, NULL)) != -1;) {
		if (o == 'b')
			a.bytes = true;
		else if (o == 'a')
			a.ancestors = optarg;
		else if (o == 's')
			a.store = optarg;
		else if (o == 'j')
			a.json = true;
		else
			return cli_usage_error(&cmd_diff, "cannot compare: %s '%s'",
					       o == ':' ? "a value is missing after"
							: "unknown option",
					       argv[optind - 1]);
	}
	if (argc - optind != 2)
		return cli_usage_error(&cmd_diff, "cannot compare: two files are needed");
	struct usnap_err err = {0};
	struct refs refs = {0};
	int code;

	if (refs_add(&refs, argv[optind], a.store, REFS_ONE, &err) < 0 ||
	    refs_add(&refs, argv[optind + 1], a.store, REFS_ONE, &err) < 0) {
		code = msg_failure(&err);
	} else {
		a.file[0] = refs.path[0];
		a.file[1] = refs.path[1];
		code = compare(&a);
	}
	refs_close(&refs);
	return code;
}

const struct cli_command cmd_diff = {
	.name = "diff",
	.args = "[OPTION]... FILE|NAME[@TIME] FILE|NAME[@TIME]",
	.summary = "show what memory differs between two images",
	.help = "  -b, --bytes           print the bytes that differ, 16 to a line\n"
		"      --ancestors PATH  look in PATH first for what the images refer to\n"
		"      --store DIR       the store, if not the usual one\n"
		"      --json            print JSON; with --bytes, the ranges that differ too\n"
		"\n"
		"Prints the pages that changed, by region: 'new' ones were not mapped in the\n"
		"first image, 'gone' ones are not in the second.\n",
	.run = run_diff,
};

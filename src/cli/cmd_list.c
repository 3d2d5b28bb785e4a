#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/msg.h"
#include "cli/obstacle.h"
#include "cli/refs.h"
#include "cli/show.h"
#include "common/util.h"
#include "store/links.h"
#include "store/storetime.h"

struct list {
	struct store *store;
	bool json, brief;
	json_t *rows; /* with json */
	size_t nr;
	uint64_t bytes;
	int worst;
};

/* What the image itself says. */
struct row {
	uint64_t pause_ns, memory_bytes;
	size_t obstacles; /* to a restore, as far as they were known when it was taken */
	bool known;
};

static json_t *member(struct usnap_image *img, const char *name)
{
	const char *text;
	size_t len;

	return usnap_image_get_member(img, name, &text, &len) < 0 ? NULL
								  : json_loadb(text, len, 0, NULL);
}

static void load_row(struct row *row, const char *path)
{
	struct usnap_image *img = usnap_image_new();
	json_t *stats = NULL, *process = NULL;
	struct obstacle o;

	if (img && usnap_image_open(img, path) == 0) {
		stats = member(img, "stats.json");
		process = member(img, "process.json");
	}
	if (stats && process) {
		row->known = true;
		row->pause_ns = (uint64_t)json_integer_value(json_object_get(stats, "pause_ns"));
		row->memory_bytes = (uint64_t)json_integer_value(
			json_object_get(json_object_get(stats, "bytes"), "populated"));
		row->obstacles = obstacle_find(process, NULL, NULL, &o) ? o.nr : 0;
	}
	json_decref(stats);
	json_decref(process);
	usnap_image_free(img);
}

static const char *restores(const struct row *row, const struct store_link *l)
{
	if (!l->readable && !l->damaged)
		return "unknown";
	if (!row->known || !l->readable)
		return "damaged";
	if (l->nr_missing)
		return "incomplete";
	return row->obstacles ? "not by itself" : "yes";
}

static void add_json(struct list *list, const char *name, const struct store_images *images,
		     size_t i, const struct store_link *l, const struct row *row, const char *path)
{
	const struct store_image *image = &images->image[i];
	json_t *needs = json_array(),
	       *j = json_pack("{s:o, s:s, s:o, s:I, s:I, s:b, s:s}", "name", show_json_text(name),
			      "id", image->id, "file", show_json_text(path), "t0_ms",
			      (json_int_t)image->t0_ms, "file_bytes", (json_int_t)image->bytes,
			      "readable", row->known && l->readable, "restores", restores(row, l));

	json_object_set_new(j, "parent",
			    l->parent >= 0 ? json_string(images->image[l->parent].id)
					   : json_null());
	for (size_t k = 0; k < l->nr_needs; k++)
		json_array_append_new(needs, json_string(images->image[l->needs[k]].id));
	json_object_set_new(j, "needs", needs);
	if (l->nr_missing)
		json_object_set_new(j, "missing", json_string(l->missing));
	if (row->known) {
		json_object_set_new(j, "memory_bytes", json_integer((json_int_t)row->memory_bytes));
		json_object_set_new(j, "pause_ns", json_integer((json_int_t)row->pause_ns));
		json_object_set_new(j, "obstacles", json_integer((json_int_t)row->obstacles));
	}
	json_array_append_new(list->rows, j);
}

static void print_row(const char *name, const struct store_images *images, size_t i,
		      const struct store_link *l, const struct row *row)
{
	const struct store_image *image = &images->image[i];
	char time[STORETIME_LOCAL + 1], memory[24] = "-", file[24], pause[24] = "-",
					ratio[16] = "-";

	storetime_local(image->t0_ms, time);
	if (row->known) {
		show_size(memory, row->memory_bytes);
		snprintf(pause, sizeof(pause), "%.2f ms", (double)row->pause_ns / 1e6);
		if (row->memory_bytes)
			snprintf(ratio, sizeof(ratio), "%.0f%%",
				 100.0 * (double)image->bytes / (double)row->memory_bytes);
	}
	show_text(name);
	printf("@%s  %.8s  %10s  %10s  %5s  %9s  ", time, image->id, memory,
	       show_size(file, image->bytes), ratio, pause);
	if (!l->readable)
		fputs("-       ", stdout);
	else if (!l->nr_needs && !l->nr_missing)
		fputs("full    ", stdout);
	else if (l->parent >= 0)
		printf("%.8s", images->image[l->parent].id);
	else
		printf("%.8s", l->nr_needs ? images->image[l->needs[0]].id : l->missing);
	printf("  %s\n", restores(row, l));
}

/* Only what file names tell: for scripts, and for thousands at once. */
static void print_brief(const char *name, const struct store_images *images)
{
	char time[STORETIME_STAMP + 1];

	for (size_t i = 0; i < images->nr; i++) {
		if (storetime_stamp(images->image[i].t0_ms, time) < 0)
			continue;
		show_text(name);
		printf("@%s\n", time);
	}
}

static int list_images(struct list *list, const char *name, const struct store_images *images,
		       struct usnap_err *err)
{
	struct store_link *links;
	int r = store_links_load(list->store, name, images, &links, err);

	if (r < 0)
		return r;
	for (size_t i = 0; i < images->nr; i++) {
		cleanup_free char *path = NULL;
		struct row row = {0};

		if (asprintf(&path, "%s/%s/%s", store_path(list->store), name,
			     images->image[i].file) < 0)
			path = NULL;
		if (path && links[i].readable)
			load_row(&row, path);
		if (list->json && path)
			add_json(list, name, images, i, &links[i], &row, path);
		else if (!list->json)
			print_row(name, images, i, &links[i], &row);
		if (!links[i].readable) {
			show_flush(stdout);
			msg_warning("%s", links[i].why);
			list->worst = cli_worse(list->worst,
						links[i].damaged ? EXIT_DAMAGED : EXIT_FAILED);
		}
		list->bytes += images->image[i].bytes;
	}
	list->nr += images->nr;
	store_links_free(links, images->nr);
	return 0;
}

/* Locked against removal, so that what is listed is there while it is looked into. */
static int list_name(struct list *list, const char *name, struct usnap_err *err)
{
	struct store_images images;
	struct store_lock *lock = NULL;
	int r = list->brief ? 0 : store_lock(&lock, list->store, name, STORE_READ, NULL, err);

	if (r < 0 || (r = store_scan(list->store, name, &images, err)) < 0) {
		store_unlock(lock);
		return r;
	}
	if (list->brief)
		print_brief(name, &images);
	else
		r = list_images(list, name, &images, err);
	store_images_free(&images);
	store_unlock(lock);
	return r;
}

static int list_store(struct list *list, char **names, size_t nr, struct usnap_err *err)
{
	struct store_names all = {0};
	bool given = nr > 0;
	int r = 0;

	if (!given) {
		if ((r = store_list_names(list->store, &all, err)) < 0)
			return r;
		names = all.name;
		nr = all.nr;
	}
	for (size_t i = 0; r == 0 && i < nr; i++) {
		struct usnap_err why = {0};

		r = list_name(list, names[i], &why);
		if (r < 0 && !given) {
			fflush(stdout);
			/* Removed meanwhile; or it is told of, and the others are none the worse for it. */
			if (r != -ENOENT)
				list->worst = cli_worse(list->worst, msg_failure(&why));
			r = 0;
		} else if (r < 0) {
			*err = why;
		}
	}
	store_names_free(&all);
	return r;
}

static int finish(struct list *list)
{
	char size[24];

	if (list->json)
		return cli_worse(
			list->worst,
			show_json(json_pack("{s:o, s:O, s:I}", "store",
					    show_json_text(store_path(list->store)), "images",
					    list->rows, "file_bytes", (json_int_t)list->bytes)));
	if (!list->brief)
		printf("%zu image%s, %s\n", list->nr, list->nr == 1 ? "" : "s",
		       show_size(size, list->bytes));
	return list->worst;
}

static int run_list(int argc, char **argv)
{
	static const struct option options[] = {{"store", required_argument, NULL, 's'},
						{"json", no_argument, NULL, 'j'},
						{"quiet", no_argument, NULL, 'q'},
						{0}};
	struct list list = {.worst = EXIT_DONE};
	struct usnap_err err = {0};
	const char *store = NULL;

	opterr = 0;
	for (int o; (o = getopt_long(argc, argv, ":q", options, NULL)) != -1;) {
		if (o == 's')
			store = optarg;
		else if (o == 'j')
			list.json = true;
		else if (o == 'q')
			list.brief = true;
		else
			return cli_usage_error(&cmd_list,
					       o == ':' ? "cannot list: '%s' takes a value"
							: "cannot list: unknown option '%s'",
					       argv[optind - 1]);
	}
	if (refs_open_store(&list.store, store, &err) < 0)
		return msg_failure(&err);
	list.rows = json_array();
	list.brief = list.brief && !list.json;
	if (list_store(&list, argv + optind, (size_t)(argc - optind), &err) < 0)
		list.worst = msg_failure(&err);
	else
		list.worst = finish(&list);
	json_decref(list.rows);
	store_close(list.store);
	return list.worst;
}

const struct cli_command cmd_list = {
	.name = "list",
	.args = "[OPTION]... [NAME]...",
	.summary = "show the images in the store",
	.help = "      --store DIR  the store, if not the usual one\n"
		"      --json       print JSON\n"
		"  -q, --quiet      only names and times, as other commands take them\n"
		"\n"
		"For each image: time, id, memory, size of the file, ratio, pause, the image\n"
		"that it continues, and whether it restores by itself.\n",
	.run = run_list,
};

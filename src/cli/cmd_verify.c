#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/msg.h"
#include "cli/progress.h"
#include "cli/refs.h"
#include "cli/show.h"
#include "common/util.h"

struct verify_run {
	const char *file;
	bool json, quiet, no_chain;
	json_t *findings; /* with json */
	struct progress progress;
};

static void on_finding(void *ctx, uint64_t offset, const char *what)
{
	struct verify_run *v = ctx;

	if (v->json) {
		json_array_append_new(v->findings,
				      json_pack("{s:I,s:o}", "offset", (json_int_t)offset, "what",
						show_json_text(what)));
		return;
	}
	progress_end(&v->progress);
	show_text(v->file);
	printf(": offset %" PRIu64 ": ", offset);
	show_text(what);
	putchar('\n');
}

static void on_progress(void *ctx, uint64_t done, uint64_t total)
{
	struct verify_run *v = ctx;

	progress_update(&v->progress, "verifying", done, total);
}

static int verify_file(struct verify_run *v, struct usnap_image *img)
{
	struct usnap_verify_options o = {.size = sizeof(o),
					 .ctx = v,
					 .finding = on_finding,
					 .progress = on_progress,
					 .no_chain = v->no_chain};
	struct usnap_info info;
	char memory[24], bytes[24];
	int r = usnap_image_open(img, v->file);

	if (r < 0 && r != -EBADMSG)
		return show_image_failure(img, r);
	if (r < 0) {
		usnap_image_verify(img, &o); /* tells why it did not open */
		return EXIT_DAMAGED;
	}
	usnap_image_get_info(img, &info, sizeof(info));
	progress_start(&v->progress, v->quiet || v->json);
	r = usnap_image_verify(img, &o);
	progress_end(&v->progress);
	if (r == -EBADMSG)
		return EXIT_DAMAGED;
	if (r < 0)
		return show_image_failure(img, r);
	if (!v->json && !v->quiet) {
		show_text(v->file);
		printf(": sound: %s of memory in %" PRIu64 " frames, %s\n",
		       show_size(memory, info.nr_pages * info.page_size), info.nr_frames,
		       show_size(bytes, info.file_bytes));
	}
	return EXIT_DONE;
}

static json_t *describe(const struct verify_run *v, struct usnap_image *img, int code)
{
	struct usnap_info info = {0};
	json_t *j = json_object();

	json_object_set_new(j, "file", show_json_text(v->file));
	/* Of what could not be read nothing is known. */
	json_object_set_new(j, "sound",
			    code == EXIT_FAILED ? json_null() : json_boolean(code == EXIT_DONE));
	if (code == EXIT_FAILED) {
		json_object_set_new(j, "error", show_json_text(usnap_image_error(img)));
	} else if (usnap_image_get_info(img, &info, sizeof(info)) == 0) {
		json_object_set_new(j, "id", json_string(info.id));
		json_object_set_new(j, "pages", json_integer((json_int_t)info.nr_pages));
		json_object_set_new(j, "frames", json_integer((json_int_t)info.nr_frames));
		json_object_set_new(j, "bytes", json_integer((json_int_t)info.file_bytes));
	}
	json_object_set(j, "findings", v->findings);
	return j;
}

/* What is meant: files, and images in the store. One that cannot be found does not keep the others
 * from being looked at. Returns an exit status. */
static int find_images(char **args, int nr, const char *store, bool all, struct refs *refs)
{
	int worst = EXIT_DONE;

	if (all) {
		struct usnap_err err = {0};

		return refs_add_store(refs, store, &err) < 0 ? msg_failure(&err) : EXIT_DONE;
	}
	for (int i = 0; i < nr; i++) {
		struct usnap_err err = {0};

		if (refs_add(refs, args[i], store, REFS_EVERY, &err) < 0)
			worst = cli_worse(worst, msg_failure(&err));
	}
	return worst;
}

static int run_verify(int argc, char **argv)
{
	static const struct option options[] = {
		{"json", no_argument, NULL, 'j'},	 {"quiet", no_argument, NULL, 'q'},
		{"no-chain", no_argument, NULL, 'c'},	 {"all", no_argument, NULL, 'a'},
		{"store", required_argument, NULL, 's'}, {0}};
	struct verify_run v = {0};
	struct refs refs = {0};
	const char *store = NULL;
	bool all = false;
	json_t *files;
	int worst = EXIT_DONE;

	opterr = 0;
	for (int o; (o = getopt_long(argc, argv, ":q", options, NULL)) != -1;) {
		if (o == 'j')
			v.json = true;
		else if (o == 'q')
			v.quiet = true;
		else if (o == 'c')
			v.no_chain = true;
		else if (o == 'a')
			all = true;
		else if (o == 's')
			store = optarg;
		else if (o == ':')
			return cli_usage_error(&cmd_verify, "cannot verify: '%s' takes a value",
					       argv[optind - 1]);
		else
			return cli_usage_error(&cmd_verify, "cannot verify: unknown option '%s'",
					       argv[optind - 1]);
	}
	if (optind == argc && !all)
		return cli_usage_error(&cmd_verify, "cannot verify: no file given");
	if (optind < argc && all)
		return cli_usage_error(&cmd_verify, "cannot verify '%s': --all is the whole store",
				       argv[optind]);
	worst = find_images(argv + optind, argc - optind, store, all, &refs);
	files = json_array();
	for (size_t i = 0; i < refs.nr; i++) {
		struct usnap_image *img = usnap_image_new();
		int r;

		v.file = refs.path[i];
		v.findings = json_array();
		r = img ? verify_file(&v, img) : show_image_failure(NULL, -ENOMEM);
		if (v.json)
			json_array_append_new(files, describe(&v, img, r));
		json_decref(v.findings);
		usnap_image_free(img);
		worst = cli_worse(worst, r);
	}
	if (v.json)
		worst = cli_worse(worst, show_json(json_pack("{s:O}", "files", files)));
	json_decref(files);
	refs_close(&refs);
	return worst;
}

const struct cli_command cmd_verify = {
	.name = "verify",
	.args = "[OPTION]... FILE|NAME[@TIME]...",
	.summary = "check that images are what was written",
	.help = "      --all        every image in the store\n"
		"      --store DIR  the store, if not the usual one\n"
		"      --no-chain   leave alone what an image refers to in others\n"
		"  -q, --quiet      say nothing of images that are sound\n"
		"      --json       print JSON\n"
		"\n"
		"A NAME without a time is all of its images.\n"
		"Reads every byte, decodes every page, follows every reference. Damage is printed\n"
		"as 'FILE: offset N: what'. Exit status 3 when an image is damaged, 1 when one\n"
		"could not be read.\n",
	.run = run_verify,
};

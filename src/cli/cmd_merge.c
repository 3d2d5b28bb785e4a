#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/cli.h"
#include "cli/msg.h"
#include "cli/progress.h"
#include "cli/refs.h"
#include "cli/show.h"
#include "cli/unattended.h"
#include "common/util.h"
#include "image/merge.h"
#include "image/output.h"

struct merge_args {
	const char *file, *output, *ancestors, *store;
	bool quiet;
};

static void on_progress(void *arg, uint64_t done, uint64_t total)
{
	progress_update(arg, "merging", done, total);
}

static int fail(struct progress *p, struct usnap_err *err, const volatile sig_atomic_t *signal_)
{
	progress_end(p);
	if (err->code == -ECANCELED && *signal_) {
		msg_error("interrupted: nothing was written");
		signal(*signal_, SIG_DFL);
		raise(*signal_);
	}
	return msg_failure(err);
}

/* All frames that it refers to lie in these files. */
static int hint_room(struct usnap_image *img, const struct usnap_info *info, size_t n,
		     struct usnap_err *err)
{
	uint64_t bytes = info->file_bytes;
	char size[24];

	for (size_t i = 0; i < n; i++) {
		struct usnap_ancestor ancestor;
		struct stat st;

		if (usnap_image_get_ancestor(img, i, &ancestor, sizeof(ancestor)) == 0 &&
		    ancestor.path && stat(ancestor.path, &st) == 0)
			bytes += (uint64_t)st.st_size;
	}
	return usnap_hint(err, "merging needs up to %s, beside what it merges",
			  show_size(size, bytes));
}

static int merge(const struct merge_args *a, struct usnap_image *img)
{
	const volatile sig_atomic_t *interrupted = unattended_catch_signals();
	struct image_writer_stats stats = {0};
	struct merge_options o = {.level = 1, .cancel = interrupted, .progress = on_progress};
	struct output *output = NULL;
	struct progress progress;
	struct usnap_err err = {0};
	char memory[24], bytes[24];
	struct usnap_info info;
	size_t n = 0;
	int r = usnap_image_open(img, a->file);

	if (r == 0 && a->ancestors)
		r = usnap_image_add_ancestors(img, a->ancestors);
	if (r == 0)
		r = usnap_image_get_nr_ancestors(img, &n);
	if (r == 0)
		r = usnap_image_get_info(img, &info, sizeof(info));
	if (r < 0)
		return show_image_failure(img, r);
	progress_start(&progress, a->quiet);
	o.progress_arg = &progress;
	r = show_check_output(img, a->output, &err);
	if (r == 0)
		r = output_open(&output, a->output, &err);
	if (r == 0) {
		o.fd = output_fd(output);
		r = image_merge(img, &o, &stats, &err);
	}
	if (r == 0)
		r = output_commit(output, &err);
	if (err.code == -ENOSPC || err.code == -EDQUOT)
		hint_room(img, &info, n, &err);
	if (r == 0) {
		progress_end(&progress);
		if (!a->quiet)
			fprintf(output_is_stream(output) ? stderr : stdout,
				"%s: %zu image%s merged, %s of memory in %s\n", a->output, n + 1,
				n ? "s" : "",
				show_size(memory, stats.nr_pages_stored * info.page_size),
				show_size(bytes, stats.file_bytes));
	}
	output_close(output);
	return r < 0 ? fail(&progress, &err, interrupted) : EXIT_DONE;
}

static int run_merge(int argc, char **argv)
{
	static const struct option options[] = {{"output", required_argument, NULL, 'o'},
						{"ancestors", required_argument, NULL, 'a'},
						{"store", required_argument, NULL, 's'},
						{"quiet", no_argument, NULL, 'q'},
						{0}};
	struct merge_args a = {0};
	struct usnap_image *img;
	struct usnap_err err = {0};
	struct refs refs = {0};
	int r;

	opterr = 0;
	for (int o; (o = getopt_long(argc, argv, ":o:q", options, NULL)) != -1;) {
		if (o == 'o')
			a.output = optarg;
		else if (o == 'a')
			a.ancestors = optarg;
		else if (o == 's')
			a.store = optarg;
		else if (o == 'q')
			a.quiet = true;
		else
			return cli_usage_error(&cmd_merge, "cannot merge: %s '%s'",
					       o == ':' ? "a value is missing after"
							: "unknown option",
					       argv[optind - 1]);
	}
	if (argc - optind != 1)
		return cli_usage_error(&cmd_merge, "cannot merge: %s",
				       argc == optind ? "no file given"
						      : "more than one file given");
	if (!a.output)
		return cli_usage_error(&cmd_merge, "cannot merge: no -o FILE given");
	if (refs_add(&refs, argv[optind], a.store, REFS_ONE, &err) < 0) {
		refs_close(&refs);
		return msg_failure(&err);
	}
	a.file = refs.path[0];
	img = usnap_image_new();
	r = img ? merge(&a, img) : show_image_failure(NULL, -ENOMEM);
	usnap_image_free(img);
	refs_close(&refs);
	return r;
}

const struct cli_command cmd_merge = {
	.name = "merge",
	.args = "FILE|NAME[@TIME] -o OUTPUT [OPTION]...",
	.summary = "make an image and those it refers to one that refers to none",
	.help = "  -o, --output FILE      where to write the image; - is standard output\n"
		"      --ancestors PATH   look in PATH first for what FILE refers to\n"
		"      --store DIR        the store, if not the usual one\n"
		"  -q, --quiet            print nothing but errors\n",
	.run = run_merge,
};

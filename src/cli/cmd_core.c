#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/msg.h"
#include "cli/progress.h"
#include "cli/refs.h"
#include "cli/show.h"
#include "common/util.h"
#include "export/coreimage.h"
#include "image/output.h"
#include "uffd-snap.h"

struct core_args {
	const char *image, *output;
	bool all, quiet;
};

static void show_progress(void *arg, uint64_t done_bytes, uint64_t total_bytes)
{
	progress_update(arg, "exporting", done_bytes, total_bytes);
}

/* As gcore(1) names it. */
static int default_name(struct usnap_image *img, char *buf, size_t room, struct usnap_err *err)
{
	int32_t pid;
	int r = core_image_pid(img, &pid, err);

	if (!r)
		snprintf(buf, room, "core.%d", pid);
	return r;
}

static int check_output(const struct core_args *a, const char *path, struct usnap_err *err)
{
	struct stat image, output;

	if (strcmp(path, "-") == 0) {
		if (!isatty(STDOUT_FILENO))
			return 0;
		usnap_fail(err, -EINVAL, "cannot write a core file to a terminal");
		return usnap_hint(err, "redirect standard output, or name a file with -o FILE");
	}
	/* It would be replaced by its own core file. */
	if (stat(a->image, &image) == 0 && stat(path, &output) == 0 &&
	    image.st_dev == output.st_dev && image.st_ino == output.st_ino)
		return usnap_fail(err, -EINVAL, "cannot write '%s': it is the image itself", path);
	return 0;
}

static int write_core(struct usnap_image *img, const struct core_args *a, const char *path,
		      struct usnap_err *err)
{
	struct progress progress;
	struct output *out;
	int r = output_open(&out, path, err);

	if (r)
		return r;
	progress_start(&progress, a->quiet);
	const struct core_options options = {
		.fd = output_fd(out),
		.stream = output_is_stream(out),
		.output = strcmp(path, "-") ? path : "standard output",
		.all = a->all,
		.progress = show_progress,
		.progress_arg = &progress,
	};
	r = core_image_write(img, a->image, &options, err);
	if (!r)
		r = output_commit(out, err);
	progress_end(&progress);
	output_close(out);
	return r;
}

static int export_core(const struct core_args *a, struct usnap_err *err)
{
	struct usnap_image *img = usnap_image_new();
	const char *path = a->output;
	char name[32];
	int r;

	if (!img)
		return usnap_fail_errno(err, -ENOMEM, "cannot open '%s'", a->image);
	r = usnap_image_open(img, a->image);
	if (r < 0) {
		usnap_fail(err, r, "%s", usnap_image_error(img));
		if (*usnap_image_hint(img))
			usnap_hint(err, "%s", usnap_image_hint(img));
		goto out;
	}
	r = 0;
	if (!path) {
		r = default_name(img, name, sizeof(name), err);
		path = name;
	}
	if (!r)
		r = check_output(a, path, err);
	if (!r)
		r = show_check_output(img, path, err);
	if (!r)
		r = write_core(img, a, path, err);
	if (!r && !a->quiet && strcmp(path, "-") != 0)
		msg_info("saved core file '%s'", path);
out:
	usnap_image_free(img);
	return r;
}

static int run_core(int argc, char **argv)
{
	static const struct option options[] = {
		{"output", required_argument, NULL, 'o'},
		{"all", no_argument, NULL, 'a'},
		{"quiet", no_argument, NULL, 'q'},
		{"store", required_argument, NULL, 's'},
		{0},
	};
	struct core_args a = {0};
	struct usnap_err err = {0};
	struct refs refs = {0};
	const char *store = NULL;
	int r;

	opterr = 0;
	for (int o; (o = getopt_long(argc, argv, ":o:aq", options, NULL)) != -1;) {
		switch (o) {
		case 'o':
			a.output = optarg;
			break;
		case 'a':
			a.all = true;
			break;
		case 'q':
			a.quiet = true;
			break;
		case 's':
			store = optarg;
			break;
		case ':':
			return cli_usage_error(&cmd_core,
					       "cannot export: option '%s' needs a value",
					       argv[optind - 1]);
		default:
			return cli_usage_error(&cmd_core, "cannot export: unknown option '%s'",
					       argv[optind - 1]);
		}
	}
	if (argc - optind != 1)
		return cli_usage_error(&cmd_core,
				       argc == optind ? "cannot export: no image given"
						      : "cannot export: more than one image given");
	r = refs_add(&refs, argv[optind], store, REFS_ONE, &err);
	if (r == 0) {
		a.image = refs.path[0];
		r = export_core(&a, &err);
	}
	refs_close(&refs);
	return r ? msg_failure(&err) : EXIT_DONE;
}

const struct cli_command cmd_core = {
	.name = "core",
	.args = "[-a] [-q] [-o CORE] FILE|NAME[@TIME]",
	.summary = "write an ELF core file of an image, for gdb",
	.help = "  -o, --output CORE  write to CORE; '-' is standard output; without it,\n"
		"                     core.PID in the current directory, as gcore does\n"
		"  -a, --all          also what the program keeps out of core files\n"
		"                     (MADV_DONTDUMP)\n"
		"      --store DIR    the store, if not the usual one\n"
		"  -q, --quiet        no progress, no summary\n"
		"\n"
		"Open it with 'gdb PROGRAM CORE'. Zero pages are holes in the file. Pages of\n"
		"mapped files that were never written are left out, as in any core file: gdb\n"
		"reads them from the files.\n",
	.run = run_core,
};

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/msg.h"
#include "cli/refs.h"
#include "cli/show.h"
#include "common/io.h"
#include "common/util.h"

/* Whether all of the range was mapped, or belongs to an unlinked file: asked before
 * the first byte is written, since half an answer looks like a whole one. */
static int check_mapped(struct usnap_image *img, uint64_t addr, uint64_t len)
{
	unsigned char last;

	if (len && addr >= USNAP_UNLINKED_START && addr - 1 <= UINT64_MAX - len) {
		int r = usnap_image_read(img, addr + len - 1, &last, 1);

		return r < 0 ? show_image_failure(img, r) : EXIT_DONE;
	}
	while (len) {
		struct usnap_region g;
		uint64_t n;
		size_t nr;
		int r = usnap_image_find_region(img, addr, &nr);

		if (r < 0 && r != -ENOENT)
			return show_image_failure(img, r);
		if (r != 1) {
			msg_error("cannot read address 0x%" PRIx64 ": nothing was mapped there",
				  addr);
			return EXIT_FAILED;
		}
		r = usnap_image_get_region(img, nr, &g, sizeof(g));
		if (r < 0)
			return show_image_failure(img, r);
		n = MIN(len, g.end - addr);
		addr += n;
		len -= n;
	}
	return EXIT_DONE;
}

static void print_hex(uint64_t addr, const unsigned char *p, size_t len)
{
	for (size_t i = 0; i < len; i += 16)
		show_hex_line("", addr + i, p + i, MIN(len - i, (size_t)16));
}

static int copy_out(struct usnap_image *img, uint64_t addr, uint64_t len, bool hex)
{
	size_t room = MIB(1);
	cleanup_free unsigned char *buf = malloc(room);
	int r;

	if (!buf) {
		msg_error("cannot read '%s': out of memory", "image");
		return EXIT_FAILED;
	}
	while (len) {
		size_t n = (size_t)MIN(len, (uint64_t)room);

		if ((r = usnap_image_read(img, addr, buf, n)) < 0) {
			show_flush(stdout);
			return show_image_failure(img, r);
		}
		if (hex) {
			print_hex(addr, buf, n);
		} else if (fwrite(buf, 1, n, stdout) != n) {
			return EXIT_FAILED; /* main says why */
		}
		addr += n;
		len -= n;
	}
	return EXIT_DONE;
}

static int run_read(int argc, char **argv)
{
	static const struct option options[] = {
		{"hex", no_argument, NULL, 'x'}, {"store", required_argument, NULL, 's'}, {0}};
	struct usnap_image *img;
	struct refs refs = {0};
	struct usnap_err err = {0};
	const char *store = NULL;
	uint64_t addr, len;
	bool hex = false;
	int r;

	opterr = 0;
	for (int o; (o = getopt_long(argc, argv, ":x", options, NULL)) != -1;) {
		if (o == 's')
			store = optarg;
		else if (o == ':')
			return cli_usage_error(&cmd_read, "cannot read: '%s' takes a value",
					       argv[optind - 1]);
		else if (o != 'x')
			return cli_usage_error(&cmd_read, "cannot read: unknown option '%s'",
					       argv[optind - 1]);
		else
			hex = true;
	}
	if (argc - optind != 3)
		return cli_usage_error(&cmd_read, "cannot read: %s",
				       argc - optind < 3 ? "FILE, ADDRESS and LENGTH are needed"
							 : "too many arguments");
	if (!show_parse_number(argv[optind + 1], &addr))
		return cli_usage_error(&cmd_read, "cannot read address '%s': not a number",
				       argv[optind + 1]);
	if (!show_parse_number(argv[optind + 2], &len))
		return cli_usage_error(&cmd_read, "cannot read '%s' bytes: not a number",
				       argv[optind + 2]);
	if (len > UINT64_MAX - addr)
		return cli_usage_error(&cmd_read, "cannot read '%s' bytes: beyond all addresses",
				       argv[optind + 2]);
	if (refs_add(&refs, argv[optind], store, REFS_ONE, &err) < 0) {
		refs_close(&refs);
		return msg_failure(&err);
	}
	img = usnap_image_new();
	if (!img || (r = usnap_image_open(img, refs.path[0])) < 0)
		r = show_image_failure(img, img ? r : -ENOMEM);
	else if ((r = check_mapped(img, addr, len)) == EXIT_DONE)
		r = copy_out(img, addr, len, hex);
	usnap_image_free(img);
	refs_close(&refs);
	return r;
}

const struct cli_command cmd_read = {
	.name = "read",
	.args = "[-x] FILE|NAME[@TIME] ADDRESS LENGTH",
	.summary = "write memory of an image to standard output",
	.help = "  -x, --hex        print a hex dump, not the bytes themselves\n"
		"      --store DIR  the store, if not the usual one\n"
		"\n"
		"ADDRESS and LENGTH are decimal, or hexadecimal with 0x; LENGTH is in bytes.\n"
		"Memory that was as in a mapped file is not in an image.\n",
	.run = run_read,
};

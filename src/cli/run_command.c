/*
 * The command that the images of a name are of, as DIR/NAME/.command: each argument with its zero.
 * The process itself cannot tell: wrappers are gone, and servers write over their arguments.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cmd_run.h"
#include "common/io.h"
#include "common/util.h"

#define FILE_NAME ".command"
#define PART_NAME ".command.part" /* as whoever cleans up knows it */

enum {
	MAX_COMMAND = 4 << 20
};

/* The caller frees. */
static char *flat(char **command, size_t *ret_len)
{
	size_t len = 0;
	char *text;

	for (char **c = command; *c; c++)
		len += strlen(*c) + 1;
	if (!(text = malloc(len)))
		return NULL;
	*ret_len = len;
	len = 0;
	for (char **c = command; *c; c++) {
		memcpy(text + len, *c, strlen(*c) + 1);
		len += strlen(*c) + 1;
	}
	return text;
}

static int open_dir(const char *path)
{
	return open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

bool run_command_remember(const struct run_args *a, const char *dir_path)
{
	cleanup_fd int dir = open_dir(dir_path), fd = -1;
	cleanup_free char *text = NULL;
	size_t len;

	if (dir < 0 || !(text = flat(a->command, &len)) || len > MAX_COMMAND)
		return false;
	unlinkat(dir, PART_NAME, 0);
	fd = openat(dir, PART_NAME, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return false;
	if (io_write_full(fd, text, len) < 0 || renameat(dir, PART_NAME, dir, FILE_NAME) < 0) {
		unlinkat(dir, PART_NAME, 0);
		return false;
	}
	return true;
}

bool run_command_differs(const struct run_args *a, const char *dir_path)
{
	cleanup_fd int dir = open_dir(dir_path);
	cleanup_free char *then = NULL, *now = NULL;
	size_t len_then, len_now;

	if (dir < 0 || io_read_file_at(dir, FILE_NAME, MAX_COMMAND, &then, &len_then) < 0 ||
	    !(now = flat(a->command, &len_now)))
		return false;
	return len_then != len_now || memcmp(then, now, len_now) != 0;
}

/* Which run of which process an image shows, and whether it can continue another. */
#include <elf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <uffd-snap.h>

#include "capture/capture.h"
#include "common/io.h"
#include "common/util.h"
#include "image/hash.h"
#include "image/image.h"

static char *executable(const struct target *t)
{
	static const char deleted[] = " (deleted)";
	char *exe = NULL;
	size_t len;

	if (io_readlink_at(t->procfd, "exe", &exe) < 0)
		return NULL;
	/* A program that was replaced on disk runs on as what it was. */
	len = strlen(exe);
	if (len > sizeof(deleted) - 1 && !strcmp(exe + len - sizeof(deleted) + 1, deleted))
		exe[len - sizeof(deleted) + 1] = '\0';
	return exe;
}

/*
 * What execve(2) makes anew and nothing changes afterwards: where program, interpreter and stack
 * came to lie, and the 16 random bytes of AT_RANDOM, getauxval(3). The bytes alone would not do:
 * programs in Go clear them. A restored process has all of it as it was.
 */
int capture_run_id(const struct target *t, char ret[FORMAT_HASH_HEX + 1])
{
	static const uint64_t kept[] = {AT_PHDR, AT_BASE, AT_ENTRY, AT_RANDOM, AT_EXECFN};
	cleanup_free char *auxv = NULL, *exe = executable(t);
	uint64_t values[ARRAY_SIZE(kept)] = {0}, random_at = 0;
	unsigned char bytes[16];
	size_t len = 0;
	int r = io_read_file_at(t->procfd, "auxv", KIB(64), &auxv, &len);

	if (r < 0)
		return r;
	for (size_t at = 0; at + 16 <= len; at += 16) {
		uint64_t pair[2];

		memcpy(pair, auxv + at, sizeof(pair));
		for (size_t i = 0; i < ARRAY_SIZE(kept); i++)
			if (pair[0] == kept[i])
				values[i] = pair[1];
		if (pair[0] == AT_RANDOM)
			random_at = pair[1];
	}
	struct iovec local = {bytes, sizeof(bytes)};
	struct iovec remote = {(void *)(uintptr_t)random_at, sizeof(bytes)};
	if (!exe || !random_at ||
	    process_vm_readv(t->pid, &local, 1, &remote, 1, 0) != (ssize_t)sizeof(bytes))
		return -ENODATA;

	XXH3_state_t *state = XXH3_createState();
	if (!state)
		return -ENOMEM;
	XXH3_128bits_reset(state);
	XXH3_128bits_update(state, bytes, sizeof(bytes));
	XXH3_128bits_update(state, values, sizeof(values));
	XXH3_128bits_update(state, exe, strlen(exe));
	hash_format(ret, XXH3_128bits_digest(state));
	XXH3_freeState(state);
	return 0;
}

int capture_adopt_parent(struct image_writer *w, struct usnap_image *parent, const struct target *t,
			 char *ret_why, size_t why_size)
{
	char run[FORMAT_HASH_HEX + 1];
	struct usnap_err err = {0};
	struct usnap_info info;
	int r = usnap_image_get_info(parent, &info, sizeof(info));

	if (r == 0)
		r = img_load_index(parent);
	if (r < 0) {
		snprintf(ret_why, why_size, "%s", usnap_image_error(parent));
		return 0;
	}
	r = capture_run_id(t, run);
	if (r < 0 || strcmp(run, info.run) != 0) {
		snprintf(ret_why, why_size, "the parent shows %s",
			 r < 0 ? "what cannot be compared with this process"
			       : "another process, or this one before it was started anew");
		return 0;
	}
	/* What is missing today is not to be found missing when it is needed. */
	if (img_open_chain(parent, &err) < 0 || image_writer_set_parent(w, parent, &err) < 0) {
		snprintf(ret_why, why_size, "%s", err.text);
		return err.code == -ENOMEM ? -ENOMEM : 0;
	}
	return 1;
}

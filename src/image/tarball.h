/*
 * The tar archive that an image is, while it is written: libarchive over a
 * sink, and the list of members that commit.json will name.
 *
 * No locking; one thread at a time. Errors: negative errno with text in err.
 */
#ifndef USNAP_IMAGE_TARBALL_H
#define USNAP_IMAGE_TARBALL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <xxhash.h>

#include "common/err.h"
#include "image/format.h"
#include "image/sink.h"

struct archive;

struct tarball_member {
	char name[FORMAT_MAX_NAME + 1];
	uint64_t offset, size; /* of the content */
	XXH128_hash_t hash;
};

struct tarball {
	struct sink sink;
	int sink_error; /* what libarchive's callback met; stays */
	struct archive *archive;
	bool discard; /* what libarchive writes now goes nowhere */
	struct tarball_member *members;
	size_t nr_members, room_members;
	int64_t mtime; /* of every member; seconds since the epoch */
};

int tarball_open(struct tarball *t, int fd, uint64_t rate_bytes_s);

/* Begins an archive, or begins it again: in a file at its start, in a stream
 * by going on. Forgets the members. */
int tarball_begin(struct tarball *t, struct usnap_err *err);

/* A member in parts: header, as much content as it said, end. */
int tarball_header(struct tarball *t, const char *name, uint64_t size, struct usnap_err *err);
int tarball_data(struct tarball *t, const void *buf, size_t len, struct usnap_err *err);
int tarball_end_member(struct tarball *t, struct usnap_err *err);

/* A member at once, which is noted as well. */
int tarball_member(struct tarball *t, const char *name, const void *buf, size_t len,
		   struct usnap_err *err);

/* Remembers a member for commit.json, instead of an earlier one of its name. */
int tarball_note(struct tarball *t, const char *name, uint64_t offset, uint64_t size,
		 XXH128_hash_t hash, struct usnap_err *err);

/* Ends the archive. */
int tarball_finish(struct tarball *t, struct usnap_err *err);

/* Frees everything; an archive that was not finished gets no end. */
void tarball_close(struct tarball *t);

#endif

/*
 * A store: a directory of chains.
 *
 *	DIR/secret                       seeds the page hashes of all images in it
 *	DIR/NAME/<UTC time>-<id>.usnap   an image; immutable, mode 0600
 *	DIR/NAME/latest                  symbolic link to the one taken last
 *	DIR/NAME/.lock, .in-use          storelock.h
 *	DIR/NAME/.command                what "run" has started, and takes images of
 *	DIR/NAME/.*.part                 not complete; a leftover when nobody holds .lock
 *
 * What the directory holds is not believed: a file counts when its name has
 * the shape above and it is a regular file; everything else is left alone.
 * Names can be told by "latest", but nothing here depends on it.
 *
 * Called by one thread at a time; several processes may work on one store.
 * Returns 0 or negative errno with text in err.
 */
#ifndef USNAP_STORE_STORE_H
#define USNAP_STORE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

enum {
	STORE_NAME_MAX = 128,
	STORE_ID_LEN = 32,
	/* 20261122T101500.123Z-<id>.usnap */
	STORE_FILE_LEN = 20 + 1 + STORE_ID_LEN + 6
};

struct store;

/* UFFD_SNAP_STORE, or /var/lib/uffd-snap for root, or for others
 * $XDG_STATE_HOME/uffd-snap (~/.local/state/uffd-snap). The caller frees. */
int store_default_path(char **ret, struct usnap_err *err);

/* create: makes the directory, and what leads to it, with mode 0700.
 * -ENOENT without. -EPERM when anybody may write in it. */
int store_open(struct store **ret, const char *path, bool create, struct usnap_err *err);
void store_close(struct store *s);
const char *store_path(const struct store *s);
int store_fd(const struct store *s);

/* The seed of this store's page hashes, made at the first call; never 0. */
int store_secret(struct store *s, uint64_t *ret, struct usnap_err *err);

/* ---- names ---- */

/* Letters, digits and ".-_+:" and what is not ASCII; no dot or dash first; up to
 * STORE_NAME_MAX bytes. */
bool store_name_valid(const char *name);

/* The same, as an error that says what is allowed. */
int store_name_check(const char *name, struct usnap_err *err);

/* A valid name made of any text, as what a process calls itself. */
void store_name_from(const char *text, char ret[STORE_NAME_MAX + 1]);

/* The names in the store, sorted. */
struct store_names {
	char **name;
	size_t nr;
};

int store_list_names(struct store *s, struct store_names *ret, struct usnap_err *err);
void store_names_free(struct store_names *n);

/* Opens the directory of a name. -ENOENT without create when there is none. */
int store_open_name(struct store *s, const char *name, bool create, struct usnap_err *err);

/* ---- images ---- */

struct store_image {
	char file[STORE_FILE_LEN + 1]; /* in the directory of its name */
	char id[STORE_ID_LEN + 1];
	uint64_t t0_ms; /* T0, milliseconds since the epoch */
	uint64_t bytes;
};

/* Oldest first. */
struct store_images {
	struct store_image *image;
	size_t nr;
	uint64_t latest_ms; /* T0 of the one that "latest" points at; 0: it points at none */
};

int store_scan(struct store *s, const char *name, struct store_images *ret, struct usnap_err *err);
void store_images_free(struct store_images *images);

/* The time that it is at least: the clock may be behind, as after a start of the machine, but what was taken
 * last ("latest") has been. */
uint64_t store_time_ms(const struct store_images *images, uint64_t now_ms);

/* The newest; of those from the future only if there are no others: a clock that was wrong once is not
 * to decide for ever. without: one for each, which not to look at, or NULL. NULL when there is none. */
const struct store_image *store_newest(const struct store_images *images, const bool *without,
				       uint64_t now_ms);

/* The name of the file of an image; -ERANGE for a time that no image has. */
int store_file_name(uint64_t t0_ms, const char *id, char ret[STORE_FILE_LEN + 1]);
bool store_file_parse(const char *file, struct store_image *ret);

/*
 * What comes after NAME@: a time (storetime.h), the first 6 or more digits of
 * an id, or "latest". NULL is latest, as store_newest() has it. A time means the last image taken at it
 * or before. now_s: the time of asking. Returns -ENOENT or -EEXIST
 * (ambiguous id) with text that names name and when.
 */
int store_find(const struct store_images *images, const char *name, const char *when, int64_t now_s,
	       const struct store_image **ret, struct usnap_err *err);

/* Points DIR/NAME/latest at file, or removes it (NULL). A file system without symbolic links has
 * none, which is no failure. */
int store_set_latest(int name_fd, const char *file);

/* Removes what killed runs left. .lock of the name is held for writing. Returns how many. */
size_t store_clean(int name_fd);

#endif

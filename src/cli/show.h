/*
 * Results on stdout, for people: what comes out of an image was written by
 * somebody else and must not steer the terminal.
 */
#ifndef USNAP_CLI_SHOW_H
#define USNAP_CLI_SHOW_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <uffd-snap.h>

#include "cli/cli.h"

/* Prints text with control characters as \xNN. NULL prints nothing. */
void show_text(const char *text);

/* "1.5 GiB" into buf; returns buf. */
const char *show_size(char buf[24], uint64_t bytes);

/* One JSON object and a newline; consumes the reference. Returns an exit code. */
int show_json(json_t *j);

/* Unsigned decimal, or hex with 0x. False for anything else. */
bool show_parse_number(const char *text, uint64_t *ret);

/* The message for a failed call on img; returns the exit code. */
int show_image_failure(const struct usnap_image *img, int code);

#endif

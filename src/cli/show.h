/*
 * Results on stdout, for people: what comes out of an image was written by
 * somebody else and must not steer the terminal.
 */
#ifndef USNAP_CLI_SHOW_H
#define USNAP_CLI_SHOW_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <uffd-snap.h>

#include "cli/cli.h"
#include "common/err.h"

/* Prints text with control characters as \xNN. NULL prints nothing. */
void show_text(const char *text);

/* "1.5 GiB" into buf; returns buf. */
const char *show_size(char buf[24], uint64_t bytes);

/* A line as hexdump -C prints it, with the address in the process on the left; at most 16 bytes. */
void show_hex_line(const char *prefix, uint64_t addr, const unsigned char *p, size_t len);

/* One JSON object and a newline; consumes the reference. Returns an exit code. */
int show_json(json_t *j);

/* A string of JSON, which is UTF-8: in names and paths there may be any bytes, and those that are not are
 * replaced with U+FFFD. null for NULL; NULL: no memory. */
json_t *show_json_text(const char *text);

/* Unsigned decimal, or hex with 0x. False for anything else. */
bool show_parse_number(const char *text, uint64_t *ret);

/* Refuses an output that would replace img or what it refers to. */
int show_check_output(struct usnap_image *img, const char *output, struct usnap_err *err);

/* What was printed is out, or -errno: of standard output the first failure, also when another call met
 * it. */
int show_flush(FILE *out);

/* The message for a failed call on img; returns the exit code. */
int show_image_failure(const struct usnap_image *img, int code);

#endif

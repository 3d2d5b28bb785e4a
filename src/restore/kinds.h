/*
 * The kinds of what can stand in the way of a restore and be ignored, by the
 * names under which messages, process.json and --ignore know them.
 * uffd-snap(1) lists them.
 */
#ifndef USNAP_RESTORE_KINDS_H
#define USNAP_RESTORE_KINDS_H

#include <stdbool.h>

extern const char *const kinds[]; /* sorted; ends with NULL */

bool kind_is_known(const char *name);

/* Whatever an image says of it: a restore judges it by the machine that it is on. */
bool kind_is_judged_anew(const char *name);

#endif

/*
 * The kinds of what can stand in the way of a restore, by the names under
 * which messages, process.json and --ignore know them. uffd-snap(1) lists
 * them with what it means to ignore each.
 */
#ifndef USNAP_RESTORE_KINDS_H
#define USNAP_RESTORE_KINDS_H

struct kind {
	const char *name;
	const char *ignored; /* what the process finds then */
};

extern const struct kind kinds[]; /* by name; ends with a NULL name */

/* NULL when there is none. */
const struct kind *kind_find(const char *name);

#endif

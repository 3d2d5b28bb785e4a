/*
 * What a core file needs of process.json (uffd-snap-image(5)), checked: the
 * image may be hostile.
 */
#ifndef USNAP_EXPORT_COREPROCESS_H
#define USNAP_EXPORT_COREPROCESS_H

#include <jansson.h>

#include "common/err.h"
#include "export/corenotes.h"

struct core_process_facts {
	struct core_process process; /* comm and args point into this struct */
	char comm[64];
	char args[128];
	const char *auxv; /* hexadecimal, borrowed from the JSON; NULL: not there */
};

/* root: process.json; name: of the image, for messages. -EBADMSG when a
 * member is not what it should be; what is missing is 0 or empty, but the pid. */
int core_process_parse(struct core_process_facts *ret, const json_t *root, const char *name,
		       struct usnap_err *err);

#endif

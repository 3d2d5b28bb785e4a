/*
 * The builder: the clone of the restorer that becomes the process.
 */
#ifndef USNAP_RESTORE_BUILDER_H
#define USNAP_RESTORE_BUILDER_H

#include "restore/restore_internal.h"

/* Makes the builder under the process's PID, lets it do its share and waits until it sits in the
 * stub. On failure it is gone again. */
int builder_start(struct restore *r, struct usnap_err *err);

/* Ends the builder and whatever threads it has got, and reaps it. */
void builder_kill(struct restore *r);

#endif

/*
 * Where the process comes back: under its numbers here, or in a PID
 * namespace of its own, with its clocks.
 *
 * place_plan() decides. place_enter() makes the namespaces and clones the
 * restorer into them as their PID 1: from there on there are two processes,
 * each with a struct restore of its own. The inner one builds; what comes of
 * it, it tells the outer one with place_leave(), and then it is the init of
 * the namespace: it reaps, reports what becomes of the process, and ends when
 * the process ends. The outer one waits in place_result(). The namespaces end
 * with the inner process, whatever happens, and with them all that is in them.
 *
 * In the foreground the inner process dies with the outer one.
 */
#ifndef USNAP_RESTORE_PLACE_H
#define USNAP_RESTORE_PLACE_H

#include "restore/restore_internal.h"

struct place;

/* Decides; adds problems. Looks at threads[] of process.json for the numbers that are needed. */
int place_plan(struct restore *r, struct usnap_err *err);
void place_free(struct place *p);
void place_describe(const struct restore *r, json_t *o);

/* Was the image taken here, since this machine was started? */
bool place_same_boot(const struct restore *r);

/* Is it a user namespace of its own, in which only the own user and group are known? */
bool place_has_own_users(const struct restore *r);

/* Returns 0 in the process that is to build (which may be this one), 1 in the outer one. */
int place_enter(struct restore *r, struct usnap_err *err);

/* Is this the inner process? What it has built ends with the outer one until place_leave(). */
bool place_is_inner(const struct restore *r);

/* After a build with result code: in the inner process, does not return; elsewhere returns code. */
int place_leave(struct restore *r, int code, const struct usnap_err *err);

/* In the outer process: what the inner one has to say. The PID is as seen here. */
int place_result(struct restore *r, pid_t *ret_pid, struct usnap_err *err);

/* The outer process's hold on the inner one: for restore_watch_begin(). */
void place_hand_over(struct restore *r, struct restore_watch *ret);

#endif

/*
 * The run directory: small files about processes that run now. The agent
 * writes them from within a process that may lack everything but system calls,
 * the command reads them.
 *
 *	DIR/ready-PID-START   a process that is ready for snapshots, written when the
 *	                      agent is loaded, or by a restore
 *	DIR/taken-PID-START   a process that was taken, or, while it is locked, is
 *	                      being taken; written by the command
 *	DIR/served-PID-START  while it is locked, "run --pid" takes its snapshots
 *
 * PID is as /proc shows it. START, field 22 of /proc/PID/stat, makes the name one that no
 * other process has again before the machine is restarted: what a process that is gone has
 * left can be removed at any time, by anybody who may.
 *
 * DIR is the first of these that can be used: /run/uffd-snap for root,
 * $XDG_RUNTIME_DIR/uffd-snap, /tmp/uffd-snap-UID. It belongs to the user and
 * nobody else can write in it, or it is not used.
 *
 * A file is lines "key=value", at most RUNDIR_FILE_MAX bytes.
 */
#ifndef USNAP_COMMON_RUNDIR_H
#define USNAP_COMMON_RUNDIR_H

#define RUNDIR_ROOT "/run/uffd-snap"
#define RUNDIR_IN_XDG "/uffd-snap"
#define RUNDIR_TMP "/tmp/uffd-snap-" /* UID */
#define RUNDIR_READY "ready-"
#define RUNDIR_TAKEN "taken-"
#define RUNDIR_SERVED "served-"
#define RUNDIR_RUN "run-" /* HASH-NAME: of a store, and in it */

/* Of ready-: */
#define RUNDIR_KEY_NAME "name=" /* may be empty */
#define RUNDIR_KEY_BEACON "beacon=" /* hexadecimal, no 0x */
/* PID-START of a process that this one takes over from, and of the one that that had taken over from:
 * it counts when all are gone. */
#define RUNDIR_KEY_FOLLOWS "follows="
/* Of taken-: */
#define RUNDIR_KEY_BY "by=" /* PID */
#define RUNDIR_KEY_T0 "t0_ms="
#define RUNDIR_KEY_FILE "file=" /* of the last image; last line, whatever is in it */

enum {
	RUNDIR_FILE_MAX = 8192,
	RUNDIR_NAME_MAX = 63, /* bytes of a name */
	RUNDIR_FOLLOWS_MAX = 2
};

#endif

/*
 * "uffd-snap run": starts a program, or brings it back, stands in for it, and
 * has snapshots of it taken. The parts:
 *
 *	run_args.c     what was asked
 *	run_program.c  the program: started, or restored
 *	run_image.c    what an image says about bringing it back
 *	run_command.c  whether the images are of the command that is given
 *	run_service.c  snapshots and what they leave, as children of ours
 *	cmd_run.c      all of it together, and "run --pid"
 *
 * One thread. Signals are blocked from the beginning and read from a descriptor.
 */
#ifndef USNAP_CLI_CMD_RUN_H
#define USNAP_CLI_CMD_RUN_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include <jansson.h>

#include "cli/obstacle.h"
#include "common/err.h"
#include "store/store.h"

#define RUN_FULL_EVERY "24" /* images, unless said otherwise, where others are removed */

enum {
	RUN_MAX_PASSED = 64,
	RUN_SIGNAL_LOOK_MS = 250 /* how often it is looked whether a signal has asked */
};

/* Arguments for another command, each with its value: "--keep-last=5". */
struct run_passed {
	char *arg[RUN_MAX_PASSED];
	size_t nr;
};

struct run_args {
	char name[STORE_NAME_MAX + 1]; /* "": of the process */
	char *store; /* absolute; NULL: the usual one */
	uint64_t every_s; /* 0: not by the clock */
	bool on_signal; /* UFFD_SNAP_SIGNAL */
	bool restore_or_start, restart, no_agent, background, quiet;
	struct run_passed snapshot, prune, restore;
	pid_t pid; /* --pid, or 0 */
	uint64_t start_ticks; /* of it; 0: whatever it is now */
	char **command; /* NULL with --pid */
};

/* Returns -1, or the exit status to end with: usage errors are printed. */
int run_args_parse(int argc, char **argv, struct run_args *ret);
void run_args_free(struct run_args *a);
extern const char run_args_help[];

/* ---- run_program.c ---- */

struct run_program {
	pid_t child; /* of ours: the program, or the restore that stands in for it */
	pid_t pid; /* the program */
	uint64_t start_ticks; /* of the program */
	bool distrusts; /* the newest images are damaged */
	char image[STORE_ID_LEN + 1]; /* that it was brought back from, or "" */
	uint64_t image_t0_ms; /* of that one, which has another id when it was merged meanwhile */
	uint64_t avoid_ms; /* to bring back an older image than of this time; or 0 */
};

/* As a shell tells of a command that it cannot run. */
enum {
	EXIT_CANNOT_RUN = 126,
	EXIT_NOT_FOUND = 127
};

/* 0, or the exit status to end with: what went wrong is printed. */
int run_program_start(const struct run_args *a, struct run_program *ret);
/* The newest good image. 0: *ret_found says whether there was one. Or the exit status; *ret_signal:
 * not 0: interrupted by it. */
int run_program_restore(const struct run_args *a, struct run_program *ret, bool *ret_found,
			int *ret_signal);
/* The signals that are read from a descriptor. */
void run_signals(sigset_t *ret);

/* ---- run_image.c ---- */

enum {
	RUN_AGE_MAX = 32
};

/* The caller has the reference; NULL: it cannot be read. */
json_t *run_image_member(const char *path, const char *member);
/* The first that is not ignored. False also of an image that cannot be read: a restore says why. */
bool run_image_obstacle(const struct run_args *a, const char *path, struct obstacle *ret);
/* "1d3h", "2m5s", "0.8 s" */
void run_image_age(uint64_t ms, char ret[RUN_AGE_MAX]);

/* ---- run_command.c ---- */

/* dir: that of the name in the store. False: it cannot be written. */
bool run_command_remember(const struct run_args *a, const char *dir);
/* False also when it is not known. */
bool run_command_differs(const struct run_args *a, const char *dir);

/* ---- run_service.c ---- */

struct run_service {
	const struct run_args *args;
	struct run_program program;
	char name[STORE_NAME_MAX + 1];
	uint64_t next_ns; /* CLOCK_MONOTONIC */
	bool wanted; /* one more, now */
	bool ends; /* that is the last one */
	pid_t at_work; /* child that takes or prunes, or 0 */
	bool prunes;
	bool wants_full; /* the next image is not to refer to others */
	uint64_t taken_ms; /* T0 of the last image before the one at work; 0: not known */
	bool remembered; /* the command, beside its images */
	char obstacle[64]; /* the kind that was told of */
	uint64_t rests_ns; /* CLOCK_MONOTONIC; until then none is taken of what was told to end */
	uint64_t beacon, asked, looked_ns; /* the agent's count */
	/* With --background: the standard error of the process as it was once. */
	bool messages;
	dev_t messages_dev;
	ino_t messages_ino;
};

void run_service_begin(struct run_service *s, const struct run_args *a,
		       const struct run_program *p);
/* As restore_front.tick; arg: struct run_service. */
int run_service_tick(void *arg);
/* One more, to begin after what is being taken by now. */
void run_service_last(struct run_service *s);
/* It is through, or was given up. */
bool run_service_is_idle(const struct run_service *s);
/* The process is told to end: none is begun while it does. */
void run_service_rest(struct run_service *s);
/* Waits for what is being done; not for ever, and not after a signal that asks for an end. True: one
 * has. */
bool run_service_end(struct run_service *s);
/* "--pid" lets go of what it has from the process that started it. */
void run_service_detach(struct run_service *s);

/* ---- children ---- */

/* This program with other arguments, NULL at the end. error_fd: its standard error, or -1 for ours.
 * keep_fd: inherited, or -1; then standard input and output are as well. Returns the PID or negative
 * errno. */
pid_t run_self(const char *const argv[], int error_fd, int keep_fd);
/* Waits for the end. Returns its status, or -1. */
int run_reap(pid_t pid);

#endif

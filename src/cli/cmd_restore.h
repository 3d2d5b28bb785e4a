/*
 * The foreground of a restore: the command stands in for the process towards
 * whoever started it. Signals go to the process, its stops and its end are
 * the command's own, and the terminal is lent to it.
 */
#ifndef USNAP_CLI_CMD_RESTORE_H
#define USNAP_CLI_CMD_RESTORE_H

#include <signal.h>
#include <stdbool.h>
#include <sys/types.h>
#include <termios.h>

#include "cli/progress.h"
#include "restore/restore.h"

struct restore_front {
	struct progress progress;
	bool progress_started, quiet, detach, stopped;
	int tty; /* the controlling terminal, when it was ours; or -1 */
	bool has_modes; /* of the terminal, as we found it */
	bool told_to_end; /* a signal was passed on that asks for it */
	bool keeps_files; /* the standard ones: the process may be started again with them */
	bool alone; /* on the terminal: no part of a pipeline */
	struct termios modes;
	pid_t lent_to; /* process group that has it, 0: none */
	/* Something to do meanwhile, each time anything happens and after the milliseconds that it
	 * returned last (-1: for ever). May be NULL; with it standard error is kept. */
	int (*tick)(void *arg);
	void *tick_arg;
	/* Before a signal is passed on. True: it is not, whoever kept it does so later. May be NULL. */
	bool (*keep)(void *tick_arg, int sig);
};

void front_begin(struct restore_front *f);

/* The process, if it is a process group of its own in our session, gets the terminal. */
void front_lend_terminal(struct restore_front *f, pid_t pid);
void front_take_terminal(struct restore_front *f);
/* As we found it: a restore that failed may have set the modes that the process had, and a process
 * that was killed leaves them. */
void front_reset_terminal(struct restore_front *f);

/* Until the process ends. early: a signal that came before. True: *ret_status is as of waitpid(2). */
bool front_wait(struct restore_front *f, struct restore_watch *w, pid_t pid,
		const volatile sig_atomic_t *early, int *ret_status);

/* The exit status that says this, or dies of the signal that the process died of. */
int front_end_as(int status);

/* Both. */
int front_stand_in(struct restore_front *f, struct restore_watch *w, pid_t pid,
		   const volatile sig_atomic_t *early);

#endif

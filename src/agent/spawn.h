/*
 * Runs uffd-snap so that the program does not notice: no copy of its memory is
 * made, it gets none of the program's descriptors, signal handlers and blocked
 * signals, and it is not the program's child. A child that runs another
 * program ends with SIGCHLD and is found by any wait, whatever its exit signal
 * was (execve(2)): so there is one in between, which the kernel keeps apart for
 * its exit signal of 0 and which ends at once. The command is an orphan then,
 * and its end is not reported.
 */
#ifndef USNAP_AGENT_SPAWN_H
#define USNAP_AGENT_SPAWN_H

#include <sys/types.h>

/* argv[0] is replaced by the path of the command; fd becomes its standard input, output and error. One
 * call at a time. Returns its PID, or a negative errno: -ENOENT when there is no such command. */
pid_t agent_run_command(const char **argv, int fd);

#endif

/*
 * An image turned into the running process that it shows.
 *
 * restore_plan() reads the image and says what would be done and what cannot
 * be, without making anything; restore_build() makes the process and lets it
 * run. Whatever fails before the process runs leaves nothing behind: no
 * process, no mount, no file.
 *
 * All functions belong to one thread, the only one of the calling process
 * when restore_build() is called: it clones.
 *
 * 0 or a negative errno with text in err.
 */
#ifndef USNAP_RESTORE_RESTORE_H
#define USNAP_RESTORE_RESTORE_H

#include <jansson.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"

enum restore_pids {
	RESTORE_PIDS_AUTO, /* its own numbers when they are free, else as the next */
	RESTORE_PIDS_NAMESPACE, /* its own numbers in a PID namespace of its own */
	RESTORE_PIDS_SAME, /* its own numbers here, or not at all */
};

/* Descriptor fd is path, opened anew, or what the restorer has at fd. */
struct restore_fd {
	int fd;
	const char *path; /* NULL: the restorer's own */
};

struct restore_options {
	const char *image; /* path, or what messages call it with from_input */
	bool from_input; /* standard input is the image */
	enum restore_pids pids;
	bool detach; /* no terminal, no exit status: the process is nobody's child */
	bool stopped; /* as after SIGSTOP */
	bool allow_changed_files;
	bool own_output; /* files written at 0 to 2: the restorer's own if the same there, or if lost */
	const struct restore_fd *fds;
	size_t nr_fds;
	const char *const *ignore; /* kinds of problems that are to be no obstacle */
	size_t nr_ignore;
	unsigned nr_threads; /* that decompress; 0: one per CPU */
	void *ctx;
	/* Bytes of memory filled so far; from one thread, some ten times a second. May be NULL. */
	void (*progress)(void *ctx, uint64_t done, uint64_t total);
	/* The process stands complete and will run next. Where it gets a PID namespace, this and
	 * progress are called in another process than the caller. May be NULL. */
	void (*complete)(void *ctx, pid_t pid);
	/* Not 0: give up, as soon as may be, with -ECANCELED. May be NULL. */
	const volatile sig_atomic_t *cancel;
};

enum restore_severity {
	RESTORE_NOTE, /* comes back changed, as said */
	RESTORE_REFUSE, /* an obstacle unless its kind is ignored */
	RESTORE_FATAL, /* an obstacle that cannot be ignored */
};

struct restore_problem {
	char *kind, *detail; /* kind: as in limits_of_restore[] of process.json */
	char *hint; /* what to do about it, or NULL */
	enum restore_severity severity;
	bool ignored;
};

struct restore;

/* options must live as long as the restore. */
int restore_plan(struct restore **ret, const struct restore_options *options,
		 struct usnap_err *err);
void restore_free(struct restore *r);

const struct restore_problem *restore_problems(const struct restore *r, size_t *ret_n);

/* What would be made, for people (--dry-run) and for scripts. */
json_t *restore_describe(const struct restore *r);

/* Makes the process and lets it go. ret_pid: as the caller sees it. */
int restore_build(struct restore *r, pid_t *ret_pid, struct usnap_err *err);

/* What becomes of the process; outlives the restore. */
struct restore_watch {
	pid_t child; /* the process, or the init of its PID namespace */
	int pidfd; /* of the process */
	int events; /* readable when there is something to tell; -1: SIGCHLD says so */
};

/* After restore_build(). */
void restore_watch_begin(struct restore *r, struct restore_watch *ret);
/* Does not wait. 1 and a status as of waitpid(2) with WUNTRACED and WCONTINUED, or 0. When the
 * status says that the process has ended, it was the last. */
int restore_watch_next(const struct restore_watch *w, int *ret_status);
int restore_watch_signal(const struct restore_watch *w, int sig);
/* The process runs on. */
void restore_watch_end(struct restore_watch *w);

#endif

/*
 * What the files of pstate share. Nothing outside src/process/pstate*.c
 * includes this.
 *
 * Texts of /proc are kept as they are read, in an arena for each thread that
 * reads, and named by offset: an arena may move while it grows. Each collect
 * starts them anew.
 */
#ifndef USNAP_PROCESS_PSTATE_INTERNAL_H
#define USNAP_PROCESS_PSTATE_INTERNAL_H

#include <jansson.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/user.h>

#include "process/pstate.h"
#include "process/sockopts.h"
#include "process/waits.h"

struct arena {
	char *p;
	size_t len, room;
};

/* A text in an arena, NUL-terminated. len 0: not read. */
struct span {
	const struct arena *arena;
	size_t at, len;
};

/* ---- threads ----------------------------------------------------------- */

/* struct sched_attr as of Linux 5.3 (include/uapi/linux/sched/types.h);
 * glibc before 2.41 has none. */
struct sched_raw {
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime, deadline, period;
	uint32_t util_min, util_max;
};

/* struct ptrace_rseq_configuration (Linux 5.13). */
struct rseq_raw {
	uint64_t addr;
	uint32_t size, sig, flags, pad;
};

/* What rt_sigaction(2) writes. */
struct action_raw {
	uint64_t handler, flags, restorer, mask;
};

struct siginfo_list {
	siginfo_t *v;
	size_t n;
};

/* What is asked of a thread before the freeze: descriptors stay open so that
 * one pread() each does in it. */
struct thread_prep {
	pid_t tid;
	int status_fd;
	uint64_t timerslack_ns;
	bool has_timerslack;
	struct wait_note wait;
	bool wait_known; /* it is of a time when the thread had not been stopped by us */
	int blocks_fd;
	unsigned apart; /* what it does not share with the process (pstate_apart.c) */
};

/* What /proc/PID/ns/NAME says. */
typedef char ns_link[48];
enum {
	NR_THREAD_NAMESPACES = 7
};

/* A wait that the stop has interrupted, as far as memory tells. */
struct wait_raw {
	long nr; /* of the call, restart_syscall when not known; 0: there is no such wait */
	bool looked, unbroken; /* since prepare */
	bool has_total, has_rest;
	int64_t total[2], rest[2]; /* struct timespec */
};

/* A program of struct sock_filter. */
struct filter_text {
	unsigned char *p;
	size_t bytes;
};

struct thread_state {
	pid_t tid;
	struct user_regs_struct regs;
	int group_stop;
	unsigned char *xstate; /* as PTRACE_GETREGSET gave it */
	size_t xstate_len;
	uint64_t sigmask;
	struct wait_raw wait;
	struct siginfo_list pending;
	bool has_rseq, has_robust, has_sched, has_affinity, has_ioprio;
	struct rseq_raw rseq;
	uint64_t robust_head, robust_len;
	struct sched_raw sched;
	cpu_set_t affinity;
	int ioprio;
	bool has_altstack, has_tid_address, has_pdeathsig; /* from the batch */
	uint64_t altstack_sp, altstack_size;
	uint32_t altstack_flags;
	uint64_t tid_address;
	int pdeathsig;
	struct span status;
	struct filter_text *filters; /* seccomp */
	size_t nr_filters;
	uint64_t filters_told; /* how many the kernel says there are */
	size_t filters_like; /* number of the thread that was asked for them */
	unsigned char *notes;
	size_t notes_len;
};

/* ---- the process ------------------------------------------------------- */

struct itimer_raw {
	int64_t interval_s, interval_us, value_s, value_us;
};

struct posix_timer {
	int id, signo, notify, clock;
	int target; /* thread or process that is told; as /proc/PID/timers says */
	uint64_t sigval;
	bool has_time;
	int64_t interval_s, interval_ns, value_s, value_ns;
};

struct signal_state {
	uint64_t caught, ignored; /* bit n - 1: signal n */
	struct {
		bool known;
		struct action_raw raw;
	} actions[64];
	struct siginfo_list pending; /* shared by all threads */
	struct {
		bool known;
		struct itimer_raw raw;
	} itimers[3];
	struct posix_timer *timers;
	size_t nr_timers;
	bool has_subreaper;
	int subreaper;
};

/* ---- descriptors ------------------------------------------------------- */

enum fd_kind {
	FD_REGULAR,
	FD_DIRECTORY,
	FD_PIPE,
	FD_FIFO,
	FD_CHAR,
	FD_BLOCK,
	FD_SOCKET,
	FD_MEMFD,
	FD_MQUEUE,
	FD_SYMLINK, /* O_PATH | O_NOFOLLOW */
	FD_EVENTFD,
	FD_EPOLL,
	FD_TIMERFD,
	FD_SIGNALFD,
	FD_INOTIFY,
	FD_FANOTIFY,
	FD_PIDFD,
	FD_UFFD,
	FD_IO_URING,
	FD_BPF,
	FD_PERF,
	FD_KVM,
	FD_NAMESPACE,
	FD_OTHER,
};

/* What waits in a socket: in sock_state.data, one after the other. */
struct sock_message {
	size_t len;
	bool has_cred;
	struct ucred cred;
	struct sockaddr_un from;
	socklen_t from_len;
};

/* A socket that was asked, in the freeze. */
struct sock_state {
	int domain, type, protocol, listening;
	bool connecting, was_connected; /* TCP without a peer */
	bool shut_read, shut_both;
	bool has_local, has_peer;
	struct sockaddr_storage local, peer;
	socklen_t local_len, peer_len;
	uint64_t has_option; /* bits by index into sockopts[] */
	int options[SOCKOPTS_MAX];
	struct {
		int onoff, linger;
	} linger;
	int64_t rcvtimeo[2], sndtimeo[2]; /* seconds, microseconds */
	char device[16], congestion[16];
	int backlog; /* -1: not known */
	int waiting; /* to be accepted */
	int queued; /* bytes to be read, -1: not known */
	bool has_rights; /* descriptors travel in the queue */
	bool has_filter; /* of packets */
	bool whole; /* data is all that waits */
	unsigned char *data;
	size_t data_len;
	struct sock_message *messages; /* of those that keep borders; else NULL */
	size_t nr_messages;
	uint32_t groups[32]; /* netlink */
	socklen_t groups_len; /* bytes */
};

/* A socket as the kernel's list of sockets has it, before the freeze. */
struct sock_diag {
	uint64_t inode, peer_inode; /* peer: AF_UNIX */
	int family, type, protocol, state;
	uint32_t rqueue, wqueue;
	uint16_t sport, dport; /* host order */
	uint8_t src[16], dst[16];
	uint8_t shutdown; /* AF_UNIX: RCV_SHUTDOWN, SEND_SHUTDOWN of net/sock.h */
	bool file_known, file_there; /* whether its name still is its own */
	mode_t file_mode;
	uid_t file_uid;
	gid_t file_gid;
};

/* /proc/sys/fs/pipe-max-size is 1 MiB unless root has raised it. */
#define PIPE_DATA_MAX MIB(1)

/* An entry of an epoll set whose number does not name the file any more, or names another. */
struct epoll_stray {
	int tfd; /* as it was added */
	uint64_t ino, data;
	int fd; /* a descriptor of the file, or -1 */
};

struct fd_state {
	int fd;
	enum fd_kind kind;
	char *link;
	bool has_stat, fresh; /* fresh: not known before the freeze */
	bool ends_so; /* " (deleted)" is the end of its name */
	struct stat st;
	int info_fd; /* fdinfo held open, or -1 */
	struct span info; /* fdinfo at T0; len 0: closed by then */
	uint64_t ino, mnt_id, flags; /* of info */
	unsigned rank; /* order by kcmp(2) when last looked */
	uint64_t hash; /* of info but for close-on-exec */
	unsigned description;
	bool first; /* of its description */
	const struct sock_diag *diag;
	bool pair_inside; /* a unix socket whose peer the target holds too */
	struct sock_state *sock;
	int pipe_size, pipe_queued; /* -1: not asked */
	bool pipe_closed; /* nobody has its other end */
	int pipe_copy; /* our pipe that tee(2) filled, or -1 */
	unsigned char *data; /* of a pipe, read from pipe_copy */
	size_t data_len;
	bool has_seals, has_termios, has_winsize, has_pty, has_owner;
	int seals, pty_number, pty_locked, owner_type, owner_pid, owner_sig;
	unsigned char termios[36]; /* struct termios of the kernel */
	uint16_t winsize[4];
	int tty_packet, tty_exclusive, tty_discipline, tty_queued; /* -1: not asked */
	uint32_t *packets; /* lengths of what was read of a pipe, call by call */
	size_t nr_packets;
	struct epoll_stray *strays; /* of an epoll set, before the freeze */
	size_t nr_strays;
};

struct fd_table {
	struct fd_state *v;
	size_t n, room;
	bool has_kcmp;
};

/* ---- all of it --------------------------------------------------------- */

struct pstate {
	const struct target *t;
	struct remote_gadgets gadgets;
	const struct maps *maps; /* of the last collect */
	const struct unlinked_files *unlinked; /* or NULL */

	/* prepared */
	int task_fd, fd_dir, fdinfo_dir, stat_fd, timers_fd;
	struct thread_prep *preps; /* ascending by tid */
	size_t nr_preps;
	char *exe, *root, *cgroup, *personality, *oom_score_adj, *coredump_filter, *cmdline, *auxv;
	char *loginuid;
	size_t cmdline_len, auxv_len;
	char *children; /* PIDs, blank-separated */
	json_t *namespaces, *clock_offsets;
	struct process_facts facts;
	uid_t proc_uid;
	pid_t like; /* the thread that others are compared with, or 0 */
	ns_link like_ns[NR_THREAD_NAMESPACES];
	struct fd_table prepared;
	struct sock_diag *diag;
	size_t nr_diag;

	/* collected */
	struct arena arena, crew_arena;
	struct crew *crew;
	struct thread_state *threads;
	size_t nr_threads, thread_room;
	struct remote_meanwhile meanwhile;
	struct thread_calls *calls; /* THREADS_AT_ONCE of them (pstate_threads.c) */
	struct span stat, timers;
	uint64_t stopped_ns; /* CLOCK_MONOTONIC; all threads had stopped */
	char cwd[4096 + 16];
	bool cwd_ends_so; /* as fd_state */
	struct rlimit limits[RLIM_NLIMITS];
	bool has_limit[RLIM_NLIMITS];
	struct signal_state signals;
	bool signals_known;
	struct fd_table files;
	bool collected;
};

/* pstate_text.c: texts of /proc, and values as process.json writes them. */
int arena_reserve(struct arena *a, size_t bytes);
int arena_pread(struct arena *a, int fd, struct span *ret);
int arena_read_at(struct arena *a, int dirfd, const char *name, struct span *ret);
const char *span_text(struct span s);
/* The rest of the line that starts with "key:", behind blanks; NULL: none. */
const char *text_line(const char *text, const char *key);
/* The nth number (from 0) of such a line. */
bool text_number(const char *text, const char *key, unsigned nth, int base, uint64_t *ret);
json_t *json_address(uint64_t v);
json_t *json_hex(const void *p, size_t len);
/* Sets key to a string of any bytes: where they are no UTF-8, lossily, and
 * KEY_hex to the bytes. NULL: null. */
void json_set_text(json_t *o, const char *key, const char *s);
void json_set_textn(json_t *o, const char *key, const char *s, size_t len);

/* pstate_threads.c, pstate_threadjson.c */
int threads_prepare(struct pstate *ps);
int threads_collect(struct pstate *ps, struct tracees *ts, struct usnap_err *err);
int thread_collect_status(struct pstate *ps, struct arena *a, size_t i);
/* What was prepared of a thread, or NULL. */
const struct thread_prep *threads_find_prep(const struct pstate *ps, pid_t tid);
json_t *threads_json(const struct pstate *ps);
json_t *creds_json(const char *status);
int threads_reserve(struct pstate *ps, size_t n);
void threads_forget(struct pstate *ps); /* what was collected */
void threads_free(struct pstate *ps);

/* pstate_apart.c: before the freeze, and afterwards */
void apart_prepare(struct pstate *ps);
void limit_apart(const struct pstate *ps, json_t *list);

/* pstate_waits.c */
void wait_prepare(struct pstate *ps, struct thread_prep *p, struct wait_clocks *clocks);
void wait_collect(const struct pstate *ps, const struct thread_prep *p, struct thread_state *th,
		  const struct user_regs_struct *regs);
/* "interrupted_call", or NULL. */
json_t *wait_json(const struct pstate *ps, const struct thread_prep *p,
		  const struct thread_state *th);

/* pstate.c: facts of the process, as one piece of work. */
int process_collect(struct pstate *ps, struct arena *a);

/* pstate_process.c; status: of the main thread */
void process_identity_json(const struct pstate *ps, json_t *root, const char *status);
void process_attributes_json(const struct pstate *ps, json_t *root, const char *status);
/* Field nr of /proc/PID/stat, counted from 1; 3 and up. */
uint64_t stat_field(const char *stat, unsigned nr);

/* pstate_memory.c */
json_t *mm_json(const struct pstate *ps);
json_t *maps_json(const struct maps *m);

/* pstate_crew.c: the reading of /proc, shared with a second thread. */
int crew_start(struct pstate *ps);
void crew_stop(struct pstate *ps);
void crew_begin(struct pstate *ps);
/* Takes part until the texts of threads and process (then of everything)
 * are there. Returns the first error of all. */
int crew_finish_first(struct pstate *ps);
int crew_finish(struct pstate *ps);

/* pstate_seccomp.c */
void seccomp_collect(struct pstate *ps);
bool seccomp_complete(const struct pstate *ps);
void seccomp_json(const struct pstate *ps, json_t *root, json_t *threads);
void seccomp_forget(struct thread_state *th);

/* pstate_notes.c */
int notes_build(struct pstate *ps, struct thread_state *th);

/* pstate_signals.c */
void signals_peek(pid_t tid, bool shared, struct siginfo_list *ret);
/* Adds what is asked for the whole process to a batch, and takes it out of it
 * again. With more timers than one batch holds, says so and is called again. */
struct signal_calls {
	int action[64], itimer[3], subreaper; /* offsets of data, or -1 */
	size_t timer_from, timer_to;
	int timer[64];
};
int signals_begin(struct pstate *ps, struct usnap_err *err);
void signals_add(struct pstate *ps, struct remote_batch *b, struct signal_calls *calls,
		 size_t timer_from);
void signals_take(struct pstate *ps, const struct remote_batch *b,
		  const struct signal_calls *calls);
void signals_end(struct pstate *ps);
json_t *siginfo_list_json(const struct siginfo_list *l);
void signals_json(const struct pstate *ps, json_t *root);
void signals_free(struct signal_state *s);

/* pstate_files.c, pstate_fdkinds.c, pstate_fdjson.c */
int files_prepare(struct pstate *ps);
int files_begin(struct pstate *ps);
int files_collect_known(struct pstate *ps, struct arena *a, size_t i);
int files_end(struct pstate *ps, int error); /* error: of the looking before */
json_t *files_json(struct pstate *ps);
void files_free(struct fd_table *t);
void fd_collect_kind(struct pstate *ps, struct fd_state *f);
json_t *fd_json(struct pstate *ps, struct fd_state *f);
const char *fd_kind_name(enum fd_kind kind);
enum fd_kind fd_classify(const char *link, const struct stat *st);
bool fd_is_deleted(const struct fd_state *f);
bool path_says_deleted(const char *path);
/* Whether it is still open, on a file system of this type (statfs(2)). */
bool fd_lies_in(const struct pstate *ps, const struct fd_state *f, long magic);
void fd_free(struct fd_state *f);

/* pstate_epoll.c: before the freeze, and afterwards */
int epoll_prepare(struct pstate *ps);
json_t *epoll_json(const struct pstate *ps, const struct fd_state *f, const char *text);

/* pstate_inotify.c */
json_t *inotify_json(const struct pstate *ps, const struct fd_state *f, const char *text);

/* pstate_mapped.c */
bool mapped_has_file(const struct vma *v);
bool mapped_is_seen(const struct maps *m, size_t i); /* its file is that of one before */
json_t *mapped_json(const struct pstate *ps);

/* pstate_hidden.c: afterwards; names_judge() before all that asks whether something was deleted */
void names_judge(struct pstate *ps);
bool cwd_is_deleted(const struct pstate *ps);
void limit_hidden(const struct pstate *ps, json_t *list);

/* pstate_unlinked.c */
json_t *unlinked_json(const struct pstate *ps);
void limit_unlinked(const struct pstate *ps, json_t *list);

/* pstate_sockets.c, pstate_sockdiag.c */
int sockets_prepare(struct pstate *ps);
const struct sock_diag *sockets_find(const struct pstate *ps, uint64_t inode);
/* Whether a socket must be asked in the freeze. */
bool socket_needs_query(const struct fd_state *f);
void socket_query(struct fd_state *f, int own_fd);
json_t *socket_json(const struct fd_state *f);
/* Whether something waits in it that the image does not hold. */
bool socket_queue_lost(const struct fd_state *f);
/* pstate_sockqueue.c */
void socket_query_queue(struct sock_state *s, int own_fd);
void socket_queue_json(const struct sock_state *s, json_t *o);
void socket_free(struct sock_state *s);
json_t *socket_address_json(const void *address, socklen_t len);
/* pstate_sockets.c: "TCP 127.0.0.1:80 -> 127.0.0.1:5000"; connected: to somebody outside. */
void socket_describe(const struct fd_state *f, char *buf, size_t room, bool *ret_connected);

/* pstate_limits.c */
void limit_add(json_t *list, const char *what, const char *severity, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
json_t *limits_of_restore_json(const struct pstate *ps);

/* ---- pstate_clocks.c ---- */

json_t *clock_offsets_json(int procfd);

#endif

/*
 * The process as a whole, and process.json put together.
 *
 * DESIGN. pstate_prepare() opens what the freeze will read, so that each
 * fact costs one pread() there: status and fdinfo are texts that the kernel
 * makes anew at every read from the start. What cannot change without the
 * target's doing something that no running server does (its namespaces, its
 * auxiliary vector, oom_score_adj) is read there and then. The freeze
 * (pstate_collect()) reads, asks and verifies; nothing is parsed in it but
 * what the next question depends on. pstate_finish() does the rest.
 *
 * process.json. Addresses, masks and flag words are strings "0x...", modes
 * and open flags strings "0o..."; sizes, counts and nanoseconds are integers.
 * Bytes that are no UTF-8: KEY holds '?' for them, KEY_hex all of them.
 * null, or a key that is missing: the kernel did not tell.
 *
 *  pid ppid pgid sid		as the snapshotter sees them
 *  tty {rdev "136:0" pgrp}	the controlling terminal; missing: none
 *  pid_ns sid_ns pgid_ns		[..] outermost namespace first
 *  comm exe cwd root cmdline[]
 *  umask			"0o22"
 *  mm		start_code end_code start_data end_data start_brk brk start_stack
 *		arg_start arg_end env_start env_end: PR_SET_MM_MAP; brk_exact: false when brk
 *		may be rounded up to the page; auxv: hex
 *  maps[]	start end prot "rw-" shared offset dev "fe:00" inode path kind content
 *		("image": what is absent is zero; "file": as in the file; "none") flags[]
 *		(VmFlags of proc(5), missing when unknown) page_size
 *		guards[] ["0x..", "0x.."]: guard markers, ascending; missing: none, or the
 *		kernel does not show them
 *  threads[]	tid tid_ns[] comm sigmask
 *		sigaltstack {sp size flags} tid_address pdeathsig: null when the thread
 *		could not be asked
 *		robust_list {head len}  rseq {addr len sig flags}
 *		sched {policy flags nice priority [runtime_ns deadline_ns period_ns]
 *		util_min util_max}  affinity (hex, CPU 0 the lowest bit)  ioprio  timerslack_ns
 *		pending[] {signo code siginfo(hex)}: sent to this thread, oldest first
 *		stopped_by: the stop signal, when job control holds it
 *		interrupted_call {nr how left_ns absolute}: "restart": with its arguments;
 *		"restart-block": a wait of which a part is over; left_ns: what is left of it,
 *		never less than that, null when unknown; absolute: its arguments name the end,
 *		left_ns is null. nr is the call that the program made, also where orig_rax is
 *		restart_syscall (219: it was interrupted before), which stays only when
 *		nothing told
 *		seccomp 0|1|2  seccomp_filters[]: numbers, the one installed last first
 *		creds {uid[4] gid[4] groups[] cap_inheritable cap_permitted cap_effective
 *		cap_bounding cap_ambient no_new_privs}  real, effective, saved, file system
 *		registers are in threads/TID.notes
 *  mapped_files[] path dev inode size mtime_ns build_id (hex, or null): files that have a
 *		name and are mapped, each once, looked at right after T0; size and mtime_ns:
 *		null when it could not be found any more
 *  unlinked[]	dev inode path kind mode uid gid size mtime_ns [seals page_size]
 *		content {address size}: each regular file without a name, memfd and shared
 *		anonymous memory that descriptors or mappings refer to, once; dev and inode are
 *		those in files[] and maps[]. kind: "file", "memfd", "shared-anonymous", "sysv".
 *		content: its bytes at T0 are the pages from address on (in the page index, at
 *		or above 0xff00000000000000; those that are absent are zero); null: not in the
 *		image. What maps[] shows of it shared and with content "image" lies under those
 *		addresses, and not here as well
 *  seccomp_filters[] programs of struct sock_filter in hex, which threads refer to
 *  signals	actions[] {signo handler ("default", "ignore", "0x..") flags mask
 *		restorer}; not listed: default. pending[]: sent to the process
 *  itimers[]	which real|virtual|prof, value_ns, interval_ns; only those that run
 *  posix_timers[] id clock signo sigval notify (SIGEV_*) notify_id value_ns interval_ns
 *  limits[]	resource soft hard (-1: unlimited)
 *  creds		of the main thread, as above
 *  personality oom_score_adj coredump_filter thp_disable child_subreaper
 *  dumpable	0, 1 or 2; true, false: as 1, 0
 *  securebits	of one thread (those of the others are seldom different)
 *  mdwe memory_merge io_flusher	words of prctl(2)'s PR_GET_MDWE and so on
 *  membarrier	bits of the registrations that membarrier(2) has been told
 *  loginuid namespaces{} cgroup children[]
 *  clock_offsets {monotonic_ns boottime_ns}: the target's clocks less those that T0 is in
 *  files[]	fd type path flags cloexec offset description (equal: one open file
 *		description) dev inode mode size mtime_ns rdev deleted
 *		owner {type pid signo}  locks[] {kind mode type pid start [end]}
 *		pipe|fifo {size queued data(hex) packets[]: lengths, in packet mode
 *		closed: true when nobody has the other end}
 *		eventfd {count semaphore}
 *		epoll {set[] {fd events data inode description}}: fd is the number under which
 *		it was added; description: that of the file; null: no descriptor is left of it
 *		timerfd {clock ticks settime_flags value_ns interval_ns}
 *		signalfd {mask}  inotify {watches[] {wd inode dev mask handle_type handle
 *		path} queued}  memfd {seals}  pidfd {pid}
 *		terminal {termios(hex, the kernel's) winsize[] pty locked packet exclusive
 *		discipline queued}
 *		socket {family type protocol listening connected connecting local peer
 *		{raw(hex) text path abstract} backlog waiting options{} peer_inode
 *		file {mode uid gid}: of its path; null: the path is not its own any more
 *		shutdown "read"|"write"|"both"  groups: words of netlink groups, hex
 *		queued data(hex): of a stream; messages[] {data(hex) from{} cred {pid uid
 *		gid}}: of a unix socket that keeps borders, oldest first}
 *  limits_of_restore[] what detail severity: pstate_limits.c
 */
#include "process/pstate.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/io.h"
#include "common/util.h"
#include "process/pstate_internal.h"

/* ---- before the freeze -------------------------------------------------- */

static int open_dir(const struct pstate *ps, const char *name)
{
	return openat(ps->t->procfd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

/* A small file without its newline; NULL when it cannot be read. */
static char *read_word(const struct pstate *ps, const char *name)
{
	char *text = NULL;
	size_t len;

	if (io_read_file_at(ps->t->procfd, name, KIB(64), &text, &len) < 0)
		return NULL;
	if (len && text[len - 1] == '\n')
		text[len - 1] = '\0';
	return text;
}

static json_t *read_namespaces(const struct pstate *ps)
{
	static const char *const names[] = {"cgroup", "ipc",
					    "mnt",    "net",
					    "pid",    "pid_for_children",
					    "time",   "time_for_children",
					    "user",   "uts"};
	json_t *o = json_object();

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		char path[64];
		cleanup_free char *link = NULL;

		snprintf(path, sizeof(path), "ns/%s", names[i]);
		if (io_readlink_at(ps->t->procfd, path, &link) == 0)
			json_set_text(o, names[i], link);
	}
	return o;
}

static void prepare_rest(struct pstate *ps)
{
	struct stat st;

	if (io_readlink_at(ps->t->procfd, "exe", &ps->exe) < 0)
		ps->exe = NULL;
	if (io_readlink_at(ps->t->procfd, "root", &ps->root) < 0)
		ps->root = NULL;
	ps->cgroup = read_word(ps, "cgroup");
	ps->personality = read_word(ps, "personality");
	ps->oom_score_adj = read_word(ps, "oom_score_adj");
	ps->coredump_filter = read_word(ps, "coredump_filter");
	ps->loginuid = read_word(ps, "loginuid");
	if (io_read_file_at(ps->t->procfd, "cmdline", MIB(8), &ps->cmdline, &ps->cmdline_len) < 0)
		ps->cmdline = NULL;
	if (io_read_file_at(ps->t->procfd, "auxv", KIB(64), &ps->auxv, &ps->auxv_len) < 0)
		ps->auxv = NULL;
	ps->namespaces = read_namespaces(ps);
	ps->clock_offsets = clock_offsets_json(ps->t->procfd);
	ps->proc_uid = fstat(ps->t->procfd, &st) == 0 ? st.st_uid : (uid_t)-1;
}

/* Room for what was read just now, twice, and touched: the freeze takes no
 * page faults of ours. */
static int renew_arenas(struct pstate *ps)
{
	size_t room = MAX(ps->arena.len * 2, KIB(256));

	ps->arena.len = 0;
	int r = arena_reserve(&ps->arena, room);
	return r < 0 ? r : arena_reserve(&ps->crew_arena, room);
}

int pstate_prepare(struct pstate **ret, const struct target *t, const struct remote_gadgets *g,
		   struct usnap_err *err)
{
	struct pstate *ps = calloc(1, sizeof(*ps));

	if (!ps)
		return usnap_fail_errno(err, -ENOMEM, "cannot look at process %d", (int)t->pid);
	ps->t = t;
	ps->gadgets = *g;
	facts_forget(&ps->facts);
	ps->task_fd = open_dir(ps, "task");
	ps->fd_dir = open_dir(ps, "fd");
	ps->fdinfo_dir = open_dir(ps, "fdinfo");
	ps->stat_fd = openat(t->procfd, "stat", O_RDONLY | O_CLOEXEC);
	int r = ps->task_fd < 0 || ps->fd_dir < 0 || ps->fdinfo_dir < 0 || ps->stat_fd < 0 ? -errno
											   : 0;
	/* Only with CONFIG_CHECKPOINT_RESTORE. */
	ps->timers_fd = openat(t->procfd, "timers", O_RDONLY | O_CLOEXEC);
	if (r == 0)
		r = threads_prepare(ps);
	if (r == 0)
		r = files_prepare(ps);
	if (r == 0)
		prepare_rest(ps);
	if (r == 0)
		r = threads_reserve(ps, ps->nr_preps + 8);
	if (r == 0)
		r = renew_arenas(ps);
	if (r == 0)
		r = crew_start(ps);
	if (r < 0) {
		pstate_free(ps);
		return usnap_fail_errno(err, r, "cannot look at process %d (%s)", (int)t->pid,
					t->comm);
	}
	*ret = ps;
	return 0;
}

/* ---- in the freeze ------------------------------------------------------ */

static void forget_collected(struct pstate *ps)
{
	threads_forget(ps);
	signals_free(&ps->signals);
	ps->signals_known = false;
	files_free(&ps->files);
	ps->stat = ps->timers = (struct span){0};
	ps->arena.len = ps->crew_arena.len = 0;
	ps->collected = false;
}

int process_collect(struct pstate *ps, struct arena *a)
{
	ssize_t n = readlinkat(ps->t->procfd, "cwd", ps->cwd, sizeof(ps->cwd) - 1);

	ps->cwd[MAX(n, 0)] = '\0';
	for (unsigned i = 0; i < RLIM_NLIMITS; i++)
		ps->has_limit[i] =
			prlimit(ps->t->pid, (__rlimit_resource_t)i, NULL, &ps->limits[i]) == 0;
	if (ps->timers_fd >= 0)
		arena_pread(a, ps->timers_fd, &ps->timers);
	return arena_pread(a, ps->stat_fd, &ps->stat);
}

void pstate_set_maps(struct pstate *ps, const struct maps *maps)
{
	ps->maps = maps;
}

void pstate_know_facts(struct pstate *ps, const struct process_facts *f)
{
	ps->facts = *f;
}

void pstate_set_unlinked(struct pstate *ps, const struct unlinked_files *files)
{
	ps->unlinked = files;
}

int pstate_collect(struct pstate *ps, struct tracees *threads, struct remote_meanwhile meanwhile,
		   struct usnap_err *err)
{
	forget_collected(ps);
	ps->meanwhile = meanwhile;
	if (!threads->n)
		return usnap_fail(err, -ESRCH, "cannot snapshot process %d: it has ended",
				  (int)ps->t->pid);
	int r = threads_reserve(ps, threads->n);
	if (r == 0)
		r = files_begin(ps);
	if (r < 0)
		return usnap_fail_errno(err, r, "cannot collect the state of process %d",
					(int)ps->t->pid);
	for (size_t i = 0; i < threads->n; i++)
		ps->threads[i].tid = threads->t[i].tid;
	ps->nr_threads = threads->n;

	crew_begin(ps);
	r = threads_collect(ps, threads, err);
	/* Also after a failure: the other thread must be done with it. */
	int f = files_end(ps, crew_finish(ps));
	if (r == 0 && f >= 0)
		seccomp_collect(ps);
	if (f < 0)
		usnap_fail_errno(err, f, "cannot read the state of process %d", (int)ps->t->pid);
	r = r < 0 ? r : f;
	ps->collected = r == 0;
	return r;
}

/* ---- afterwards ---------------------------------------------------------- */

int pstate_finish(struct pstate *ps, json_t **ret, struct usnap_err *err)
{
	json_t *root = json_object();

	if (!ps->collected || !root) {
		json_decref(root);
		return usnap_fail(err, -EINVAL, "cannot describe process %d: nothing was collected",
				  (int)ps->t->pid);
	}
	const char *status = span_text(ps->threads[0].status);
	for (size_t i = 0; i < ps->nr_threads; i++)
		if (ps->threads[i].tid == ps->t->pid)
			status = span_text(ps->threads[i].status);

	names_judge(ps);
	process_identity_json(ps, root, status);
	json_object_set_new(root, "mm", mm_json(ps));
	json_object_set_new(root, "maps", maps_json(ps->maps));
	json_t *threads = threads_json(ps);
	json_object_set_new(root, "threads", threads);
	seccomp_json(ps, root, threads);
	signals_json(ps, root);
	process_attributes_json(ps, root, status);
	json_object_set_new(root, "files", files_json(ps));
	json_object_set_new(root, "mapped_files", mapped_json(ps));
	json_object_set_new(root, "unlinked", unlinked_json(ps));
	json_object_set_new(root, "limits_of_restore", limits_of_restore_json(ps));
	*ret = root;
	return 0;
}

size_t pstate_nr_threads(const struct pstate *ps)
{
	return ps->nr_threads;
}

int pstate_notes(struct pstate *ps, size_t i, pid_t *ret_tid, const void **ret, size_t *ret_len)
{
	if (i >= ps->nr_threads)
		return -EINVAL;
	struct thread_state *th = &ps->threads[i];
	int r = th->notes ? 0 : notes_build(ps, th);
	if (r < 0)
		return r;
	*ret_tid = th->tid;
	*ret = th->notes;
	*ret_len = th->notes_len;
	return 0;
}

void pstate_free(struct pstate *ps)
{
	if (!ps)
		return;
	int fds[] = {ps->task_fd, ps->fd_dir, ps->fdinfo_dir, ps->stat_fd, ps->timers_fd};
	char *texts[] = {ps->exe,	  ps->root,	     ps->cgroup,
			 ps->personality, ps->oom_score_adj, ps->coredump_filter,
			 ps->cmdline,	  ps->auxv,	     ps->loginuid,
			 ps->children};

	crew_stop(ps);
	forget_collected(ps);
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
		if (fds[i] >= 0)
			close(fds[i]);
	for (size_t i = 0; i < ARRAY_SIZE(texts); i++)
		free(texts[i]);
	threads_free(ps);
	files_free(&ps->prepared);
	free(ps->diag);
	json_decref(ps->namespaces);
	json_decref(ps->clock_offsets);
	free(ps->arena.p);
	free(ps->crew_arena.p);
	free(ps);
}

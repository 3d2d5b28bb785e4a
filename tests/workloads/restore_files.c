/*
 * Files, directories, devices and their locks after a restore; see
 * restorework.h.
 */
#include "restorework.h"

#include <dirent.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>

#ifndef F_OFD_GETLK
#define F_OFD_GETLK 36
#define F_OFD_SETLK 37
#endif

/* A file of 10000 bytes with work_byte(i, seed). */
static int make_file(const char *name, int flags, unsigned seed)
{
	char buf[10000];
	int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

	work_fill(buf, sizeof(buf), seed);
	must(fd >= 0 && write(fd, buf, sizeof(buf)) == sizeof(buf));
	close(fd);
	must((fd = open(name, flags)) >= 0);
	return fd;
}

static unsigned char next_byte(int fd)
{
	unsigned char c;

	must(read(fd, &c, 1) == 1);
	return c;
}

static off_t at(int fd)
{
	return lseek(fd, 0, SEEK_CUR);
}

/* ---- descriptors ----------------------------------------------------------------- */

static void offset(void)
{
	int fd = make_file("offset", O_RDWR, 1), other = open("offset", O_RDONLY);

	must(lseek(fd, 1234, SEEK_SET) == 1234 && lseek(other, 99, SEEK_SET) == 99);
	work_wait();
	must_equal(at(fd), 1234);
	must_equal(at(other), 99);
	must(next_byte(fd) == work_byte(1234, 1) && next_byte(other) == work_byte(99, 1));
	must(write(fd, "here", 4) == 4 && at(other) == 100);
	must(lseek(other, 1235, SEEK_SET) == 1235 && next_byte(other) == 'h');
	/* Beyond the end too. */
	must(lseek(fd, 1 << 20, SEEK_SET) == 1 << 20 && write(fd, "x", 1) == 1);
}

static void append(void)
{
	int fd = make_file("append", O_WRONLY | O_APPEND, 2);
	struct stat st;

	must(lseek(fd, 0, SEEK_SET) == 0);
	work_wait();
	must(write(fd, "tail", 4) == 4 && fstat(fd, &st) == 0);
	must_equal(st.st_size, 10004);
	must_equal(at(fd), 10004);
	must(read(fd, &st, 1) < 0 && errno == EBADF);
}

static void flags(void)
{
	static const int kinds[] = {O_RDONLY,
				    O_WRONLY | O_NONBLOCK,
				    O_RDWR | O_SYNC,
				    O_RDWR | O_DSYNC | O_APPEND,
				    O_RDONLY | O_NOATIME,
				    O_RDWR | O_DIRECT};
	int fd[WORK_COUNT(kinds)], was[WORK_COUNT(kinds)];

	for (size_t i = 0; i < WORK_COUNT(kinds); i++) {
		fd[i] = make_file("flags", kinds[i], 3);
		was[i] = fcntl(fd[i], F_GETFL);
	}
	work_wait();
	for (size_t i = 0; i < WORK_COUNT(kinds); i++)
		must_equal(fcntl(fd[i], F_GETFL), was[i]);
}

static void cloexec(void)
{
	int a = make_file("cloexec", O_RDONLY | O_CLOEXEC, 4), b = open("cloexec", O_RDONLY);

	work_wait();
	must_equal(fcntl(a, F_GETFD), FD_CLOEXEC);
	must_equal(fcntl(b, F_GETFD), 0);
}

static void dups(void)
{
	int fd = make_file("dup", O_RDWR, 5), twin = dup(fd);
	int third = fcntl(fd, F_DUPFD_CLOEXEC, 50), other = open("dup", O_RDWR);

	must(lseek(fd, 500, SEEK_SET) == 500);
	work_wait();
	must(next_byte(fd) == work_byte(500, 5) && next_byte(twin) == work_byte(501, 5));
	must(next_byte(third) == work_byte(502, 5) && at(fd) == 503 && at(other) == 0);
	must(fcntl(twin, F_SETFL, O_NONBLOCK) == 0 && fcntl(fd, F_GETFL) & O_NONBLOCK);
	must(!(fcntl(other, F_GETFL) & O_NONBLOCK));
	must(third >= 50 && fcntl(third, F_GETFD) == FD_CLOEXEC && fcntl(twin, F_GETFD) == 0);
}

static void numbers(void)
{
	static const int want[] = {7, 33, 250, 800, 1023, 4000};
	struct rlimit l;
	int fd = make_file("numbers", O_RDONLY, 6);

	must(getrlimit(RLIMIT_NOFILE, &l) == 0);
	if (l.rlim_cur < 5000) {
		l.rlim_cur = l.rlim_max < 5000 ? l.rlim_max : 5000;
		must(setrlimit(RLIMIT_NOFILE, &l) == 0 && l.rlim_cur >= 5000);
	}
	for (size_t i = 0; i < WORK_COUNT(want); i++) {
		must(dup2(fd, want[i]) == want[i] && close(want[i]) == 0);
		int own = open("numbers", O_RDONLY);

		must(own >= 0 && lseek(own, want[i], SEEK_SET) == want[i]);
		if (own != want[i])
			must(dup2(own, want[i]) == want[i] && close(own) == 0);
	}
	close(fd);
	work_wait();
	for (int i = 0, n = 0; i < 5000; i++) {
		bool wanted = n < (int)WORK_COUNT(want) && i == want[n];

		if (wanted || i < 3 || i == WORK_GO_FD || i == WORK_RESULT_FD)
			must(fcntl(i, F_GETFD) >= 0);
		else
			must(fcntl(i, F_GETFD) < 0);
		if (wanted)
			must_equal(at(want[n++]), i);
	}
	must_equal(open("numbers", O_RDONLY), 3);
}

static void signal_owner(void)
{
	struct f_owner_ex set = {F_OWNER_PID, 0}, now;
	int fds[2];

	set.pid = getpid();
	must(pipe(fds) == 0);
	must(fcntl(fds[0], F_SETOWN_EX, &set) == 0 && fcntl(fds[0], F_SETSIG, SIGRTMIN + 2) == 0);
	must(fcntl(fds[0], F_SETFL, O_ASYNC) == 0);
	sigset_t mask;

	sigemptyset(&mask);
	sigaddset(&mask, SIGRTMIN + 2);
	must(sigprocmask(SIG_BLOCK, &mask, NULL) == 0);
	work_wait();
	must(fcntl(fds[0], F_GETOWN_EX, &now) == 0 && now.type == set.type && now.pid == set.pid);
	must_equal(fcntl(fds[0], F_GETSIG), SIGRTMIN + 2);
	must(write(fds[1], "x", 1) == 1);
	must_equal(sigtimedwait(&mask, NULL, &(struct timespec){.tv_sec = 60}), SIGRTMIN + 2);
}

/* ---- files without a name, or that are none --------------------------------------------- */

static void unlinked(void)
{
	int fd = make_file("unlinked", O_RDWR, 7), other = open("unlinked", O_RDONLY);
	struct stat st, st2;
	char buf[10000];

	must(fchmod(fd, 0604) == 0 && unlink("unlinked") == 0 && lseek(fd, 77, SEEK_SET) == 77);
	work_wait();
	must(fstat(fd, &st) == 0 && st.st_size == 10000 && (st.st_mode & 07777) == 0604);
	must(fstat(other, &st2) == 0 && st.st_ino == st2.st_ino && st.st_nlink == 0);
	must(pread(other, buf, sizeof(buf), 0) == sizeof(buf) && work_filled(buf, sizeof(buf), 7));
	must(at(fd) == 77 && at(other) == 0);
	must(write(fd, "!", 1) == 1 && pread(other, buf, 1, 77) == 1 && buf[0] == '!');
	must(access("unlinked", F_OK) < 0);
	must(ftruncate(fd, 1 << 20) == 0);
}

static void unlinked_dup(void)
{
	int fd = make_file("gone", O_RDWR, 8), twin = dup(fd);

	must(unlink("gone") == 0 && lseek(fd, 10, SEEK_SET) == 10);
	work_wait();
	must(next_byte(fd) == work_byte(10, 8) && next_byte(twin) == work_byte(11, 8));
}

static void tmpfile_open(void)
{
	int fd = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	char buf[3000], link_name[64];

	if (fd < 0)
		work_skip("no O_TMPFILE here");
	work_fill(buf, sizeof(buf), 9);
	must(write(fd, buf, sizeof(buf)) == sizeof(buf));
	work_wait();
	memset(buf, 0, sizeof(buf));
	must_equal(at(fd), 3000);
	must(pread(fd, buf, sizeof(buf), 0) == sizeof(buf) && work_filled(buf, sizeof(buf), 9));
	snprintf(link_name, sizeof(link_name), "/proc/self/fd/%d", fd);
	must(linkat(AT_FDCWD, link_name, AT_FDCWD, "linked", AT_SYMLINK_FOLLOW) == 0);
	must(access("linked", F_OK) == 0);
}

static void sparse_unlinked(void)
{
	int fd = open("sparse", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	struct stat st;
	char c;

	must(fd >= 0 && unlink("sparse") == 0);
	must(pwrite(fd, "end", 3, (off_t)1 << 36) == 3 && pwrite(fd, "begin", 5, 0) == 5);
	work_wait();
	must(fstat(fd, &st) == 0 && st.st_size == ((off_t)1 << 36) + 3);
	must(pread(fd, &c, 1, ((off_t)1 << 36) + 1) == 1 && c == 'n');
	must(pread(fd, &c, 1, 1) == 1 && c == 'e');
	must(pread(fd, &c, 1, 1 << 30) == 1 && c == 0);
	must(st.st_blocks < 1 << 20);
}

static void memfd_sealed(void)
{
	int fd = memfd_create("sealed one", MFD_ALLOW_SEALING | MFD_CLOEXEC), seals;
	char buf[9000], name[64] = "", link_name[64];

	work_fill(buf, sizeof(buf), 10);
	must(fd >= 0 && write(fd, buf, sizeof(buf)) == sizeof(buf));
	must(lseek(fd, 12, SEEK_SET) == 12);
	seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL;
	must(fcntl(fd, F_ADD_SEALS, seals) == 0);
	work_wait();
	must_equal(fcntl(fd, F_GET_SEALS), seals);
	must_equal(at(fd), 12);
	memset(buf, 0, sizeof(buf));
	must(pread(fd, buf, sizeof(buf), 0) == sizeof(buf) && work_filled(buf, sizeof(buf), 10));
	must(write(fd, "x", 1) < 0 && ftruncate(fd, 1) < 0);
	snprintf(link_name, sizeof(link_name), "/proc/self/fd/%d", fd);
	must(readlink(link_name, name, sizeof(name) - 1) > 0);
	must(strcmp(name, "/memfd:sealed one (deleted)") == 0);
}

static void directory(void)
{
	char before[8][64], name[64];
	int n = 0, i = 0;

	must(mkdir("dir", 0755) == 0);
	for (i = 0; i < 60; i++) {
		snprintf(name, sizeof(name), "dir/entry-with-a-longer-name-%d", i);
		close(open(name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
	}
	DIR *d = opendir("dir");
	struct dirent *e;

	must(d != NULL);
	for (i = 0; i < 20; i++)
		must(readdir(d) != NULL);
	long place = telldir(d);

	for (n = 0; n < 8 && (e = readdir(d)); n++)
		snprintf(before[n], sizeof(before[n]), "%.63s", e->d_name);
	must(n == 8);
	/* In the kernel too: past what was read ahead. */
	seekdir(d, place);
	off_t kernel = lseek(dirfd(d), 0, SEEK_CUR);

	work_wait();
	must_equal(lseek(dirfd(d), 0, SEEK_CUR), kernel);
	for (i = 0; i < 8; i++)
		must((e = readdir(d)) && strcmp(e->d_name, before[i]) == 0);
	must(faccessat(dirfd(d), "entry-with-a-longer-name-5", F_OK, 0) == 0);
	closedir(d);
}

static void path_only(void)
{
	int fd = open(".", O_PATH | O_CLOEXEC), file, ready, link;
	char target[16] = "";

	close(make_file("by-path", O_RDONLY, 11));
	file = open("by-path", O_PATH);
	must(symlink("nowhere", "link") == 0);
	link = open("link", O_PATH | O_NOFOLLOW);
	must(fd >= 0 && file >= 0 && link >= 0);
	work_wait();
	char c;

	must(readlinkat(link, "", target, sizeof(target)) == 7 && !strcmp(target, "nowhere"));
	must((fcntl(link, F_GETFL) & (O_PATH | O_NOFOLLOW)) == (O_PATH | O_NOFOLLOW));
	must(read(file, &c, 1) < 0 && errno == EBADF);
	must(fcntl(file, F_GETFL) & O_PATH && fcntl(fd, F_GETFD) == FD_CLOEXEC);
	must((ready = openat(fd, "by-path", O_RDONLY)) >= 0 &&
	     next_byte(ready) == work_byte(0, 11));
}

static void devices(void)
{
	static const char *const names[] = {"/dev/null", "/dev/zero", "/dev/full", "/dev/urandom",
					    "/dev/random"};
	int fd[5];
	char buf[64];

	for (int i = 0; i < 5; i++)
		must((fd[i] = open(names[i], O_RDWR | (i % 2 ? O_CLOEXEC : O_NONBLOCK))) >= 0);
	work_wait();
	must(read(fd[0], buf, 64) == 0 && write(fd[0], buf, 64) == 64);
	memset(buf, 1, sizeof(buf));
	must(read(fd[1], buf, 64) == 64 && work_zero(buf, 64));
	must(write(fd[2], buf, 64) < 0 && errno == ENOSPC);
	must(read(fd[3], buf, 64) == 64 && !work_zero(buf, 64));
	must(read(fd[4], buf, 64) == 64);
	for (int i = 0; i < 5; i++)
		must_equal(fcntl(fd[i], F_GETFD), i % 2 ? FD_CLOEXEC : 0);
}

static void proc_files(void)
{
	int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
	int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	int uptime = open("/proc/uptime", O_RDONLY | O_CLOEXEC);
	char text[4096] = "", pid[32];

	must(fd >= 0 && maps >= 0 && uptime >= 0);
	work_wait();
	must(pread(fd, text, sizeof(text) - 1, 0) > 0);
	snprintf(pid, sizeof(pid), "\nPid:\t%d\n", (int)getpid());
	must(strstr(text, pid) != NULL);
	must(pread(maps, text, sizeof(text), 0) > 0 && pread(uptime, text, sizeof(text), 0) > 0);
}

static void pidfd_of_itself(void)
{
	int fd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	siginfo_t si;
	sigset_t mask;

	must(fd >= 0);
	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR1);
	must(sigprocmask(SIG_BLOCK, &mask, NULL) == 0);
	work_wait();
	must(syscall(SYS_pidfd_send_signal, fd, SIGUSR1, NULL, 0) == 0);
	must(sigwaitinfo(&mask, &si) == SIGUSR1 && si.si_pid == getpid());
}

/* ---- locks --------------------------------------------------------------------------------- */

struct flock_ask {
	const char *name;
	short type;
	off_t start;
	pid_t holder;
};

/* As another process sees it: 0 when the lock is there. */
static int lock_missing(void *arg)
{
	const struct flock_ask *a = arg;
	struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = a->start, .l_len = 1};
	int fd = open(a->name, O_RDWR | O_CLOEXEC);

	if (fd < 0 || fcntl(fd, F_GETLK, &l))
		return 2;
	return !(l.l_type == a->type && (l.l_type == F_UNLCK || l.l_pid == a->holder));
}

static void set_lock(int fd, int how, short type, off_t start, off_t len)
{
	struct flock l = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len};

	must(fcntl(fd, how, &l) == 0);
}

static void check_lock(short type, off_t start, pid_t holder)
{
	struct flock_ask a = {"locked", type, start, holder};

	must_equal(work_in_child(lock_missing, &a), 0);
}

static void posix_locks(void)
{
	int fd = make_file("locked", O_RDWR, 12);

	set_lock(fd, F_SETLK, F_WRLCK, 0, 100);
	set_lock(fd, F_SETLK, F_RDLCK, 200, 100);
	set_lock(fd, F_SETLK, F_WRLCK, 1000, 0);
	work_wait();
	check_lock(F_WRLCK, 99, getpid());
	check_lock(F_UNLCK, 100, 0);
	check_lock(F_RDLCK, 250, getpid());
	check_lock(F_WRLCK, 1 << 20, getpid());
	set_lock(fd, F_SETLK, F_UNLCK, 0, 0);
	check_lock(F_UNLCK, 0, 0);
}

static void ofd_locks(void)
{
	int fd = make_file("locked", O_RDWR, 13), twin = dup(fd);

	set_lock(fd, F_OFD_SETLK, F_WRLCK, 10, 10);
	work_wait();
	check_lock(F_WRLCK, 15, -1);
	check_lock(F_UNLCK, 20, 0);
	/* It goes with the last descriptor. */
	close(fd);
	check_lock(F_WRLCK, 15, -1);
	close(twin);
	check_lock(F_UNLCK, 15, 0);
}

static void flocks(void)
{
	int fd = make_file("flock", O_RDONLY, 14), twin = dup(fd), other;
	int shared = make_file("flock-shared", O_RDONLY, 14);

	must(flock(fd, LOCK_EX) == 0 && flock(shared, LOCK_SH) == 0);
	work_wait();
	must((other = open("flock", O_RDONLY | O_CLOEXEC)) >= 0);
	must(flock(other, LOCK_SH | LOCK_NB) < 0 && errno == EWOULDBLOCK);
	must(close(fd) == 0);
	must(flock(other, LOCK_SH | LOCK_NB) < 0 && errno == EWOULDBLOCK);
	must(flock(twin, LOCK_UN) == 0 && flock(other, LOCK_EX | LOCK_NB) == 0);
	must((other = open("flock-shared", O_RDONLY | O_CLOEXEC)) >= 0);
	must(flock(other, LOCK_SH | LOCK_NB) == 0);
	must(flock(other, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK);
}

static int breaks_lease(void *arg)
{
	return open("leased", O_WRONLY | O_NONBLOCK | O_CLOEXEC) >= 0 || errno != EWOULDBLOCK;
}

static void leases(void)
{
	int fd = make_file("leased", O_RDONLY, 15);
	sigset_t mask;

	sigemptyset(&mask);
	sigaddset(&mask, SIGIO);
	must(sigprocmask(SIG_BLOCK, &mask, NULL) == 0);
	must(fcntl(fd, F_SETLEASE, F_RDLCK) == 0);
	work_wait();
	must_equal(fcntl(fd, F_GETLEASE), F_RDLCK);
	must_equal(work_in_child(breaks_lease, NULL), 0);
	must_equal(sigtimedwait(&mask, NULL, &(struct timespec){.tv_sec = 60}), SIGIO);
	must(fcntl(fd, F_SETLEASE, F_UNLCK) == 0);
}

static const struct work works[] = {
	{"offset", offset, "regular files with their offsets"},
	{"append", append, "files opened for appending"},
	{"flags", flags, "open modes and flags (O_NONBLOCK, O_SYNC, O_DSYNC, O_DIRECT, O_NOATIME)"},
	{"cloexec", cloexec, "FD_CLOEXEC, set or not"},
	{"dup", dups, "duplicated descriptors: offset and flags stay shared"},
	{"numbers", numbers, "descriptor numbers, with gaps and high ones"},
	{"signal-owner", signal_owner,
	 "who is signalled of I/O, and how (F_SETOWN, F_SETSIG, O_ASYNC)"},
	{"unlinked", unlinked, "deleted files with their content, mode and all their openings"},
	{"unlinked-dup", unlinked_dup, "deleted files with duplicated descriptors"},
	{"tmpfile", tmpfile_open, "files of O_TMPFILE, which can still be given a name"},
	{"sparse-unlinked", sparse_unlinked, "deleted sparse files, which stay sparse"},
	{"memfd", memfd_sealed, "memfds with content, name, offset and seals"},
	{"directory", directory, "open directories with their position"},
	{"path-only", path_only, "descriptors of O_PATH, of symbolic links too"},
	{"devices", devices, "/dev/null, zero, full, random and urandom"},
	{"proc", proc_files, "files of /proc, its own ones too"},
	{"pidfd", pidfd_of_itself, "a pidfd of the process itself"},
	{"posix-locks", posix_locks, "POSIX record locks"},
	{"ofd-locks", ofd_locks, "open file description locks"},
	{"flock", flocks, "flock() locks, exclusive and shared"},
	{"lease", leases, "file leases, which are still broken with a signal"},
};

int main(int argc, char **argv)
{
	return work_main(argc, argv, works, WORK_COUNT(works));
}

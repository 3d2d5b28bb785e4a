#include "image/sink.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "common/util.h"

#define CANCEL_NS UINT64_C(100000000)
#define FOLLOW_NS 10000000

/* What is sent on to the disk at once, in whole steps: the page that is filled next should not be on its
 * way, and who closes waits for one. */
#define FLUSH_STEP MIB(1)
#define FLUSH_MOST MIB(4)
/* How far ahead of that the output may be written: what the page cache holds of it is missing elsewhere. */
#define FLUSH_LEAD MIB(128)

/* ---- sending on to the disk ---- */

static void *flusher_thread(void *arg)
{
	struct sink *s = arg;

	pthread_mutex_lock(&s->flush_lock);
	while (!s->flush_quit) {
		uint64_t from = s->flush_from, to = MIN(s->flush_to, from + FLUSH_MOST);

		if (from >= to) {
			pthread_cond_wait(&s->to_flusher, &s->flush_lock);
			continue;
		}
		s->flush_from = to;
		pthread_mutex_unlock(&s->flush_lock);
		/* Merely advice: the result does not matter. */
		sync_file_range(s->fd, (off_t)from, (off_t)(to - from), SYNC_FILE_RANGE_WRITE);
		pthread_mutex_lock(&s->flush_lock);
	}
	pthread_mutex_unlock(&s->flush_lock);
	return NULL;
}

void sink_flush_early(struct sink *s)
{
	sigset_t all, before;

	/* Elsewhere positions in the file are not known. */
	if (!s->rewindable)
		return;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	s->flushes = pthread_create(&s->flusher, NULL, flusher_thread, s) == 0;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void tell_flusher(struct sink *s)
{
	pthread_mutex_lock(&s->flush_lock);
	s->flush_to = ALIGN_DOWN(s->position, FLUSH_STEP);
	pthread_cond_signal(&s->to_flusher);
	pthread_mutex_unlock(&s->flush_lock);
}

static bool far_ahead(struct sink *s)
{
	bool far;

	pthread_mutex_lock(&s->flush_lock);
	far = s->flushes && s->flush_to - s->flush_from > FLUSH_LEAD;
	pthread_mutex_unlock(&s->flush_lock);
	return far;
}

static void end_flusher(struct sink *s)
{
	if (!s->flushes)
		return;
	pthread_mutex_lock(&s->flush_lock);
	s->flush_quit = true;
	pthread_cond_signal(&s->to_flusher);
	pthread_mutex_unlock(&s->flush_lock);
	pthread_join(s->flusher, NULL);
	s->flushes = false;
}

/* ---- the whole ---- */

int sink_open(struct sink *s, int fd, uint64_t rate_bytes_s)
{
	struct stat st;
	int flags = fcntl(fd, F_GETFL);

	memset(s, 0, sizeof(*s));
	s->stop_fd = -1;
	pthread_mutex_init(&s->flush_lock, NULL);
	pthread_cond_init(&s->to_flusher, NULL);
	if (flags < 0 || fstat(fd, &st) < 0)
		return -errno;
	s->fd = fd;
	s->type = st.st_mode & S_IFMT;
	s->rate_bytes_s = rate_bytes_s;
	/* Somebody else's bytes before ours are not ours to cut off. */
	s->rewindable = s->type == S_IFREG && !(flags & O_APPEND) && lseek(fd, 0, SEEK_CUR) == 0;
	s->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (s->stop_fd < 0)
		return -errno;
	s->hash = XXH3_createState();
	if (!s->hash)
		return -ENOMEM;
	XXH3_128bits_reset(s->hash);
	return 0;
}

void sink_close(struct sink *s)
{
	end_flusher(s);
	pthread_cond_destroy(&s->to_flusher);
	pthread_mutex_destroy(&s->flush_lock);
	if (s->stop_fd >= 0)
		close(s->stop_fd);
	s->stop_fd = -1;
	XXH3_freeState(s->hash);
	s->hash = NULL;
}

void sink_stop(struct sink *s)
{
	uint64_t one = 1;
	int saved = errno;

	if (write(s->stop_fd, &one, sizeof(one)) < 0) {
		/* EAGAIN: the counter is full, so it is readable already. */
	}
	errno = saved;
}

bool sink_stopped(const struct sink *s)
{
	struct pollfd p = {.fd = s->stop_fd, .events = POLLIN};

	return poll(&p, 1, 0) > 0;
}

int sink_rewind(struct sink *s)
{
	if (lseek(s->fd, 0, SEEK_SET) < 0 || ftruncate(s->fd, 0) < 0)
		return -errno;
	s->position = 0;
	pthread_mutex_lock(&s->flush_lock);
	s->flush_from = s->flush_to = 0;
	pthread_mutex_unlock(&s->flush_lock);
	XXH3_128bits_reset(s->hash);
	return 0;
}

/* poll() that knows of the flag: a signal may have come to another thread. Returns what it does, or
 * -ECANCELED; 0 when there is nothing within timeout_ns, negative for ever. */
static int sink_poll(const struct sink *s, struct pollfd *p, nfds_t n, int64_t timeout_ns)
{
	const uint64_t end = timeout_ns < 0 ? UINT64_MAX : now_ns() + (uint64_t)timeout_ns;

	for (;;) {
		uint64_t now = now_ns(), left = now < end ? MIN(end - now, CANCEL_NS) : 0;
		int r;

		if (s->cancel && __atomic_load_n(s->cancel, __ATOMIC_RELAXED))
			return -ECANCELED;
		r = ppoll(p, n, &(struct timespec){.tv_nsec = (long)left}, NULL);
		if (r > 0)
			return p[0].revents ? -ECANCELED : r;
		if (r < 0 && errno != EINTR)
			return -errno;
		if (now >= end)
			return 0;
	}
}

/* Waits until the rate lets more go. */
static int sink_pace(struct sink *s)
{
	uint64_t now = now_ns();

	if (s->next_ns < now)
		s->next_ns = now;
	struct pollfd p = {.fd = s->stop_fd, .events = POLLIN};
	return sink_poll(s, &p, 1, (int64_t)(s->next_ns - now));
}

/* Waits until the disk has accepted enough of what was written. */
static int sink_follow(struct sink *s)
{
	struct pollfd p = {.fd = s->stop_fd, .events = POLLIN};
	int r = 0;

	while (r == 0 && far_ahead(s))
		r = sink_poll(s, &p, 1, FOLLOW_NS);
	return r;
}

/* One write that does not block for long: a reader who does not read must
 * not keep us from giving up. O_NONBLOCK is no way to it, because the open
 * file description of a standard output is shared with other processes. */
static ssize_t sink_write_once(struct sink *s, const void *buf, size_t len)
{
	struct iovec iov = {.iov_base = (void *)buf, .iov_len = len};
	struct pollfd p[2] = {{.fd = s->stop_fd, .events = POLLIN},
			      {.fd = s->fd, .events = POLLOUT}};
	ssize_t n;
	int r = sink_poll(s, p, 2, s->type == S_IFREG ? 0 : -1);
	if (r < 0)
		return r;
	if (s->type == S_IFREG)
		return (n = write(s->fd, buf, len)) < 0 ? -errno : n;
	if (s->type == S_IFSOCK)
		return (n = send(s->fd, buf, len, MSG_DONTWAIT | MSG_NOSIGNAL)) < 0 ? -errno : n;
	if (!s->no_nowait) {
		n = pwritev2(s->fd, &iov, 1, -1, RWF_NOWAIT);
		if (n >= 0 || (errno != EOPNOTSUPP && errno != EINVAL && errno != ENOSYS))
			return n < 0 ? -errno : n;
		s->no_nowait = true;
	}
	/* A pipe that polls writable takes this much without blocking. */
	if (s->type == S_IFIFO)
		len = MIN(len, (size_t)PIPE_BUF);
	return (n = write(s->fd, buf, len)) < 0 ? -errno : n;
}

static int sink_write_all(struct sink *s, const unsigned char *p, size_t len)
{
	size_t piece = MIB(4);
	uint64_t since = 0;

	if (s->rate_bytes_s)
		piece = MAX((size_t)4096, MIN(MIB(1), (size_t)(s->rate_bytes_s / 20)));
	while (len) {
		size_t want = MIN(len, piece);
		ssize_t n;
		int r;

		if (s->rate_bytes_s && (r = sink_pace(s)) < 0)
			return r;
		/* Being told to try again is part of it. */
		if (!since)
			since = now_ns();
		if ((r = sink_follow(s)) < 0)
			return r;
		n = sink_write_once(s, p, want);
		if (n == -EINTR || n == -EAGAIN)
			continue;
		if (n < 0)
			return (int)n;
		XXH3_128bits_update(s->hash, p, (size_t)n);
		s->longest_ns = MAX(s->longest_ns, now_ns() - since);
		since = 0;
		if (s->rate_bytes_s)
			s->next_ns += (uint64_t)((double)n * 1e9 / (double)s->rate_bytes_s);
		p += n;
		len -= (size_t)n;
		s->position += (uint64_t)n;
		s->total_bytes += (uint64_t)n;
		tell_flusher(s);
	}
	return 0;
}

/* Both signals are directed at the writing thread, so that what was not
 * pending before the write and is after it is ours to take back. */
int sink_write(struct sink *s, const void *buf, size_t len)
{
	sigset_t ours, before, pending;
	int r;

	sigemptyset(&ours);
	sigaddset(&ours, SIGPIPE);
	sigaddset(&ours, SIGXFSZ);
	sigpending(&pending);
	pthread_sigmask(SIG_BLOCK, &ours, &before);
	r = sink_write_all(s, buf, len);
	if (r == -EPIPE || r == -EFBIG) {
		int sig = r == -EPIPE ? SIGPIPE : SIGXFSZ;

		if (!sigismember(&pending, sig)) {
			sigemptyset(&ours);
			sigaddset(&ours, sig);
			sigtimedwait(&ours, NULL, &(struct timespec){0});
		}
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return r;
}

/*
 * Round trips of one client of a Redis server, at a fixed rate.
 *
 * Each request has its time on a schedule, and its latency is counted from
 * there: a server that stands still for 50 ms delays all the requests that
 * were due meanwhile, and they are all counted. A client that waits for each
 * answer before it looks at the clock would see one.
 *
 *   latency_probe [-r PER_SECOND] [-k KEYS] [-s SECONDS] SOCKET
 *
 * Runs until SIGTERM, SIGINT or SECONDS are over, then prints one line:
 *   requests=N p50_us=N p99_us=N p999_us=N max_us=N max_at_ns=CLOCK_REALTIME
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "common/io.h"
#include "common/util.h"

/* Latencies up to 64 s in buckets of 1/32 of a power of two. */
enum {
	SUB = 32,
	BUCKETS = 37 * SUB
};

static volatile sig_atomic_t stop;

static void on_signal(int sig)
{
	stop = 1;
}

static unsigned bucket_of(uint64_t ns)
{
	if (ns < SUB)
		return (unsigned)ns;
	unsigned log = 63 - (unsigned)__builtin_clzll(ns);
	unsigned b = (log - 4) * SUB + (unsigned)((ns >> (log - 5)) & (SUB - 1));

	return MIN(b, (unsigned)BUCKETS - 1);
}

static uint64_t bucket_top(unsigned b)
{
	if (b < SUB)
		return b;
	return ((uint64_t)SUB + b % SUB + 1) << (b / SUB - 1);
}

static uint64_t percentile(const uint64_t *h, uint64_t n, double p)
{
	uint64_t want = (uint64_t)((double)n * p + 0.5), seen = 0;

	for (unsigned b = 0; b < BUCKETS; b++) {
		seen += h[b];
		if (seen >= want && seen)
			return bucket_top(b);
	}
	return 0;
}

static int connect_to(const char *path)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || strlen(path) >= sizeof(sa.sun_path))
		return -1;
	strcpy(sa.sun_path, path);
	return connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 ? -1 : fd;
}

/* "+OK\r\n" or "+PONG\r\n". */
static int read_answer(int fd)
{
	char buf[256] = "";
	size_t len = 0;

	while (len < 2 || memcmp(buf + len - 2, "\r\n", 2) != 0) {
		ssize_t n = read(fd, buf + len, sizeof(buf) - len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0 || len + (size_t)n == sizeof(buf))
			return -1;
		len += (size_t)n;
	}
	return buf[0] == '+' ? 0 : -1;
}

static int request(int fd, uint64_t i, unsigned long keys)
{
	char buf[256], key[32];
	int n;

	if (i % 2) {
		n = snprintf(buf, sizeof(buf), "PING\r\n");
	} else {
		/* A stride that is prime walks over all keys in no order. */
		int k = snprintf(key, sizeof(key), "key:%lu", (unsigned long)(i * 7919u) % keys);
		n = snprintf(buf, sizeof(buf),
			     "*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$20\r\n%020" PRIu64 "\r\n", k, key,
			     i);
	}
	return io_write_full(fd, buf, (size_t)n) < 0 ? -1 : read_answer(fd);
}

int main(int argc, char **argv)
{
	unsigned long rate = 2000, keys = 1000000, seconds = 3600;

	for (int o; (o = getopt(argc, argv, "r:k:s:")) != -1;) {
		unsigned long v = optarg ? strtoul(optarg, NULL, 10) : 0;
		if (o == '?' || !v) {
			fprintf(stderr, "latency_probe: bad option\n");
			return 2;
		}
		*(o == 'r' ? &rate : o == 'k' ? &keys : &seconds) = v;
	}
	if (optind + 1 != argc) {
		fprintf(stderr, "usage: latency_probe [-r RATE] [-k KEYS] [-s SECONDS] SOCKET\n");
		return 2;
	}
	int fd = connect_to(argv[optind]);
	if (fd < 0) {
		fprintf(stderr, "latency_probe: cannot connect to '%s': %s\n", argv[optind],
			strerror(errno));
		return 1;
	}
	struct sigaction sa = {.sa_handler = on_signal};
	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGINT, &sa, NULL);

	static uint64_t h[BUCKETS];
	uint64_t n = 0, worst = 0, worst_at = 0, start = now_ns(), step = 1000000000u / rate;
	for (uint64_t i = 0; !stop && i * step < seconds * 1000000000ull; i++) {
		uint64_t due = start + i * step, now = now_ns();
		if (now < due) {
			struct timespec ts = {.tv_sec = (time_t)(due / 1000000000u),
					      .tv_nsec = (long)(due % 1000000000u)};
			if (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == EINTR)
				break;
		}
		/* Waking up late is this machine's doing, not the server's. */
		now = now_ns();
		uint64_t from = i && now - due > 2 * step ? due : now;
		if (request(fd, i, keys) < 0) {
			fprintf(stderr, "latency_probe: the server did not answer as it should\n");
			return 1;
		}
		uint64_t took = now_ns() - from;
		h[bucket_of(took)]++;
		n++;
		if (took > worst) {
			worst = took;
			worst_at = wall_ns();
		}
	}
	printf("requests=%" PRIu64 " p50_us=%" PRIu64 " p99_us=%" PRIu64 " p999_us=%" PRIu64
	       " max_us=%" PRIu64 " max_at_ns=%" PRIu64 "\n",
	       n, percentile(h, n, 0.5) / 1000, percentile(h, n, 0.99) / 1000,
	       percentile(h, n, 0.999) / 1000, worst / 1000, worst_at);
	return 0;
}

/*
 * Clients of a redis-server or memcached that know what every answer must
 * be: each owns its keys and remembers what it put there. Runs until SIGTERM
 * or --seconds; prints "ready" when every client has had an answer. At the
 * end: operations, latencies, "ok"; exit 1 when an answer was wrong, a
 * connection broke or an answer took more than --limit.
 *
 * One thread, epoll; one request at a time and client.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
	MAX_CLIENTS = 512,
	BUF = 16384,
	KEYS = 64,
	BUCKETS = 4096,
	MAX_LOG = 1 << 20
};

enum op {
	OP_SET,
	OP_GET,
	OP_INCR,
	OP_DEL,
	OP_RPUSH,
	OP_LLEN,
	OP_HSET,
	OP_HGET
};

struct client {
	int fd;
	unsigned id;
	uint64_t seed, start_ns, next_ns;
	bool busy;
	uint32_t value[KEYS]; /* number of the value last set; 0: none */
	uint64_t counter, list, field;
	char want[BUF], got[BUF];
	size_t nr_want, nr_got;
};

static struct client clients[MAX_CLIENTS];
static struct {
	const char *path, *log;
	unsigned port, nr, value_bytes, keys;
	bool memcached;
	double rate, seconds, limit_ms;
	uint64_t log_floor_ns;
} opt = {.nr = 50, .value_bytes = 100, .keys = KEYS, .limit_ms = 1000, .log_floor_ns = 500000};

static struct {
	uint64_t end_ns, ns;
} slow[MAX_LOG];
static uint64_t nr_slow, nr_ops, nr_errors, longest_ns;
static uint64_t histogram[BUCKETS]; /* of 2^(1/16) each */
static volatile sig_atomic_t ended;

static uint64_t clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

__attribute__((format(printf, 1, 2))) static void error(const char *fmt, ...)
{
	va_list ap;

	if (nr_errors++ > 10)
		return;
	fputs("kvload: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
}

static uint64_t next_random(struct client *c)
{
	uint64_t x = c->seed += 0x9e3779b97f4a7c15ull;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

static int connect_server(void)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	struct sockaddr_in in = {.sin_family = AF_INET,
				 .sin_port = htons((uint16_t)opt.port),
				 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(opt.path ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), r;

	if (opt.path) {
		snprintf(un.sun_path, sizeof(un.sun_path), "%s", opt.path);
		r = connect(fd, (struct sockaddr *)&un, sizeof(un));
	} else {
		r = connect(fd, (struct sockaddr *)&in, sizeof(in));
	}
	if (fd < 0 || r) {
		fprintf(stderr, "kvload: cannot connect: %s\n", strerror(errno));
		exit(2);
	}
	return fd;
}

/* The value that client and key had when it was set the nth time. */
static size_t make_value(char *buf, const struct client *c, unsigned key, uint32_t n)
{
	size_t len = (size_t)snprintf(buf, 64, "value-%u-%u-%u-", c->id, key, n);

	while (len < opt.value_bytes) {
		buf[len] = (char)('a' + (len * 7 + n) % 26);
		len++;
	}
	return len;
}

__attribute__((format(printf, 3, 4))) static void append(char *buf, size_t *len, const char *fmt,
							 ...)
{
	va_list ap;

	va_start(ap, fmt);
	*len += (size_t)vsnprintf(buf + *len, BUF - *len, fmt, ap);
	va_end(ap);
}

/* Request and expected answer of one operation; changes what c remembers. */
static size_t redis_request(struct client *c, enum op op, unsigned key, char *req)
{
	char value[8192];
	size_t len = 0, n;

	c->nr_want = 0;
	switch (op) {
	case OP_SET:
		n = make_value(value, c, key, ++c->value[key]);
		append(req, &len, "SET kv:%u:%u %.*s\r\n", c->id, key, (int)n, value);
		append(c->want, &c->nr_want, "+OK\r\n");
		break;
	case OP_GET:
		append(req, &len, "GET kv:%u:%u\r\n", c->id, key);
		if (c->value[key]) {
			n = make_value(value, c, key, c->value[key]);
			append(c->want, &c->nr_want, "$%zu\r\n%.*s\r\n", n, (int)n, value);
		} else {
			append(c->want, &c->nr_want, "$-1\r\n");
		}
		break;
	case OP_INCR:
		append(req, &len, "INCR count:%u\r\n", c->id);
		append(c->want, &c->nr_want, ":%" PRIu64 "\r\n", ++c->counter);
		break;
	case OP_DEL:
		append(req, &len, "DEL kv:%u:%u\r\n", c->id, key);
		append(c->want, &c->nr_want, ":%d\r\n", c->value[key] ? 1 : 0);
		c->value[key] = 0;
		break;
	case OP_RPUSH:
		append(req, &len, "RPUSH list:%u item-%" PRIu64 "\r\n", c->id, c->list);
		append(c->want, &c->nr_want, ":%" PRIu64 "\r\n", ++c->list);
		break;
	case OP_LLEN:
		append(req, &len, "LLEN list:%u\r\n", c->id);
		append(c->want, &c->nr_want, ":%" PRIu64 "\r\n", c->list);
		break;
	case OP_HSET:
		append(req, &len, "HSET hash:%u field %" PRIu64 "\r\n", c->id, c->field + 1);
		append(c->want, &c->nr_want, ":%d\r\n", c->field++ ? 0 : 1);
		break;
	case OP_HGET:
		append(req, &len, "HGET hash:%u field\r\n", c->id);
		if (c->field) {
			n = (size_t)snprintf(value, sizeof(value), "%" PRIu64, c->field);
			append(c->want, &c->nr_want, "$%zu\r\n%s\r\n", n, value);
		} else {
			append(c->want, &c->nr_want, "$-1\r\n");
		}
		break;
	}
	return len;
}

static size_t memcached_request(struct client *c, enum op op, unsigned key, char *req)
{
	char value[8192];
	size_t len = 0, n;

	c->nr_want = 0;
	switch (op) {
	case OP_SET:
	case OP_RPUSH:
		n = make_value(value, c, key, ++c->value[key]);
		append(req, &len, "set kv:%u:%u 0 0 %zu\r\n%.*s\r\n", c->id, key, n, (int)n, value);
		append(c->want, &c->nr_want, "STORED\r\n");
		break;
	case OP_INCR:
		if (!c->counter++) {
			append(req, &len, "set count:%u 0 0 1\r\n1\r\n", c->id);
			append(c->want, &c->nr_want, "STORED\r\n");
		} else {
			append(req, &len, "incr count:%u 1\r\n", c->id);
			append(c->want, &c->nr_want, "%" PRIu64 "\r\n", c->counter);
		}
		break;
	case OP_DEL:
		append(req, &len, "delete kv:%u:%u\r\n", c->id, key);
		append(c->want, &c->nr_want, c->value[key] ? "DELETED\r\n" : "NOT_FOUND\r\n");
		c->value[key] = 0;
		break;
	default:
		append(req, &len, "get kv:%u:%u\r\n", c->id, key);
		if (c->value[key]) {
			n = make_value(value, c, key, c->value[key]);
			append(c->want, &c->nr_want, "VALUE kv:%u:%u 0 %zu\r\n%.*s\r\n", c->id, key,
			       n, (int)n, value);
		}
		append(c->want, &c->nr_want, "END\r\n");
	}
	return len;
}

static void send_request(struct client *c)
{
	static const enum op mix[16] = {OP_SET,	 OP_GET,  OP_SET,  OP_GET,   OP_SET,  OP_GET,
					OP_SET,	 OP_GET,  OP_INCR, OP_RPUSH, OP_LLEN, OP_HSET,
					OP_HGET, OP_INCR, OP_DEL,  OP_SET};
	char req[BUF];
	uint64_t r = next_random(c);
	unsigned key = (unsigned)(r >> 8) % opt.keys;
	size_t len;

	len = (opt.memcached ? memcached_request : redis_request)(c, mix[r % 16], key, req);
	c->nr_got = 0;
	c->busy = true;
	c->start_ns = clock_ns();
	if (send(c->fd, req, len, MSG_NOSIGNAL) != (ssize_t)len) {
		error("client %u: cannot send: %s", c->id, strerror(errno));
		ended = 1;
	}
}

static void note_latency(uint64_t ns, uint64_t now)
{
	unsigned bucket = 0;

	for (uint64_t x = ns; x >= 32; x >>= 1)
		bucket += 16;
	bucket += (unsigned)(ns >> (bucket / 16)) & 31;
	histogram[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
	nr_ops++;
	if (ns > longest_ns)
		longest_ns = ns;
	if (ns <= opt.log_floor_ns)
		return;
	/* Of a millisecond the longest: a log of minutes has room for all. */
	if (nr_slow && now / 1000000 == slow[(nr_slow - 1) % MAX_LOG].end_ns / 1000000) {
		if (ns > slow[(nr_slow - 1) % MAX_LOG].ns)
			slow[(nr_slow - 1) % MAX_LOG].ns = ns;
		return;
	}
	slow[nr_slow % MAX_LOG].end_ns = now;
	slow[nr_slow++ % MAX_LOG].ns = ns;
}

static void receive(struct client *c)
{
	ssize_t n = recv(c->fd, c->got + c->nr_got, sizeof(c->got) - c->nr_got, MSG_DONTWAIT);
	uint64_t now, ns;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		error("client %u: connection lost: %s", c->id, n ? strerror(errno) : "closed");
		ended = 1;
		return;
	}
	c->nr_got += (size_t)n;
	if (c->nr_got < c->nr_want && !memcmp(c->got, c->want, c->nr_got))
		return;
	now = clock_ns();
	ns = now - c->start_ns;
	if (c->nr_got != c->nr_want || memcmp(c->got, c->want, c->nr_want) != 0) {
		error("client %u: answer '%.*s' instead of '%.*s'", c->id, (int)c->nr_got, c->got,
		      (int)c->nr_want, c->want);
		ended = 1;
	}
	if ((double)ns > opt.limit_ms * 1e6)
		error("client %u: an answer took %" PRIu64 " ms", c->id, ns / 1000000);
	note_latency(ns, now);
	c->busy = false;
}

/* Upper bound of the bucket, in microseconds. */
static double quantile(double q)
{
	uint64_t want = (uint64_t)((double)nr_ops * q), seen = 0;

	for (unsigned i = 0; i < BUCKETS; i++) {
		seen += histogram[i];
		if (seen > want) {
			/* The inverse of note_latency(). */
			unsigned shift = i < 32 ? 0 : (i - 16) / 16;

			return (double)((uint64_t)(i - shift * 16 + 1) << shift) / 1000;
		}
	}
	return (double)longest_ns / 1000;
}

static void on_signal(int sig)
{
	ended = 1;
}

static void parse(int argc, char **argv)
{
	static const struct option options[] = {
		{"unix", 1, NULL, 'u'},	   {"port", 1, NULL, 'p'},  {"memcached", 0, NULL, 'm'},
		{"clients", 1, NULL, 'c'}, {"value", 1, NULL, 'v'}, {"seconds", 1, NULL, 's'},
		{"rate", 1, NULL, 'r'},	   {"log", 1, NULL, 'l'},   {"limit", 1, NULL, 'L'},
		{NULL, 0, NULL, 0}};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'u')
			opt.path = optarg;
		else if (c == 'p')
			opt.port = (unsigned)atoi(optarg);
		else if (c == 'm')
			opt.memcached = true;
		else if (c == 'c')
			opt.nr = (unsigned)atoi(optarg);
		else if (c == 'v')
			opt.value_bytes = (unsigned)atoi(optarg);
		else if (c == 's')
			opt.seconds = atof(optarg);
		else if (c == 'r')
			opt.rate = atof(optarg);
		else if (c == 'l')
			opt.log = optarg;
		else if (c == 'L')
			opt.limit_ms = atof(optarg);
		else
			exit(2);
	}
	if ((!opt.path && !opt.port) || !opt.nr || opt.nr > MAX_CLIENTS || opt.value_bytes > 4096) {
		fprintf(stderr, "usage: kvload --unix PATH | --port N [--memcached] [--clients N]\n"
				"       [--value BYTES] [--rate N] [--seconds S] [--limit MS]\n"
				"       [--log FILE]\n");
		exit(2);
	}
}

static void run(int ep)
{
	double gap_ns = opt.rate > 0 ? 1e9 * opt.nr / opt.rate : 0;
	uint64_t start = clock_ns();
	bool said_ready = false;

	for (unsigned i = 0; i < opt.nr; i++)
		clients[i].next_ns = start + (uint64_t)(gap_ns * i / opt.nr);
	while (!ended && (opt.seconds <= 0 || (double)(clock_ns() - start) < opt.seconds * 1e9)) {
		struct epoll_event ev[MAX_CLIENTS];
		uint64_t now = clock_ns(), due = now + 1000000;
		struct timespec ts;
		int n;

		for (unsigned i = 0; i < opt.nr; i++) {
			struct client *c = &clients[i];

			if (c->busy)
				continue;
			if (c->next_ns <= now) {
				c->next_ns += (uint64_t)gap_ns;
				/* Never catch up: that would be a burst. */
				c->next_ns = c->next_ns < now ? now : c->next_ns;
				send_request(c);
			} else if (c->next_ns < due) {
				due = c->next_ns;
			}
		}
		ts = (struct timespec){0, (long)(due - now)};
		n = epoll_pwait2(ep, ev, (int)opt.nr, &ts, NULL);
		for (int i = 0; i < n; i++)
			receive(ev[i].data.ptr);
		if (!said_ready && nr_ops >= opt.nr) {
			said_ready = true;
			printf("ready\n");
			fflush(stdout);
		}
	}
}

static int write_log(void)
{
	FILE *f = fopen(opt.log, "w");

	if (!f)
		return -1;
	for (uint64_t i = nr_slow > MAX_LOG ? nr_slow - MAX_LOG : 0; i < nr_slow; i++)
		fprintf(f, "%" PRIu64 " %" PRIu64 "\n", slow[i % MAX_LOG].end_ns,
			slow[i % MAX_LOG].ns);
	return fclose(f);
}

int main(int argc, char **argv)
{
	int ep = epoll_create1(EPOLL_CLOEXEC);

	parse(argc, argv);
	signal(SIGTERM, on_signal);
	signal(SIGINT, on_signal);
	for (unsigned i = 0; i < opt.nr; i++) {
		struct epoll_event ev = {.events = EPOLLIN, .data.ptr = &clients[i]};

		clients[i].id = (unsigned)getpid() % 4000000 * 1000 + i;
		clients[i].seed = i + 1;
		clients[i].fd = connect_server();
		epoll_ctl(ep, EPOLL_CTL_ADD, clients[i].fd, &ev);
	}
	run(ep);
	/* Answers on their way when the end came are no errors. */
	if (opt.log && write_log())
		error("cannot write '%s': %s", opt.log, strerror(errno));
	printf("operations %" PRIu64 "\n", nr_ops);
	printf("latency us: p50 %.0f p99 %.0f p99.9 %.0f max %.0f\n", quantile(0.5), quantile(0.99),
	       quantile(0.999), (double)longest_ns / 1000);
	printf("errors %" PRIu64 "\n", nr_errors);
	printf("%s\n", nr_errors ? "failed" : "ok");
	return nr_errors ? 1 : 0;
}

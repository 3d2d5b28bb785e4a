/*
 * Clients of a redis-server or memcached that remember when they wrote what.
 *
 *	kvhistory --write FILE	clients write, each its own keys, one value after
 *				the other, until the server is gone (or SIGTERM):
 *				that is when FILE is written. Prints "ready" when
 *				every client has had an answer.
 *	kvhistory --check FILE --t0 NS
 *				as many clients connect and read every key: what
 *				it holds must be a value that it could have had
 *				at that instant (CLOCK_MONOTONIC).
 *
 * Runs with different numbers have different keys.
 *
 * Exit 1 when a value, or an answer, is not what it must be.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
	MAX_CLIENTS = 512,
	KEYS = 32,
	VALUE = 200,
	BUF = 1024
};

/* The nth value of a key; asked for at begin_ns, acknowledged at end_ns (0: never). */
struct write {
	unsigned client, key, n;
	uint64_t begin_ns, end_ns;
};

struct client {
	int fd;
	unsigned next_key, n[KEYS];
	bool busy, answered;
	size_t current; /* in writes[] */
	char got[BUF];
	size_t nr_got;
};

static struct client clients[MAX_CLIENTS];
static struct write *writes;
static size_t nr_writes, room;
static struct {
	const char *path, *write, *check;
	unsigned port, nr, run;
	uint64_t t0;
	bool memcached;
} opt = {.nr = 50};
static volatile sig_atomic_t ended;

static uint64_t clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

__attribute__((noreturn)) static void die(const char *what)
{
	fprintf(stderr, "kvhistory: cannot %s: %s\n", what, strerror(errno));
	exit(2);
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
	if (fd < 0 || r)
		die("connect");
	return fd;
}

static int make_value(char *buf, unsigned client, unsigned key, unsigned n)
{
	int len = snprintf(buf, VALUE, "%u:%u:%u:", client, key, n);

	for (; len < VALUE; len++)
		buf[len] = (char)('a' + (unsigned)(len + (int)n) % 26);
	return len;
}

static int make_name(char *buf, size_t size, unsigned client, unsigned key)
{
	return snprintf(buf, size, "kvh:%u:%u:%u", opt.run, client, key);
}

/* ---- writing ------------------------------------------------------------------- */

static struct write *new_write(void)
{
	if (nr_writes == room) {
		room = room * 2 + 65536;
		writes = realloc(writes, room * sizeof(*writes));
		if (!writes)
			die("remember");
	}
	return &writes[nr_writes++];
}

static void begin_write(struct client *c)
{
	unsigned id = (unsigned)(c - clients), key = c->next_key++ % KEYS;
	char value[VALUE], req[BUF];
	struct write *w = new_write();
	int len = make_value(value, id, key, ++c->n[key]);

	char name[64];
	int name_len = make_name(name, sizeof(name), id, key);
	if (opt.memcached)
		len = snprintf(req, sizeof(req), "set %s 0 0 %d\r\n%.*s\r\n", name, len, len,
			       value);
	else
		len = snprintf(req, sizeof(req), "*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%.*s\r\n",
			       name_len, name, len, len, value);
	*w = (struct write){.client = id, .key = key, .n = c->n[key], .begin_ns = clock_ns()};
	c->current = nr_writes - 1;
	c->nr_got = 0;
	c->busy = true;
	if (send(c->fd, req, (size_t)len, MSG_NOSIGNAL) != len)
		ended = 1;
}

static void end_write(struct client *c)
{
	const char *want = opt.memcached ? "STORED\r\n" : "+OK\r\n";
	ssize_t n = recv(c->fd, c->got + c->nr_got, sizeof(c->got) - c->nr_got, MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		ended = 1;
		return;
	}
	c->nr_got += (size_t)n;
	if (c->nr_got < strlen(want) && !memcmp(c->got, want, c->nr_got))
		return;
	if (c->nr_got != strlen(want) || memcmp(c->got, want, c->nr_got) != 0) {
		fprintf(stderr, "kvhistory: answer '%.*s'\n", (int)c->nr_got, c->got);
		exit(1);
	}
	writes[c->current].end_ns = clock_ns();
	c->busy = false;
	c->answered = true;
}

static int write_keys(void)
{
	struct pollfd p[MAX_CLIENTS];
	bool said = false;

	while (!ended) {
		unsigned answered = 0;

		for (unsigned i = 0; i < opt.nr; i++) {
			if (!clients[i].busy)
				begin_write(&clients[i]);
			p[i] = (struct pollfd){.fd = clients[i].fd, .events = POLLIN};
		}
		if (poll(p, opt.nr, -1) < 0 && errno != EINTR)
			die("poll");
		for (unsigned i = 0; i < opt.nr; i++) {
			if (p[i].revents)
				end_write(&clients[i]);
			answered += clients[i].answered;
		}
		if (!said && answered == opt.nr) {
			puts("ready");
			fflush(stdout);
			said = true;
		}
	}
	FILE *f = fopen(opt.write, "w");
	if (!f)
		die("write the history");
	for (size_t i = 0; i < nr_writes; i++)
		fprintf(f, "%u %u %u %" PRIu64 " %" PRIu64 "\n", writes[i].client, writes[i].key,
			writes[i].n, writes[i].begin_ns, writes[i].end_ns);
	if (fclose(f))
		die("write the history");
	printf("writes %zu\n", nr_writes);
	return 0;
}

/* ---- checking ------------------------------------------------------------------ */

/* What a key may hold: any of the values from to to; 0 is none. */
struct span {
	unsigned from, to;
};

static struct span spans[MAX_CLIENTS][KEYS];

static void read_history(void)
{
	FILE *f = fopen(opt.check, "r");
	struct write w;

	if (!f)
		die("read the history");
	while (fscanf(f, "%u %u %u %" SCNu64 " %" SCNu64, &w.client, &w.key, &w.n, &w.begin_ns,
		      &w.end_ns) == 5) {
		struct span *s = &spans[w.client % MAX_CLIENTS][w.key % KEYS];

		/* In order, for each key. */
		if (w.end_ns && w.end_ns < opt.t0)
			s->from = w.n;
		if (w.begin_ns <= opt.t0)
			s->to = w.n;
	}
	fclose(f);
}

/* One value, or none (0 bytes). */
static size_t read_key(int fd, unsigned client, unsigned key, char *buf)
{
	char req[128], name[64], *value;
	size_t got = 0, want;

	make_name(name, sizeof(name), client, key);
	int len = snprintf(req, sizeof(req), "%s %s\r\n", opt.memcached ? "get" : "GET", name);

	if (send(fd, req, (size_t)len, MSG_NOSIGNAL) != len)
		die("ask");
	for (;;) {
		ssize_t n = recv(fd, buf + got, BUF - 1 - got, 0);

		if (n <= 0)
			die("get an answer");
		got += (size_t)n;
		buf[got] = '\0';
		if (!strncmp(buf, "$-1\r\n", 5) || !strncmp(buf, "END\r\n", 5))
			return 0;
		value = strstr(buf, "\r\n");
		if (!value)
			continue;
		value += 2;
		want = VALUE + strlen(opt.memcached ? "\r\nEND\r\n" : "\r\n");
		if (got - (size_t)(value - buf) < want)
			continue;
		memmove(buf, value, VALUE);
		return VALUE;
	}
}

static int check_keys(void)
{
	unsigned wrong = 0, open = 0, keys = 0;

	read_history();
	for (unsigned i = 0; i < opt.nr; i++)
		for (unsigned k = 0; k < KEYS; k++) {
			char got[BUF], want[VALUE];
			const struct span *s = &spans[i][k];
			size_t len = read_key(clients[i].fd, i, k, got);
			bool ok = !len && !s->from;

			for (unsigned n = s->from ? s->from : 1; len && !ok && n <= s->to; n++) {
				make_value(want, i, k, n);
				ok = !memcmp(got, want, VALUE);
			}
			keys += len > 0;
			open += s->from != s->to;
			if (!ok && wrong++ < 10)
				fprintf(stderr,
					"kvhistory: key %u of client %u: '%.20s', should be value "
					"%u to %u\n",
					k, i, len ? got : "nothing", s->from, s->to);
		}
	printf("keys %u, of which %u were being written; %u wrong\n", keys, open, wrong);
	if (!keys)
		fprintf(stderr, "kvhistory: there are none\n");
	return wrong || !keys;
}

static void on_signal(int sig)
{
	ended = 1;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{"unix", 1, NULL, 'u'},	 {"port", 1, NULL, 'p'},  {"memcached", 0, NULL, 'm'},
		{"write", 1, NULL, 'w'}, {"check", 1, NULL, 'c'}, {"t0", 1, NULL, 't'},
		{"run", 1, NULL, 'r'},	 {NULL, 0, NULL, 0}};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'u')
			opt.path = optarg;
		else if (c == 'p')
			opt.port = (unsigned)atoi(optarg);
		else if (c == 'm')
			opt.memcached = true;
		else if (c == 'w')
			opt.write = optarg;
		else if (c == 'c')
			opt.check = optarg;
		else if (c == 't')
			opt.t0 = strtoull(optarg, NULL, 10);
		else if (c == 'r')
			opt.run = (unsigned)atoi(optarg);
		else
			return 2;
	}
	if ((!opt.path && !opt.port) || !opt.write == !opt.check) {
		fprintf(stderr, "usage: kvhistory --unix PATH | --port N [--memcached] [--run N]\n"
				"       --write FILE | --check FILE --t0 NS\n");
		return 2;
	}
	signal(SIGTERM, on_signal);
	for (unsigned i = 0; i < opt.nr; i++)
		clients[i].fd = connect_server();
	return opt.write ? write_keys() : check_keys();
}

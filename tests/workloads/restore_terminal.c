/*
 * Pseudo-terminals after a restore; see restorework.h.
 */
#include "restorework.h"

#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>

static int master, slave;

static void open_pty(void)
{
	must((master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC)) >= 0);
	must(grantpt(master) == 0 && unlockpt(master) == 0);
	must((slave = open(ptsname(master), O_RDWR | O_NOCTTY | O_CLOEXEC)) >= 0);
}

static void expect(int fd, const char *text)
{
	char buf[256];
	size_t got = 0;

	while (got < strlen(text)) {
		struct pollfd p = {.fd = fd, .events = POLLIN};

		must(poll(&p, 1, 60000) == 1);
		ssize_t n = read(fd, buf + got, strlen(text) - got);

		must(n > 0);
		got += (size_t)n;
	}
	must(memcmp(buf, text, got) == 0);
}

static void put(int fd, const char *text)
{
	must(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
}

static void pty(void)
{
	char name[64], now[64];

	open_pty();
	must(ptsname_r(master, name, sizeof(name)) == 0);
	work_wait();
	must(ptsname_r(master, now, sizeof(now)) == 0 && strcmp(name, now) == 0);
	must(isatty(master) && isatty(slave) && ttyname_r(slave, now, sizeof(now)) == 0);
	must(strcmp(name, now) == 0);
	/* Cooked: it echoes, edits lines, makes CR LF. */
	put(master, "lx\177ine\n");
	expect(slave, "line\n");
	expect(master, "lx\b \bine\r\n");
	put(slave, "out\n");
	expect(master, "out\r\n");
	must(close(slave) == 0);
	char c;

	must(read(master, &c, 1) < 0 && errno == EIO);
	must((slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC)) >= 0);
}

static void settings(void)
{
	struct termios t, now;

	open_pty();
	must(tcgetattr(slave, &t) == 0);
	t.c_iflag = IGNBRK | IXON | IUTF8;
	t.c_oflag = OPOST;
	t.c_lflag = ISIG | ECHOE | TOSTOP;
	t.c_cc[VINTR] = 5;
	t.c_cc[VMIN] = 3;
	t.c_cc[VTIME] = 9;
	cfsetspeed(&t, B19200);
	must(tcsetattr(slave, TCSANOW, &t) == 0 && tcgetattr(slave, &t) == 0);
	work_wait();
	must(tcgetattr(slave, &now) == 0);
	must_equal(now.c_iflag, t.c_iflag);
	must_equal(now.c_oflag, t.c_oflag);
	must_equal(now.c_cflag, t.c_cflag);
	must_equal(now.c_lflag, t.c_lflag);
	must(memcmp(now.c_cc, t.c_cc, sizeof(t.c_cc)) == 0);
	must(cfgetispeed(&now) == B19200 && cfgetospeed(&now) == B19200);
}

static void window(void)
{
	struct winsize w = {33, 121, 640, 480}, now;

	open_pty();
	must(ioctl(master, TIOCSWINSZ, &w) == 0);
	work_wait();
	must(ioctl(slave, TIOCGWINSZ, &now) == 0);
	must_equal(now.ws_row, 33);
	must_equal(now.ws_col, 121);
	must(now.ws_xpixel == 640 && now.ws_ypixel == 480);
}

static void packet_mode(void)
{
	int on = 1, locked = 0;

	open_pty();
	must(ioctl(master, TIOCPKT, &on) == 0);
	int other = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK);

	must(other >= 0);
	work_wait();
	on = 0;
	must(ioctl(master, TIOCGPKT, &on) == 0 && on == 1);
	put(slave, "x");
	char buf[8];

	must(read(master, buf, sizeof(buf)) == 2 && buf[0] == TIOCPKT_DATA && buf[1] == 'x');
	/* The other one was never unlocked. */
	must(ioctl(other, TIOCGPTLCK, &locked) == 0 && locked == 1);
	must(fcntl(other, F_GETFL) & O_NONBLOCK);
}

static volatile int interrupted;

static void on_interrupt(int signo)
{
	interrupted = signo;
}

static void controlling(void)
{
	struct sigaction act = {.sa_handler = on_interrupt};

	open_pty();
	if (ioctl(slave, TIOCSCTTY, 0))
		work_skip("the process leads no session, or has a terminal already");
	must(sigaction(SIGINT, &act, NULL) == 0 && sigaction(SIGWINCH, &act, NULL) == 0);
	must(tcgetpgrp(slave) == getpgrp());
	work_wait();
	must_equal(tcgetpgrp(slave), getpgrp());
	must_equal(tcgetsid(slave), getsid(0));
	int tty = open("/dev/tty", O_RDWR | O_CLOEXEC);

	must(tty >= 0);
	put(tty, "to the terminal");
	expect(master, "to the terminal");
	put(master, "\003");
	work_until(interrupted == SIGINT);
	must(ioctl(master, TIOCSWINSZ, &(struct winsize){10, 20, 0, 0}) == 0);
	work_until(interrupted == SIGWINCH);
}

static const struct work works[] = {
	{"pty", pty, "pseudo-terminals, both ends, under their name"},
	{"termios", settings, "terminal settings and special characters"},
	{"window-size", window, "the window size"},
	{"pty-packets", packet_mode, "packet mode and lock of a pseudo-terminal"},
	{"controlling", controlling, "the controlling terminal: interrupt key, window changes"},
};

int main(int argc, char **argv)
{
	return work_main(argc, argv, works, WORK_COUNT(works));
}

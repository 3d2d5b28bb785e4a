/*
 * throttle BYTES_PER_SECOND [FILE]: standard input to FILE or standard output,
 * no faster than that.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static uint64_t clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

int main(int argc, char **argv)
{
	static char buf[65536];
	double rate = argc > 1 ? atof(argv[1]) : 0;
	uint64_t start = clock_ns(), total = 0;
	int out = 1;
	ssize_t n = 0;

	if (rate <= 0 || argc > 3) {
		fprintf(stderr, "usage: throttle BYTES_PER_SECOND [FILE]\n");
		return 2;
	}
	if (argc == 3)
		out = open(argv[2], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	while (out >= 0 && (n = read(0, buf, sizeof(buf))) > 0) {
		uint64_t due;

		for (ssize_t done = 0, w; done < n; done += w) {
			w = write(out, buf + done, (size_t)(n - done));
			if (w < 0) {
				fprintf(stderr, "throttle: cannot write: %s\n", strerror(errno));
				return 1;
			}
		}
		total += (uint64_t)n;
		due = start + (uint64_t)((double)total / rate * 1e9);
		if (due > clock_ns()) {
			struct timespec ts = {(time_t)(due / 1000000000u),
					      (long)(due % 1000000000u)};

			clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL);
		}
	}
	return out < 0 || n < 0;
}

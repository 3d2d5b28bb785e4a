/*
 * giveback MIB [END|half]: so much memory from malloc(), in blocks of 256 KiB.
 * Freed at SIGUSR1, all at once, or the later half of it: "freed", then. At
 * SIGUSR2 it ends instead, by END: return, _exit or exec (of true(1)).
 */
#include <malloc.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	BLOCK = 256 << 10
};

int main(int argc, char **argv)
{
	size_t n = (size_t)(argc > 1 ? atoi(argv[1]) : 64) * 4, sum = 0;
	char **blocks = calloc(n, sizeof(*blocks));
	sigset_t set;
	int sig;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_BLOCK, &set, NULL);
	for (size_t i = 0; blocks && i < n; i++) {
		blocks[i] = malloc(BLOCK);
		if (!blocks[i])
			return 1;
		for (size_t k = 0; k < BLOCK; k += 8)
			memcpy(blocks[i] + k, &(uint64_t){(i + k) * 0x9e3779b97f4a7c15u}, 8);
	}
	puts("ready");
	fflush(stdout);
	sigwait(&set, &sig);
	if (sig == SIGUSR2 && argc > 2) {
		if (strcmp(argv[2], "_exit") == 0)
			_exit(0);
		if (strcmp(argv[2], "exec") == 0)
			execl("/bin/true", "true", (char *)NULL);
		return 0;
	}
	for (size_t i = argc > 2 && strcmp(argv[2], "half") == 0 ? n / 2 : 0; blocks && i < n; i++)
		free(blocks[i]);
	malloc_trim(0);
	puts("freed");
	fflush(stdout);
	/* Allocators that give back in their own time do so when they are called. */
	for (;;) {
		char *p = malloc(BLOCK / 16);

		if (p)
			sum += (size_t) * (volatile char *)p;
		free(p);
		usleep(1000);
	}
	return (int)sum;
}

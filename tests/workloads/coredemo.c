/*
 * A process of known stacks, for the test of core files: four threads in
 * functions of known names, variables of known values in every kind of
 * memory, vector registers and errno set. Prints "ready" when all stand where
 * they shall, and waits.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define MIB ((size_t)1 << 20)

struct pair {
	int number;
	char word[24];
};

int demo_data = 0x12345678; /* .data, written */
int demo_data_kept = 0x0badcafe; /* .data, as in the file */
char demo_data_far[64 * 1024] = "as in the file"; /* .data, most of it never written */
int demo_bss; /* .bss, written */
char demo_bss_zero[256 * 1024]; /* .bss, absent */
const char demo_rodata[] = "read only";
struct pair *demo_heap;
unsigned char *demo_sparse; /* 32 MiB or 1 TiB, three pages of it there */
unsigned char *demo_shared; /* shared anonymous */
unsigned char *demo_guard; /* PROT_NONE, with contents */
__thread int demo_tls;

static pthread_barrier_t barrier;
static volatile int over;

__attribute__((noinline)) static void stand_here(int n)
{
	pthread_barrier_wait(&barrier);
	while (!over)
		pause();
	printf("%d\n", n); /* not a tail call */
}

__attribute__((noinline)) static void inner(int depth, const char *name)
{
	volatile int at_depth = 1000 + depth;

	if (depth)
		inner(depth - 1, name);
	else
		stand_here(at_depth);
	at_depth = 0;
}

__attribute__((noinline)) static void *apple(void *arg)
{
	demo_tls = 11;
	inner(3, "apple");
	return arg;
}

__attribute__((noinline)) static void *banana(void *arg)
{
	demo_tls = 22;
	inner(1, "banana");
	return arg;
}

/* Spins, with values in registers that only the extended state holds. */
__attribute__((noinline)) static void *cherry(void *arg)
{
	demo_tls = 33;
	pthread_barrier_wait(&barrier);
	__asm__ volatile("movq %0, %%xmm0\n\tmovq %1, %%xmm15\n\t"
			 :
			 : "r"(0x1122334455667788), "r"(0x99aabbccddeeff00)
			 : "xmm0", "xmm15");
	__asm__ volatile("fldpi");
	if (__builtin_cpu_supports("avx2"))
		__asm__ volatile("vpbroadcastq %%xmm15, %%ymm7" : : : "xmm7");
	if (!over)
		__asm__ volatile("1: jmp 1b"); /* one instruction: always the same registers */
	return arg;
}

int main(int argc, char **argv)
{
	pthread_t t[3];
	struct pair on_stack = {.number = 77, .word = "on the stack"};

	prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
	demo_data = 0x5eed;
	demo_bss = 4711;
	demo_tls = 44;
	demo_heap = malloc(sizeof(*demo_heap));
	size_t sparse_bytes = argc > 1 && strcmp(argv[1], "sparse") == 0 ? MIB << 20 : MIB << 5;
	demo_sparse = mmap(NULL, sparse_bytes, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	demo_shared = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	demo_guard = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!demo_heap || demo_sparse == MAP_FAILED || demo_shared == MAP_FAILED ||
	    demo_guard == MAP_FAILED)
		return 1;
	demo_heap->number = 99;
	strcpy(demo_heap->word, "on the heap");
	demo_sparse[0] = 1;
	demo_sparse[sparse_bytes / 2 + 5] = 2;
	demo_sparse[sparse_bytes - 1] = 3;
	strcpy((char *)demo_shared + 4096, "shared");
	strcpy((char *)demo_guard, "behind the guard");
	mprotect(demo_guard, 16384, PROT_NONE);

	pthread_barrier_init(&barrier, NULL, 4);
	pthread_create(&t[0], NULL, apple, NULL);
	pthread_create(&t[1], NULL, banana, NULL);
	pthread_create(&t[2], NULL, cherry, NULL);
	pthread_barrier_wait(&barrier);
	usleep(50000); /* cherry fills its registers */
	errno = 42;
	puts("ready");
	fflush(stdout);
	while (on_stack.number == 77)
		pause();
	return demo_data_kept + demo_data_far[0] + demo_bss_zero[0] + demo_rodata[0];
}

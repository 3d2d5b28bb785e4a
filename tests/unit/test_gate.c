#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/gate.h"
#include "common/util.h"

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

#define PAGE ((uint64_t)AGENT_PAGE)

/* The gate's block; the agent itself is not here. */
struct agent_control agent_control __attribute__((visibility("hidden")));
static struct agent_control *const block = &agent_control;

static void make_block(void)
{
	*block = (struct agent_control){
		.magic = AGENT_MAGIC, .version = AGENT_VERSION, .size = sizeof(*block)};
	block->pid = getpid();
	block->beacon = (uintptr_t)mmap(NULL, AGENT_BEACON_PAGES * PAGE, PROT_READ,
					MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	gate_tell(block);
}

static uint64_t some_memory(size_t pages)
{
	char *p = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		       0);

	cr_assert(p != MAP_FAILED);
	memset(p, 'x', pages * PAGE);
	return (uintptr_t)p;
}

static bool mapped(uint64_t addr)
{
	unsigned char there;

	return mincore((void *)(uintptr_t)addr, PAGE, &there) == 0;
}

/* ---- a snapshotter ------------------------------------------------------------------------------- */

static struct {
	pthread_t thread;
	int fd, quit[2];
	unsigned nr;
	struct agent_slot asked[16];
	void (*before_answer)(const struct agent_slot *s);
	bool mute; /* answers without an acknowledgement */
} listener;

static void *listen_to_doorbells(void *arg)
{
	struct pollfd fds[] = {{listener.fd, POLLIN, 0}, {listener.quit[0], POLLIN, 0}};

	while (poll(fds, 2, -1) >= 0 && !fds[1].revents) {
		struct uffd_msg m;

		if (read(listener.fd, &m, sizeof(m)) != sizeof(m) ||
		    m.event != UFFD_EVENT_PAGEFAULT)
			continue;
		uint64_t page = ALIGN_DOWN((uint64_t)m.arg.pagefault.address, PAGE);
		struct agent_slot *s = &block->slots[(page - block->beacon) / PAGE - 1];

		if (listener.nr < ARRAY_SIZE(listener.asked))
			listener.asked[listener.nr++] = *s;
		if (listener.before_answer)
			listener.before_answer(s);
		if (!listener.mute)
			__atomic_store_n(&s->ack, s->request, __ATOMIC_SEQ_CST);
		struct uffdio_zeropage z = {.range = {page, PAGE}};
		ioctl(listener.fd, UFFDIO_ZEROPAGE, &z);
	}
	return NULL;
}

static void start_listener(void)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE};

	make_block();
	listener.fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (listener.fd < 0)
		cr_skip_test("no userfaultfd");
	cr_assert_eq(ioctl(listener.fd, UFFDIO_API, &api), 0);
	struct uffdio_register r = {.range = {block->beacon + PAGE, AGENT_SLOTS * PAGE},
				    .mode = UFFDIO_REGISTER_MODE_MISSING};
	cr_assert_eq(ioctl(listener.fd, UFFDIO_REGISTER, &r), 0);
	cr_assert_eq(pipe(listener.quit), 0);
	cr_assert_eq(pthread_create(&listener.thread, NULL, listen_to_doorbells, NULL), 0);
	block->active = 1234;
}

static void stop_listener(void)
{
	close(listener.quit[1]);
	pthread_join(listener.thread, NULL);
	close(listener.fd);
}

static void asked(unsigned i, uint64_t start, uint64_t end)
{
	cr_assert_lt(i, listener.nr);
	cr_assert_eq(listener.asked[i].what, AGENT_ASK_RANGE);
	cr_assert_eq(listener.asked[i].start, start);
	cr_assert_eq(listener.asked[i].end, end);
	cr_assert_eq(listener.asked[i].session, block->active);
	cr_assert_neq(listener.asked[i].owner, 0u);
}

/* ---- nothing is active --------------------------------------------------------------------------- */

Test(gate, a_call_is_made_when_nothing_is_active)
{
	make_block();
	uint64_t p = some_memory(4);

	cr_assert_eq(gate_make(SYS_munmap, p, 4 * PAGE, 0, 0, 0, 0), 0);
	cr_assert_not(mapped(p));
	cr_assert_eq(block->nr_requests, 0u);
}

Test(gate, a_failure_is_returned_as_the_kernel_gives_it)
{
	make_block();
	cr_assert_eq(gate_make(SYS_munmap, 1, PAGE, 0, 0, 0, 0), -EINVAL);
}

Test(gate, all_six_arguments_reach_the_kernel)
{
	make_block();
	int fd = memfd_create("gate", 0);
	cr_assert_eq(ftruncate(fd, 4 * (off_t)PAGE), 0);
	cr_assert_eq(pwrite(fd, "here", 4, 2 * (off_t)PAGE), 4);
	int64_t p = gate_make(SYS_mmap, 0, PAGE, PROT_READ, MAP_PRIVATE, (uint64_t)fd, 2 * PAGE);

	cr_assert_gt(p, 0);
	cr_assert_eq(memcmp((void *)(uintptr_t)p, "here", 4), 0);
}

Test(gate, the_critical_instructions_end_with_the_system_call)
{
	make_block();
	const unsigned char *end = (const unsigned char *)(uintptr_t)block->critical_end;

	cr_assert_lt(block->critical_start, block->critical_end);
	cr_assert_leq(block->critical_end - block->critical_start, 16u);
	cr_assert_eq(memcmp(end - 2, "\x0f\x05", 2), 0);
}

/* ---- nobody listens ------------------------------------------------------------------------------ */

Test(gate, a_dead_snapshotter_is_forgotten)
{
	make_block();
	block->active = 77;
	uint64_t p = some_memory(1);

	cr_assert_eq(gate_make(SYS_munmap, p, PAGE, 0, 0, 0, 0), 0);
	cr_assert_not(mapped(p));
	cr_assert_eq(block->active, 0u);
	for (unsigned i = 0; i < AGENT_SLOTS; i++)
		cr_assert_eq(block->slots[i].owner, 0u);
}

Test(gate, an_answer_without_acknowledgement_is_none)
{
	start_listener();
	listener.mute = true;
	uint64_t p = some_memory(1);

	cr_assert_eq(gate_make(SYS_munmap, p, PAGE, 0, 0, 0, 0), 0);
	cr_assert_eq(block->active, 0u);
	stop_listener();
}

Test(gate, slots_of_nobody_are_taken_back)
{
	make_block();
	block->active = 78;
	/* As a child finds them whose parent had many threads. */
	for (unsigned i = 0; i < AGENT_SLOTS; i++)
		block->slots[i] = (struct agent_slot){.owner = i + 1, .session = 78, .request = i};
	uint64_t p = some_memory(1);

	cr_assert_eq(gate_make(SYS_munmap, p, PAGE, 0, 0, 0, 0), 0);
	cr_assert_eq(block->active, 0u);
}

Test(gate, a_child_finds_out_that_it_has_a_copy)
{
	start_listener();
	uint64_t p = some_memory(1);
	pid_t child = fork();

	if (child == 0)
		_exit(gate_make(SYS_munmap, p, PAGE, 0, 0, 0, 0) != 0 || mapped(p) ||
		      block->active != 0);
	int status;
	cr_assert_eq(waitpid(child, &status, 0), child);
	cr_assert_eq(status, 0);
	cr_assert_eq(block->active, 1234u);
	stop_listener();
}

/* ---- somebody does ------------------------------------------------------------------------------- */

static uint64_t kept_until_answered;

static void is_there(const struct agent_slot *s)
{
	cr_assert(mapped(kept_until_answered));
	cr_assert_eq(*(const char *)(uintptr_t)kept_until_answered, 'x');
}

Test(gate, memory_stays_until_the_answer)
{
	start_listener();
	kept_until_answered = some_memory(3);
	listener.before_answer = is_there;
	cr_assert_eq(gate_make(SYS_munmap, kept_until_answered, 2 * PAGE + 1, 0, 0, 0, 0), 0);
	cr_assert_not(mapped(kept_until_answered));
	cr_assert_eq(listener.nr, 1u);
	asked(0, kept_until_answered, kept_until_answered + 3 * PAGE);
	stop_listener();
}

Test(gate, more_asks_than_doorbells_are_answered)
{
	start_listener();
	for (unsigned i = 0; i < 3 * AGENT_SLOTS; i++) {
		uint64_t p = some_memory(1);
		cr_assert_eq(gate_make(SYS_munmap, p, PAGE, 0, 0, 0, 0), 0);
	}
	cr_assert_eq(block->active, 1234u);
	cr_assert_eq(block->nr_requests, 3u * AGENT_SLOTS);
	stop_listener();
}

Test(gate, discarding_advice_is_asked_for_and_no_other)
{
	static const int discards[] = {MADV_DONTNEED, MADV_FREE, 24 /* DONTNEED_LOCKED */};
	static const int others[] = {MADV_WILLNEED, MADV_NORMAL, MADV_DONTFORK};

	start_listener();
	uint64_t p = some_memory(4);
	for (unsigned i = 0; i < ARRAY_SIZE(discards); i++) {
		gate_make(SYS_madvise, p, 2 * PAGE, (uint64_t)discards[i], 0, 0, 0);
		cr_assert_eq(listener.nr, i + 1);
		asked(i, p, p + 2 * PAGE);
	}
	for (unsigned i = 0; i < ARRAY_SIZE(others); i++)
		cr_assert_eq(gate_make(SYS_madvise, p, PAGE, (uint64_t)others[i], 0, 0, 0), 0);
	cr_assert_eq(listener.nr, ARRAY_SIZE(discards));
	stop_listener();
}

Test(gate, a_mapping_over_another_is_asked_for)
{
	start_listener();
	uint64_t p = some_memory(4);
	const uint64_t rw = PROT_READ | PROT_WRITE, anon = MAP_PRIVATE | MAP_ANONYMOUS;

	cr_assert_gt(gate_make(SYS_mmap, 0, PAGE, rw, anon, (uint64_t)-1, 0), 0);
	cr_assert_eq(
		gate_make(SYS_mmap, p, PAGE, rw, anon | 0x100000 /* NOREPLACE */, (uint64_t)-1, 0),
		-EEXIST);
	cr_assert_eq(listener.nr, 0u);
	cr_assert_eq(gate_make(SYS_mmap, p, 2 * PAGE, rw, anon | MAP_FIXED, (uint64_t)-1, 0),
		     (int64_t)p);
	cr_assert_eq(listener.nr, 1u);
	asked(0, p, p + 2 * PAGE);
	stop_listener();
}

Test(gate, of_what_mremap_moves_nothing_is_asked_for)
{
	start_listener();
	uint64_t p = some_memory(4), to = some_memory(8);
	int64_t grown = gate_make(SYS_mremap, p, 4 * PAGE, 64 * PAGE, MREMAP_MAYMOVE, 0, 0);

	cr_assert_gt(grown, 0);
	cr_assert_eq(listener.nr, 0u);
	/* Its end, and what lies where it goes. */
	cr_assert_eq(gate_make(SYS_mremap, (uint64_t)grown, 64 * PAGE, 2 * PAGE,
			       MREMAP_MAYMOVE | MREMAP_FIXED, to, 0),
		     (int64_t)to);
	cr_assert_eq(listener.nr, 2u);
	asked(0, (uint64_t)grown + 2 * PAGE, (uint64_t)grown + 64 * PAGE);
	asked(1, to, to + 2 * PAGE);
	stop_listener();
}

static int64_t move(uint64_t from, uint64_t len, uint64_t to)
{
	const struct gate_call call = {SYS_mremap,
				       {from, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to}};

	return gate_mremap(block, &call);
}

static int64_t grow(uint64_t from, uint64_t len)
{
	const struct gate_call call = {SYS_mremap, {from, len, 2 * len, MREMAP_MAYMOVE}};

	return gate_mremap(block, &call);
}

static void *make_whole(void *arg)
{
	usleep(20000);
	mprotect(arg, PAGE, PROT_READ | PROT_WRITE);
	return NULL;
}

Test(gate, a_mapping_in_two_parts_is_grown_when_it_is_one)
{
	make_block();
	uint64_t p = some_memory(2);
	pthread_t tid;

	mprotect((void *)(uintptr_t)p, PAGE, PROT_READ);
	cr_assert_eq(grow(p, 2 * PAGE), -EFAULT);
	block->at_work = 1;
	pthread_create(&tid, NULL, make_whole, (void *)(uintptr_t)p);
	cr_assert_gt(grow(p, 2 * PAGE), 0);
	cr_assert_eq(block->at_work, AGENT_MOVER_WAITS);
	pthread_join(tid, NULL);
}

Test(gate, what_is_not_there_is_not_grown)
{
	make_block();
	uint64_t p = some_memory(1);

	munmap((void *)(uintptr_t)p, PAGE);
	block->at_work = 1;
	cr_assert_eq(grow(p, PAGE), -EFAULT);
	/* And that without delay from then on. */
	cr_assert_eq(block->at_work, 0u);
}

Test(gate, a_lock_that_nobody_gives_back_does_not_keep_a_move)
{
	start_listener();
	uint64_t p = some_memory(1), to = some_memory(1);

	block->moving = 1;
	cr_assert_eq(move(p, PAGE, to), (int64_t)to);
	cr_assert_eq(block->moving, 0u);
	stop_listener();
}

Test(gate, only_a_break_that_goes_down_is_asked_for)
{
	start_listener();
	uint64_t old = (uint64_t)syscall(SYS_brk, 0), now = ALIGN_UP(old, PAGE) + 4 * PAGE;

	cr_assert_eq(gate_make(SYS_brk, now, 0, 0, 0, 0, 0), (int64_t)now);
	cr_assert_eq(listener.nr, 0u);
	cr_assert_eq(gate_make(SYS_brk, now - 2 * PAGE, 0, 0, 0, 0, 0), (int64_t)(now - 2 * PAGE));
	cr_assert_eq(listener.nr, 1u);
	asked(0, now - 2 * PAGE, now);
	stop_listener();
}

Test(gate, an_impossible_range_is_left_to_the_kernel)
{
	start_listener();
	cr_assert_eq(gate_make(SYS_munmap, PAGE, UINT64_MAX, 0, 0, 0, 0), -EINVAL);
	cr_assert_eq(gate_make(SYS_munmap, UINT64_MAX - PAGE + 1, 2 * PAGE, 0, 0, 0, 0), -EINVAL);
	cr_assert_eq(listener.nr, 0u);
	stop_listener();
}

static void next_session(const struct agent_slot *s)
{
	if (listener.nr == 1)
		__atomic_store_n(&block->active, 5678, __ATOMIC_SEQ_CST);
}

Test(gate, another_snapshot_is_asked_again)
{
	start_listener();
	listener.before_answer = next_session;
	uint64_t p = some_memory(1);

	cr_assert_eq(gate_make(SYS_munmap, p, PAGE, 0, 0, 0, 0), 0);
	cr_assert_eq(listener.nr, 2u);
	cr_assert_eq(listener.asked[0].session, 1234u);
	cr_assert_eq(listener.asked[1].session, 5678u);
	stop_listener();
}

static void steal(const struct agent_slot *s)
{
	if (listener.nr > 1)
		return;
	struct agent_slot *mine = &block->slots[s - block->slots];
	mine->start += PAGE;
}

Test(gate, an_answer_to_something_else_is_none)
{
	start_listener();
	listener.before_answer = steal;
	uint64_t p = some_memory(2);

	cr_assert_eq(gate_make(SYS_munmap, p, 2 * PAGE, 0, 0, 0, 0), 0);
	cr_assert_eq(listener.nr, 2u);
	asked(1, p, p + 2 * PAGE);
	stop_listener();
}

Test(gate, the_end_waits_only_if_wanted_and_only_in_the_process_itself)
{
	start_listener();
	gate_exit();
	cr_assert_eq(listener.nr, 0u);
	block->flags = AGENT_ON_EXIT_WAIT;
	block->pid = 1;
	gate_exit();
	cr_assert_eq(listener.nr, 0u);
	block->pid = getpid();
	gate_exit();
	cr_assert_eq(listener.nr, 1u);
	cr_assert_eq(listener.asked[0].what, AGENT_ASK_ALL);
	block->flags = 0;
	stop_listener();
}

#include <criterion/criterion.h>
#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "process/filters.h"

Test(filters, calls_that_the_kernel_answers_pass)
{
	const struct filter_call *calls;
	enum filter_result result[64];
	size_t n = filters_target_calls(&calls);

	cr_assert(n > 10 && n <= 64);
	filters_try(calls, n, result);
	for (size_t i = 0; i < n; i++) {
		cr_expect(result[i] == FILTER_PASSED || result[i] == FILTER_REFUSED, "%s: %d",
			  calls[i].name, (int)result[i]);
	}
	cr_expect_str_eq(calls[1].name, "clone");
	cr_expect_eq(result[1], FILTER_PASSED);
}

Test(filters, a_call_that_fails_otherwise_than_expected_is_refused)
{
	static const struct filter_call calls[] = {
		{"none", 100000, {0}, EINVAL},
		{"getpid", SYS_getpid, {0}, 0},
		{"getpid", SYS_getpid, {0}, EPERM},
		{"close", SYS_close, {(uint64_t)-1}, EBADF},
	};
	enum filter_result result[4];

	filters_try(calls, 4, result);
	cr_expect_eq(result[0], FILTER_REFUSED);
	cr_expect_eq(result[1], FILTER_PASSED);
	cr_expect_eq(result[2], FILTER_REFUSED);
	cr_expect_eq(result[3], FILTER_PASSED);
}

Test(filters, the_child_that_tries_is_gone_afterwards)
{
	const struct filter_call *calls;
	enum filter_result result[64];
	size_t n = filters_target_calls(&calls);

	filters_try(calls, n, result);
	cr_expect_eq(syscall(SYS_wait4, -1, NULL, 1 /* WNOHANG */, NULL), -1);
	cr_expect_eq(errno, ECHILD);
}

Test(filters, a_process_is_under_no_filter_but_ours)
{
	struct usnap_err err = {0};
	struct filters_seen seen;
	struct target t;

	cr_assert_eq(target_open(&t, getppid(), &err), 0, "%s", err.text);
	cr_expect_eq(filters_look(&t, &seen), 0);
	cr_expect(!seen.ours || seen.any);
	target_close(&t);
}

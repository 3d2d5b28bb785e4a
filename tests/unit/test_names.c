#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "cli/names.h"

static bool fits(const char *text, const char *unit, const char *cgroup)
{
	char copy[1024], full[NAMES_UNIT_MAX + 1];

	snprintf(copy, sizeof(copy), "%s", text);
	if (unit)
		names_unit(unit, full);
	return names_fit_cgroup(copy, unit ? full : NULL, cgroup);
}

Test(names, a_unit_is_found_in_version_2)
{
	const char *text = "0::/system.slice/redis-server.service\n";

	cr_assert(fits(text, "redis-server", NULL));
	cr_assert(fits(text, "redis-server.service", NULL));
	cr_assert(fits(text, "system.slice", NULL));
	cr_assert_not(fits(text, "redis-server.scope", NULL));
	cr_assert_not(fits("0::/\n", "redis-server", NULL));
	cr_assert_not(fits("", "redis-server", NULL));
}

Test(names, a_unit_is_found_in_version_1)
{
	const char *text = "12:pids:/system.slice/redis-server.service\n"
			   "11:cpu,cpuacct:/\n"
			   "1:name=systemd:/system.slice/redis-server.service\n"
			   "0::/\n";

	cr_assert(fits(text, "redis-server", NULL));
	cr_assert_not(fits("11:cpu,cpuacct:/\n1:name=systemd:/\n", "cpuacct", NULL));
	cr_assert_not(fits(text, "systemd", NULL));
}

Test(names, a_part_of_the_name_of_another_unit_does_not_fit)
{
	const char *text = "0::/system.slice/redis-server@one.service\n";

	cr_assert(fits(text, "redis-server@one", NULL));
	cr_assert_not(fits(text, "redis-server@on", NULL));
	cr_assert_not(fits(text, "redis-server", NULL));
	cr_assert_not(fits(text, "server@one", NULL));
	cr_assert_not(fits(text, "one", NULL));
	cr_assert(fits("0::/system.slice/x.service.d/x.service\n", "x", NULL));
	cr_assert_not(fits("0::/system.slice/x.service.d\n", "x", NULL));
}

Test(names, groups_below_that_of_the_unit_belong_to_it)
{
	const char *text = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/"
			   "app-gnome-x\\x2dy@1.service/payload\n";

	cr_assert(fits(text, "user@1000", NULL));
	cr_assert(fits(text, "app.slice", NULL));
	cr_assert(fits(text, "app-gnome-x\\x2dy@1", NULL));
	cr_assert_not(fits(text, "app-gnome-x-y@1", NULL));
	cr_assert_not(fits(text, "user@100", NULL));
	cr_assert_not(fits(text, "payload", NULL));
}

Test(names, what_systemd_escapes_for_the_kernel_is_found)
{
	cr_assert(fits("0::/system.slice/_memory.service\n", "memory", NULL));
	cr_assert(fits("0::/system.slice/__x.service\n", "_x", NULL));
	cr_assert_not(fits("0::/system.slice/a_memory.service\n", "memory", NULL));
}

Test(names, a_group_includes_what_is_below)
{
	const char *text = "3:cpu:/other\n0::/a/b\n";

	cr_assert(fits(text, NULL, "/a"));
	cr_assert(fits(text, NULL, "/a/b/"));
	cr_assert(fits(text, NULL, "/other"));
	cr_assert_not(fits(text, NULL, "/a/b/c"));
	cr_assert_not(fits(text, NULL, "/ot"));
	/* Both must. */
	cr_assert_not(fits(text, "x", "/a"));
	cr_assert(fits("0::/a/x.service\n", "x", "/a"));
}

static void is_unit(const char *unit, const char *full)
{
	char ret[NAMES_UNIT_MAX + 1];

	names_unit(unit, ret);
	cr_assert_str_eq(ret, full);
}

Test(names, a_dot_does_not_make_a_type)
{
	is_unit("redis-server", "redis-server.service");
	is_unit("redis-server.service", "redis-server.service");
	is_unit("tarantool@my.app", "tarantool@my.app.service");
	is_unit("tarantool@my.app.service", "tarantool@my.app.service");
	is_unit("session-2.scope", "session-2.scope");
}

static void is_named(const char *unit, const char *name)
{
	char ret[STORE_NAME_MAX + 1];

	names_of_unit(unit, ret);
	cr_assert_str_eq(ret, name);
	cr_assert(store_name_valid(ret));
}

Test(names, every_unit_has_a_name_in_the_store)
{
	is_named("redis-server", "redis-server");
	is_named("redis-server.service", "redis-server");
	is_named("tarantool@x", "tarantool-x");
	is_named("tarantool@my.app", "tarantool-my.app");
	is_named("postgresql@15-main.service", "postgresql-15-main");
	is_named("a\\x2db", "a-x2db");
	is_named("x.scope", "x.scope");
}

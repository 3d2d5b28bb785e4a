#include "restore/rcreds.h"

#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "common/io.h"
#include "common/util.h"
#include "restore/rjson.h"

#define NO_ID ((uint32_t)-1)
#define GROUPS_MAX 65536 /* NGROUPS_MAX */
#define CAP(n) ((uint64_t)1 << (n))

/* ---- parsed
 * -----------------------------------------------------------------------------
 */

static int parse_id(const json_t *v, uint32_t *ret)
{
	json_int_t i = json_integer_value(v);

	if (!json_is_integer(v) || i < 0 || i >= NO_ID)
		return -EBADMSG;
	*ret = (uint32_t)i;
	return 0;
}

static int parse_ids(const json_t *o, const char *key, uint32_t ret[4], struct usnap_err *err)
{
	json_t *list;
	int r = rjson_array(o, key, 4, &list, err);

	if (r < 0)
		return r;
	for (size_t i = 0; i < 4; i++)
		if (json_array_size(list) != 4 || parse_id(json_array_get(list, i), &ret[i]) < 0)
			return usnap_fail(err, -EBADMSG,
					  "cannot restore: %s of process.json is no list of four",
					  key);
	return 0;
}

static int compare_ids(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static int parse_groups(struct rcreds *c, const json_t *o, struct usnap_err *err)
{
	json_t *list;
	int r = rjson_array(o, "groups", GROUPS_MAX, &list, err);

	if (r < 0 || !list || !json_array_size(list))
		return r;
	c->nr_groups = json_array_size(list);
	c->groups = calloc(c->nr_groups, sizeof(*c->groups));
	if (!c->groups)
		return usnap_fail_errno(err, -ENOMEM, "cannot restore");
	for (size_t i = 0; i < c->nr_groups; i++)
		if (parse_id(json_array_get(list, i), &c->groups[i]) < 0)
			return usnap_fail(err, -EBADMSG,
					  "cannot restore: groups of process.json holds no groups");
	qsort(c->groups, c->nr_groups, sizeof(*c->groups), compare_ids);
	return 0;
}

int rcreds_parse(struct rcreds *ret, const json_t *o, struct usnap_err *err)
{
	int r;

	*ret = (struct rcreds){.securebits = -1};
	if (!json_is_object(o))
		return 0;
	if ((r = parse_ids(o, "uid", ret->uid, err)) < 0 ||
	    (r = parse_ids(o, "gid", ret->gid, err)) < 0 || (r = parse_groups(ret, o, err)) < 0 ||
	    (r = rjson_word_or(o, "cap_inheritable", 0, &ret->inheritable, err)) < 0 ||
	    (r = rjson_word_or(o, "cap_permitted", 0, &ret->permitted, err)) < 0 ||
	    (r = rjson_word_or(o, "cap_effective", 0, &ret->effective, err)) < 0 ||
	    (r = rjson_word_or(o, "cap_bounding", 0, &ret->bounding, err)) < 0 ||
	    (r = rjson_word_or(o, "cap_ambient", 0, &ret->ambient, err)) < 0 ||
	    (r = rjson_bool_or(o, "no_new_privs", false, &ret->no_new_privs, err)) < 0) {
		rcreds_free(ret);
		return r;
	}
	uint64_t bits = 0;
	const json_t *s = json_object_get(o, "securebits");
	if (s && !json_is_null(s)) {
		r = rjson_word(o, "securebits", &bits, err);
		if (r == 0 && bits > 0xfff)
			r = usnap_fail(
				err, -EBADMSG,
				"cannot restore: securebits of process.json is out of range");
		ret->securebits = (int64_t)bits;
	}
	/* What no kernel gives: setting it would fail half-way. */
	if (r == 0 && (ret->effective & ~ret->permitted ||
		       ret->ambient & ~(ret->permitted & ret->inheritable)))
		r = usnap_fail(err, -EBADMSG,
			       "cannot restore: the capabilities of process.json contradict each "
			       "other");
	ret->known = r == 0;
	if (r < 0)
		rcreds_free(ret);
	return r;
}

void rcreds_free(struct rcreds *c)
{
	free(c->groups);
	c->groups = NULL;
	c->nr_groups = 0;
}

/* ---- our own
 * ----------------------------------------------------------------------------
 */

static void own_sets(struct rcreds *c)
{
	for (int cap = 0; cap < 64; cap++) {
		int in = prctl(PR_CAPBSET_READ, cap, 0, 0, 0);

		if (in < 0)
			break;
		c->bounding |= in ? CAP(cap) : 0;
		if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, cap, 0, 0) == 1)
			c->ambient |= CAP(cap);
	}
}

int rcreds_own(struct rcreds *ret)
{
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct d[2] = {{0}};
	gid_t some[1024];

	*ret = (struct rcreds){.known = true};
	if (getresuid(&ret->uid[0], &ret->uid[1], &ret->uid[2]) < 0 ||
	    getresgid(&ret->gid[0], &ret->gid[1], &ret->gid[2]) < 0 ||
	    syscall(SYS_capget, &h, d) < 0)
		return -errno;
	ret->uid[3] = (uint32_t)setfsuid(NO_ID);
	ret->gid[3] = (uint32_t)setfsgid(NO_ID);
	ret->inheritable = d[0].inheritable | (uint64_t)d[1].inheritable << 32;
	ret->permitted = d[0].permitted | (uint64_t)d[1].permitted << 32;
	ret->effective = d[0].effective | (uint64_t)d[1].effective << 32;
	ret->no_new_privs = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1;
	ret->securebits = prctl(PR_GET_SECUREBITS, 0, 0, 0, 0);
	own_sets(ret);

	int n = getgroups((int)ARRAY_SIZE(some), some);
	if (n < 0)
		return -errno;
	ret->groups = calloc((size_t)n + 1, sizeof(*ret->groups));
	if (!ret->groups)
		return -ENOMEM;
	memcpy(ret->groups, some, (size_t)n * sizeof(*some));
	ret->nr_groups = (size_t)n;
	qsort(ret->groups, ret->nr_groups, sizeof(*ret->groups), compare_ids);
	return 0;
}

/* ---- compared
 * ---------------------------------------------------------------------------
 */

static bool same_groups(const struct rcreds *a, const struct rcreds *b)
{
	return a->nr_groups == b->nr_groups &&
	       (!a->nr_groups || !memcmp(a->groups, b->groups, a->nr_groups * sizeof(*a->groups)));
}

static bool same_ids(const uint32_t a[4], const uint32_t b[4])
{
	return !memcmp(a, b, 4 * sizeof(*a));
}

bool rcreds_equal(const struct rcreds *a, const struct rcreds *b)
{
	return same_ids(a->uid, b->uid) && same_ids(a->gid, b->gid) && same_groups(a, b) &&
	       a->inheritable == b->inheritable && a->permitted == b->permitted &&
	       a->effective == b->effective && a->bounding == b->bounding &&
	       a->ambient == b->ambient && a->no_new_privs == b->no_new_privs &&
	       (a->securebits < 0 || b->securebits < 0 || a->securebits == b->securebits);
}

/* In a user namespace that an ordinary user made: groups are as they are, and
 * those that it does not map cannot even be told. */
static bool groups_are_fixed(void)
{
	cleanup_free char *text = NULL;

	return io_read_file_at(-1, "/proc/self/setgroups", 64, &text, NULL) == 0 &&
	       !strncmp(text, "deny", 4);
}

/* Unprivileged, the four may be exchanged among each other. */
static bool ids_within(const uint32_t want[4], const uint32_t have[4])
{
	for (size_t i = 0; i < 4; i++)
		if (want[i] != have[0] && want[i] != have[1] && want[i] != have[2])
			return false;
	return true;
}

bool rcreds_beyond(const struct rcreds *want, const struct rcreds *have, char *buf, size_t size)
{
	bool setpcap = have->permitted & CAP(CAP_SETPCAP);
	bool setuid = have->permitted & CAP(CAP_SETUID), setgid = have->permitted & CAP(CAP_SETGID);
	uint64_t more = want->permitted & ~have->permitted;

	if (!setuid && !ids_within(want->uid, have->uid))
		snprintf(buf, size, "it ran as user %u", want->uid[1]);
	else if (!setgid && !ids_within(want->gid, have->gid))
		snprintf(buf, size, "it ran as group %u", want->gid[1]);
	else if (!setgid && !same_groups(want, have) && !groups_are_fixed())
		snprintf(buf, size, "its supplementary groups are others");
	else if (more)
		snprintf(buf, size, "it had capabilities that the restorer lacks (0x%llx)",
			 (unsigned long long)more);
	else if (want->inheritable & ~(have->inheritable | have->permitted) && !setpcap)
		snprintf(buf, size, "its inheritable capabilities are more");
	else if (have->bounding & ~want->bounding && !setpcap)
		snprintf(buf, size, "its bounding set is smaller");
	else if (have->no_new_privs && !want->no_new_privs)
		snprintf(buf, size, "it could gain privileges by execve(2), the restorer cannot");
	else if (want->securebits >= 0 && want->securebits != have->securebits && !setpcap)
		snprintf(buf, size, "its securebits are others");
	else
		return false;
	return true;
}

/* ---- set
 * --------------------------------------------------------------------------------
 */

typedef void add_fn(struct rcalls *, const char *, long, uint64_t, uint64_t, uint64_t, uint64_t,
		    uint64_t);

static void add_capset(struct rcalls *c, add_fn *add, uint64_t inheritable, uint64_t permitted,
		       uint64_t effective)
{
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct d[2] = {
		{(uint32_t)effective, (uint32_t)permitted, (uint32_t)inheritable},
		{(uint32_t)(effective >> 32), (uint32_t)(permitted >> 32),
		 (uint32_t)(inheritable >> 32)}};

	add(c, "set its capabilities", SYS_capset, stub_data(&c->b, &h, sizeof(h)),
	    stub_data(&c->b, d, sizeof(d)), 0, 0, 0);
}

static void add_ids(struct rcalls *c, add_fn *add, const struct rcreds *want,
		    const struct rcreds *have)
{
	if (!same_groups(want, have) && !groups_are_fixed())
		add(c, "set its groups", SYS_setgroups, want->nr_groups,
		    stub_data(&c->b, want->groups, want->nr_groups * sizeof(*want->groups)), 0, 0,
		    0);
	if (!same_ids(want->gid, have->gid)) {
		add(c, "set its group", SYS_setresgid, want->gid[0], want->gid[1], want->gid[2], 0,
		    0);
		if (want->gid[3] != want->gid[1])
			add(c, "set its group", SYS_setfsgid, want->gid[3], 0, 0, 0, 0);
	}
	if (!same_ids(want->uid, have->uid)) {
		add(c, "set its user", SYS_setresuid, want->uid[0], want->uid[1], want->uid[2], 0,
		    0);
		if (want->uid[3] != want->uid[1])
			add(c, "set its user", SYS_setfsuid, want->uid[3], 0, 0, 0, 0);
	}
}

static void add_ambient(struct rcalls *c, add_fn *add, const struct rcreds *want,
			const struct rcreds *have)
{
	if (have->ambient & ~want->ambient)
		add(c, "clear its ambient capabilities", SYS_prctl, PR_CAP_AMBIENT,
		    PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	for (unsigned cap = 0; cap < 64; cap++)
		if (want->ambient >> cap & 1)
			add(c, "set its ambient capabilities", SYS_prctl, PR_CAP_AMBIENT,
			    PR_CAP_AMBIENT_RAISE, cap, 0, 0);
}

/* The order matters: each step needs capabilities that a later one takes away,
 * and a change of the user must not take them away by itself
 * (SECBIT_NO_SETUID_FIXUP). */
void rcreds_add(struct rcalls *c, const struct rcreds *want, const struct rcreds *have,
		bool lenient)
{
	add_fn *add = lenient ? rcalls_try : rcalls_add;
	bool setpcap = have->permitted & CAP(CAP_SETPCAP);
	bool fixup = !same_ids(want->uid, have->uid) && setpcap;
	int64_t securebits = want->securebits >= 0 ? want->securebits : have->securebits;
	/* Capabilities that this kernel does not know cannot be set; nor those that
   * are not there, which is no obstacle when it was said to be none. */
	uint64_t permitted = want->permitted & have->permitted;
	uint64_t effective = want->effective & permitted;
	uint64_t inheritable = want->inheritable & (have->inheritable | have->permitted |
						    (setpcap ? have->bounding : 0));

	/* Inheritable ones before the bounding set: they may exceed it only if they
   * came first. */
	if (inheritable != have->inheritable || have->effective != have->permitted)
		add_capset(c, add, inheritable, have->permitted, have->permitted);
	for (unsigned cap = 0; cap < 64; cap++)
		if ((have->bounding & ~want->bounding) >> cap & 1)
			add(c, "shrink its bounding set", SYS_prctl, PR_CAPBSET_DROP, cap, 0, 0, 0);
	if (want->no_new_privs && !have->no_new_privs)
		add(c, "set no_new_privs", SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (fixup)
		add(c, "set its securebits", SYS_prctl, PR_SET_SECUREBITS,
		    (uint64_t)have->securebits | SECBIT_NO_SETUID_FIXUP, 0, 0, 0);
	else if (!same_ids(want->uid, have->uid))
		rcalls_try(c, "keep its capabilities", SYS_prctl, PR_SET_KEEPCAPS, 1, 0, 0, 0);
	add_ids(c, add, want, have);
	if (!fixup && !same_ids(want->uid, have->uid))
		rcalls_try(c, "keep its capabilities", SYS_prctl, PR_SET_KEEPCAPS, 0, 0, 0, 0);
	add_ambient(c, add, want, have);
	if (setpcap && (fixup || securebits != have->securebits))
		add(c, "set its securebits", SYS_prctl, PR_SET_SECUREBITS, (uint64_t)securebits, 0,
		    0, 0);
	add_capset(c, add, inheritable, permitted, effective);
}

#include "export/coreprocess.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "common/util.h"

struct parse {
	const char *name;
	struct usnap_err *err;
};

static int bad_member(const struct parse *p, const char *member)
{
	return usnap_fail(p->err, -EBADMSG,
			  "cannot export '%s': process.json: '%s' is not what it should be",
			  p->name, member);
}

/* A number within bounds; 0 when it is not there. */
static int get_int(const struct parse *p, const json_t *value, const char *member, json_int_t min,
		   json_int_t max, json_int_t *ret)
{
	*ret = 0;
	if (!value || json_is_null(value))
		return 0;
	if (!json_is_integer(value))
		return bad_member(p, member);
	*ret = json_integer_value(value);
	return *ret < min || *ret > max ? bad_member(p, member) : 0;
}

static int get_pid(const struct parse *p, const json_t *root, const char *member, int32_t *ret)
{
	json_int_t v;
	int r = get_int(p, json_object_get(root, member), member, 0, INT32_MAX, &v);

	*ret = (int32_t)v;
	return r;
}

/* The first of creds' four: the real id, which NT_PRPSINFO holds. */
static int get_id(const struct parse *p, const json_t *root, const char *member, uint32_t *ret)
{
	const json_t *ids = json_object_get(json_object_get(root, "creds"), member);
	json_int_t v;
	int r = get_int(p, json_array_get(ids, 0), member, 0, UINT32_MAX, &v);

	*ret = (uint32_t)v;
	return r;
}

static int get_nice(const struct parse *p, const json_t *root, int *ret)
{
	const json_t *leader = json_array_get(json_object_get(root, "threads"), 0);
	const json_t *value = json_object_get(json_object_get(leader, "sched"), "nice");
	json_int_t v;
	int r = get_int(p, value, "nice", -20, 19, &v);

	*ret = (int)v;
	return r;
}

/* The bytes, where an argument is no UTF-8: each of them ended by a NUL. */
static int get_raw_args(const struct parse *p, const char *hex, char *buf, size_t room)
{
	size_t bytes = strlen(hex) / 2, n = bytes < room - 1 ? bytes : room - 1;

	for (size_t i = 0; i < n; i++) {
		int hi = hex_digit(hex[2 * i]), lo = hex_digit(hex[2 * i + 1]);

		if (hi < 0 || lo < 0)
			return bad_member(p, "cmdline_hex");
		buf[i] = (char)(hi << 4 | lo);
		if (!buf[i])
			buf[i] = ' ';
	}
	if (n && n == bytes && buf[n - 1] == ' ')
		n--;
	buf[n] = '\0';
	return 0;
}

/* Arguments separated by blanks, as far as they fit. */
static int get_args(const struct parse *p, const json_t *root, char *buf, size_t room)
{
	const json_t *cmdline = json_object_get(root, "cmdline");
	const char *hex = json_string_value(json_object_get(root, "cmdline_hex"));
	size_t used = 0;

	buf[0] = '\0';
	if (cmdline && !json_is_array(cmdline) && !json_is_null(cmdline))
		return bad_member(p, "cmdline");
	if (hex)
		return get_raw_args(p, hex, buf, room);
	for (size_t i = 0; i < json_array_size(cmdline) && used < room - 1; i++) {
		const char *arg = json_string_value(json_array_get(cmdline, i));
		if (!arg)
			return bad_member(p, "cmdline");
		size_t n = strnlen(arg, room);

		if (i)
			buf[used++] = ' ';
		if (n > room - 1 - used)
			n = room - 1 - used;
		memcpy(buf + used, arg, n);
		used += n;
		buf[used] = '\0';
	}
	return 0;
}

/* An optional string: NULL when it is not there. */
static int get_string(const struct parse *p, const json_t *object, const char *member,
		      const char **ret)
{
	const json_t *value = json_object_get(object, member);

	*ret = json_string_value(value);
	return value && !json_is_null(value) && !*ret ? bad_member(p, member) : 0;
}

int core_process_parse(struct core_process_facts *ret, const json_t *root, const char *name,
		       struct usnap_err *err)
{
	const struct parse p = {name, err};
	struct core_process *c = &ret->process;
	const char *comm = NULL;
	int r;

	*ret = (struct core_process_facts){0};
	if (!json_is_object(root))
		return usnap_fail(err, -EBADMSG, "cannot export '%s': process.json is no object",
				  name);
	r = get_pid(&p, root, "pid", &c->pid);
	if (!r && !c->pid)
		r = bad_member(&p, "pid");
	if (!r)
		r = get_pid(&p, root, "ppid", &c->ppid);
	if (!r)
		r = get_pid(&p, root, "pgid", &c->pgid);
	if (!r)
		r = get_pid(&p, root, "sid", &c->sid);
	if (!r)
		r = get_id(&p, root, "uid", &c->uid);
	if (!r)
		r = get_id(&p, root, "gid", &c->gid);
	if (!r)
		r = get_nice(&p, root, &c->nice);
	if (!r)
		r = get_args(&p, root, ret->args, sizeof(ret->args));
	if (!r)
		r = get_string(&p, root, "comm", &comm);
	if (!r)
		r = get_string(&p, json_object_get(root, "mm"), "auxv", &ret->auxv);
	if (r)
		return r;
	snprintf(ret->comm, sizeof(ret->comm), "%s", comm ? comm : "");
	c->comm = ret->comm;
	c->args = ret->args;
	return 0;
}

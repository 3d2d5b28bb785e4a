/*
 * What cannot come back, or not as it was: found when the snapshot was taken
 * (limits_of_restore[] of process.json) or now, on this machine.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "common/util.h"
#include "restore/kinds.h"
#include "restore/restore_internal.h"
#include "restore/rjson.h"

static bool kind_is_ignored(const struct restore *r, const char *kind)
{
	for (size_t i = 0; i < r->o->nr_ignore; i++)
		if (!strcmp(r->o->ignore[i], kind))
			return true;
	return false;
}

int restore_problem(struct restore *r, enum restore_severity severity, const char *kind,
		    const char *fmt, ...)
{
	struct restore_problem p = {
		.severity = severity,
		.ignored = severity == RESTORE_REFUSE && kind_is_ignored(r, kind),
	};
	va_list ap;

	va_start(ap, fmt);
	int n = vasprintf(&p.detail, fmt, ap);
	va_end(ap);
	if (n < 0)
		return -ENOMEM;
	p.kind = strdup(kind);
	struct restore_problem *more =
		p.kind ? reallocarray(r->problems, r->nr_problems + 1, sizeof(*more)) : NULL;
	if (!more) {
		free(p.kind);
		free(p.detail);
		return -ENOMEM;
	}
	r->problems = more;
	more[r->nr_problems++] = p;
	return 0;
}

int restore_problem_hint(struct restore *r, const char *fmt, ...)
{
	struct restore_problem *p = &r->problems[r->nr_problems - 1];
	char *text;
	va_list ap;

	va_start(ap, fmt);
	int n = vasprintf(&text, fmt, ap);
	va_end(ap);
	if (n < 0)
		return -ENOMEM;
	free(p->hint);
	p->hint = text;
	if (!n) {
		free(text);
		p->hint = NULL;
	}
	return 0;
}

int problems_from_image(struct restore *r, struct usnap_err *err)
{
	json_t *list, *o;
	size_t i;
	int ret = rjson_array(r->process, "limits_of_restore", 100000, &list, err);

	if (ret < 0)
		return ret;
	json_array_foreach (list, i, o) {
		const char *what, *detail, *severity;

		if ((ret = rjson_text(o, "what", &what, err)) < 0 ||
		    (ret = rjson_text_or(o, "detail", "", &detail, err)) < 0 ||
		    (ret = rjson_text(o, "severity", &severity, err)) < 0)
			return ret;
		if (kind_is_judged_anew(what))
			continue;
		ret = restore_problem(r,
				      !strcmp(severity, "refuse") ? RESTORE_REFUSE : RESTORE_NOTE,
				      what, "%s", detail);
		if (ret < 0)
			return usnap_fail_errno(err, ret, "cannot restore");
	}
	return 0;
}

static bool is_obstacle(const struct restore_problem *p)
{
	return p->severity == RESTORE_FATAL || (p->severity == RESTORE_REFUSE && !p->ignored);
}

int problems_refuse(const struct restore *r, struct usnap_err *err)
{
	const struct restore_problem *first = NULL;
	size_t n = 0;

	for (size_t i = 0; i < r->nr_problems; i++)
		if (is_obstacle(&r->problems[i]) && !n++)
			first = &r->problems[i];
	if (!n)
		return 0;
	if (n == 1)
		usnap_fail(err, -EOPNOTSUPP, "cannot restore '%s': %s: %s", r->o->image,
			   first->kind, first->detail);
	else
		usnap_fail(err, -EOPNOTSUPP, "cannot restore '%s': %s: %s (and %zu more)",
			   r->o->image, first->kind, first->detail, n - 1);
	if (first->hint)
		return usnap_hint(err, n > 1 ? "%s; --dry-run lists all" : "%s", first->hint);
	if (first->severity == RESTORE_REFUSE)
		return usnap_hint(err, "--dry-run lists all; --ignore %s goes on without",
				  first->kind);
	return usnap_hint(err, "--dry-run lists all");
}

const struct restore_problem *restore_problems(const struct restore *r, size_t *ret_n)
{
	*ret_n = r->nr_problems;
	return r->problems;
}

void problems_free(struct restore *r)
{
	for (size_t i = 0; i < r->nr_problems; i++) {
		free(r->problems[i].kind);
		free(r->problems[i].detail);
		free(r->problems[i].hint);
	}
	free(r->problems);
	r->problems = NULL;
	r->nr_problems = 0;
}

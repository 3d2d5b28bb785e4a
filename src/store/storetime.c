#include "store/storetime.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/util.h"

enum {
	DAY_S = 86400
};

/* 9999-12-31T23:59:59Z: names have four digits for the year. */
static const uint64_t last_s = UINT64_C(253402300799);

int storetime_stamp(uint64_t ms, char ret[STORETIME_STAMP + 1])
{
	time_t t = (time_t)(ms / 1000);
	struct tm tm;

	if (ms / 1000 > last_s || !gmtime_r(&t, &tm))
		return -ERANGE;
	size_t n = strftime(ret, STORETIME_STAMP + 1, "%Y%m%dT%H%M%S", &tm);

	snprintf(ret + n, STORETIME_STAMP + 1 - n, ".%03uZ", (unsigned)(ms % 1000));
	return 0;
}

/* n digits at *s, which moves behind them. */
static bool digits(const char **s, int n, int min, int max, int *ret)
{
	int v = 0;

	for (int i = 0; i < n; i++) {
		if ((*s)[i] < '0' || (*s)[i] > '9')
			return false;
		v = v * 10 + ((*s)[i] - '0');
	}
	*s += n;
	*ret = v;
	return v >= min && v <= max;
}

static bool skip(const char **s, char c)
{
	if (**s != c)
		return false;
	(*s)++;
	return true;
}

/* A date that the calendar has: timegm() would make the 3rd of March of the 31st of February. */
static bool date_exists(const struct tm *want)
{
	struct tm tm = {.tm_year = want->tm_year, .tm_mon = want->tm_mon, .tm_mday = want->tm_mday};
	time_t t = timegm(&tm);

	return t >= 0 && tm.tm_mday == want->tm_mday;
}

int storetime_parse_stamp(const char *text, uint64_t *ret_ms)
{
	struct tm tm = {0};
	int ms;

	if (!digits(&text, 4, 1970, 9999, &tm.tm_year) || !digits(&text, 2, 1, 12, &tm.tm_mon) ||
	    !digits(&text, 2, 1, 31, &tm.tm_mday) || !skip(&text, 'T') ||
	    !digits(&text, 2, 0, 23, &tm.tm_hour) || !digits(&text, 2, 0, 59, &tm.tm_min) ||
	    !digits(&text, 2, 0, 59, &tm.tm_sec) || !skip(&text, '.') ||
	    !digits(&text, 3, 0, 999, &ms) || !skip(&text, 'Z'))
		return -EINVAL;
	tm.tm_year -= 1900;
	tm.tm_mon--;
	if (!date_exists(&tm))
		return -EINVAL;
	*ret_ms = (uint64_t)timegm(&tm) * 1000 + (uint64_t)ms;
	return 0;
}

void storetime_local(uint64_t ms, char ret[STORETIME_LOCAL + 1])
{
	time_t t = (time_t)(ms / 1000);
	struct tm tm;

	if (!localtime_r(&t, &tm) || !strftime(ret, STORETIME_LOCAL + 1, "%Y-%m-%dT%H:%M:%S", &tm))
		snprintf(ret, STORETIME_LOCAL + 1, "?");
}

/* A time as it is being read, and how much of it was said. */
struct reading {
	struct tm tm;
	int ms;
	uint64_t span_ms; /* of the last part that was given */
	bool utc;
	int zone_s; /* seconds east of Greenwich; with utc */
};

/* HH:MM[:SS[.mmm]], or HHMM... without colons. */
static bool read_clock(const char **s, struct reading *r)
{
	bool colons = strlen(*s) > 2 && (*s)[2] == ':';

	if (!digits(s, 2, 0, 23, &r->tm.tm_hour) || (colons && !skip(s, ':')) ||
	    !digits(s, 2, 0, 59, &r->tm.tm_min))
		return false;
	r->span_ms = 60000;
	if (colons ? !skip(s, ':') : (**s < '0' || **s > '9'))
		return true;
	if (!digits(s, 2, 0, 60, &r->tm.tm_sec))
		return false;
	r->span_ms = 1000;
	if (!skip(s, '.'))
		return true;
	r->span_ms = 1;
	return digits(s, 3, 0, 999, &r->ms);
}

static bool read_zone(const char **s, struct reading *r)
{
	int h, m = 0, sign = **s == '-' ? -1 : 1;

	if (skip(s, 'Z')) {
		r->utc = true;
		return true;
	}
	if (!skip(s, '+') && !skip(s, '-'))
		return true; /* none */
	if (!digits(s, 2, 0, 14, &h))
		return false;
	skip(s, ':');
	if (**s && !digits(s, 2, 0, 59, &m))
		return false;
	r->utc = true;
	r->zone_s = sign * (h * 3600 + m * 60);
	return true;
}

static bool read_date(const char **s, struct reading *r)
{
	bool dashes = strlen(*s) > 4 && (*s)[4] == '-';

	if (!digits(s, 4, 1970, 9999, &r->tm.tm_year) || (dashes && !skip(s, '-')) ||
	    !digits(s, 2, 1, 12, &r->tm.tm_mon) || (dashes && !skip(s, '-')) ||
	    !digits(s, 2, 1, 31, &r->tm.tm_mday))
		return false;
	r->tm.tm_year -= 1900;
	r->tm.tm_mon--;
	r->span_ms = 0; /* a day is not always 24 hours */
	return date_exists(&r->tm);
}

static int to_ms(const struct reading *r, int days_later, uint64_t *ret_ms)
{
	struct tm tm = r->tm;
	time_t t;

	tm.tm_mday += days_later;
	tm.tm_isdst = -1;
	t = r->utc ? timegm(&tm) - r->zone_s : mktime(&tm);
	if (t < 0 || (uint64_t)t > last_s + DAY_S)
		return -EINVAL;
	*ret_ms = (uint64_t)t * 1000 + (uint64_t)r->ms;
	return 0;
}

static int finish(const struct reading *r, uint64_t *ret_from_ms, uint64_t *ret_until_ms)
{
	uint64_t from_ms, until_ms;

	if (to_ms(r, 0, &from_ms) < 0 || to_ms(r, !r->span_ms, &until_ms) < 0)
		return -EINVAL;
	*ret_from_ms = from_ms;
	*ret_until_ms = until_ms + r->span_ms;
	return 0;
}

int storetime_parse(const char *text, int64_t now_s, uint64_t *ret_ms)
{
	uint64_t from_ms;

	return storetime_parse_span(text, now_s, &from_ms, ret_ms);
}

int storetime_parse_span(const char *text, int64_t now_s, uint64_t *ret_from_ms,
			 uint64_t *ret_until_ms)
{
	struct reading r = {0};
	time_t now = (time_t)now_s;
	uint64_t ago_s;
	bool today = !strcmp(text, "today"), yesterday = !strcmp(text, "yesterday");

	if (*text == '-') {
		if (storetime_duration(text + 1, &ago_s) < 0 || now_s < 0 ||
		    ago_s > (uint64_t)now_s)
			return -EINVAL;
		*ret_from_ms = ((uint64_t)now_s - ago_s) * 1000;
		*ret_until_ms = *ret_from_ms + 1000;
		return 0;
	}
	if (today || yesterday || (strlen(text) > 2 && text[2] == ':')) {
		struct tm tm;

		if (!localtime_r(&now, &tm))
			return -EINVAL;
		r.tm.tm_year = tm.tm_year;
		r.tm.tm_mon = tm.tm_mon;
		r.tm.tm_mday = tm.tm_mday - yesterday;
		if (!today && !yesterday && (!read_clock(&text, &r) || *text))
			return -EINVAL;
		return finish(&r, ret_from_ms, ret_until_ms);
	}
	if (!read_date(&text, &r))
		return -EINVAL;
	if ((skip(&text, 'T') || skip(&text, ' ')) &&
	    (!read_clock(&text, &r) || !read_zone(&text, &r)))
		return -EINVAL;
	return *text ? -EINVAL : finish(&r, ret_from_ms, ret_until_ms);
}

int storetime_duration(const char *text, uint64_t *ret_s)
{
	static const struct {
		char unit;
		uint64_t s;
	} units[] = {{'y', 365 * DAY_S}, {'M', 30 * DAY_S}, {'w', 7 * DAY_S}, {'d', DAY_S},
		     {'h', 3600},	 {'m', 60},	    {'s', 1}};
	const uint64_t most = UINT64_C(1000) * 365 * DAY_S;
	uint64_t total = 0;
	size_t next = 0;
	bool bare = true;

	if (!*text)
		return -EINVAL;
	while (*text) {
		uint64_t v = 0;
		size_t u = next;

		if (*text < '0' || *text > '9')
			return -EINVAL;
		for (; *text >= '0' && *text <= '9'; text++)
			if ((v = v * 10 + (uint64_t)(*text - '0')) > most)
				return -EINVAL;
		if (!*text && !bare)
			return -EINVAL; /* "1h30": minutes or seconds? */
		while (*text && u < ARRAY_SIZE(units) && units[u].unit != *text)
			u++;
		if (u == ARRAY_SIZE(units))
			return -EINVAL;
		v *= *text ? units[u].s : 1;
		if ((total += v) > most)
			return -EINVAL;
		next = u + 1;
		bare = false;
		text += *text != '\0';
	}
	*ret_s = total;
	return 0;
}

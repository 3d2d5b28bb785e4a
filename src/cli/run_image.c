/* What an image says about bringing it back, before it is tried. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uffd-snap.h>

#include "cli/cmd_run.h"
#include "common/util.h"

json_t *run_image_member(const char *path, const char *member)
{
	struct usnap_image *img = usnap_image_new();
	json_t *o = NULL;
	const char *text;
	size_t len;

	if (img && usnap_image_open(img, path) == 0 &&
	    usnap_image_get_member(img, member, &text, &len) == 0)
		o = json_loadb(text, len, 0, NULL);
	usnap_image_free(img);
	return o;
}

/* "--ignore=children,device" among what restores get. */
static bool is_ignored(const void *arg, const char *kind)
{
	const struct run_args *a = arg;
	static const char option[] = "--ignore=";
	size_t len = strlen(kind);

	for (size_t i = 0; i < a->restore.nr; i++) {
		const char *s = a->restore.arg[i];

		if (strncmp(s, option, strlen(option)) != 0)
			continue;
		for (s += strlen(option); *s; s += *s == ',') {
			size_t n = strcspn(s, ",");

			if (n == len && !strncmp(s, kind, len))
				return true;
			s += n;
		}
	}
	return false;
}

bool run_image_obstacle(const struct run_args *a, const char *path, struct obstacle *ret)
{
	json_t *process = run_image_member(path, "process.json");
	bool found = obstacle_find(process, is_ignored, a, ret);

	json_decref(process);
	return found;
}

void run_image_age(uint64_t ms, char ret[RUN_AGE_MAX])
{
	static const struct {
		const char *unit;
		uint64_t s;
	} units[] = {{"d", 86400}, {"h", 3600}, {"m", 60}, {"s", 1}};
	uint64_t s = ms / 1000;
	size_t i = 0;

	while (i + 1 < ARRAY_SIZE(units) && s < units[i].s)
		i++;
	if (i + 1 == ARRAY_SIZE(units))
		snprintf(ret, RUN_AGE_MAX, "%.1f s", (double)ms / 1000);
	else
		snprintf(ret, RUN_AGE_MAX, "%llu%s%llu%s", (unsigned long long)(s / units[i].s),
			 units[i].unit, (unsigned long long)(s % units[i].s / units[i + 1].s),
			 units[i + 1].unit);
}

#include "cli/obstacle.h"

#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/msg.h"
#include "restore/kinds.h"

bool obstacle_find(const json_t *process, bool (*ignored)(const void *arg, const char *kind),
		   const void *arg, struct obstacle *ret)
{
	const json_t *o;
	size_t i;

	*ret = (struct obstacle){0};
	json_array_foreach (json_object_get(process, "limits_of_restore"), i, o) {
		const char *kind = json_string_value(json_object_get(o, "what")),
			   *detail = json_string_value(json_object_get(o, "detail")),
			   *severity = json_string_value(json_object_get(o, "severity"));

		if (!kind || !severity || strcmp(severity, "refuse") != 0 ||
		    kind_is_judged_anew(kind) || (ignored && ignored(arg, kind)) || ret->nr++)
			continue;
		snprintf(ret->kind, sizeof(ret->kind), "%s", kind);
		snprintf(ret->detail, sizeof(ret->detail), "%s", detail ? detail : "");
	}
	return ret->nr;
}

int obstacle_check_kind(const char *kind)
{
	char list[1024] = "";

	if (kind_is_known(kind))
		return EXIT_DONE;
	for (const char *const *k = kinds; *k; k++) {
		size_t len = strlen(list);

		snprintf(list + len, sizeof(list) - len, "%s%s", len ? " " : "", *k);
	}
	/* Longer than a hint can be. */
	msg_error("cannot ignore '%s': no such kind; there are %s", kind, list);
	return EXIT_USAGE;
}

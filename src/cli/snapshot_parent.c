#include "cli/snapshot_parent.h"

#include <jansson.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/show.h"
#include "common/util.h"

uint64_t snapshot_depth(struct usnap_image *img)
{
	const char *text;
	size_t len;
	json_t *j = usnap_image_get_member(img, "snapshot.json", &text, &len) < 0
			    ? NULL
			    : json_loadb(text, len, 0, NULL);
	json_int_t depth = json_integer_value(json_object_get(j, "depth"));

	json_decref(j);
	return depth > 0 && depth < INT32_MAX ? (uint64_t)depth : 0;
}

int snapshot_parent_open(struct snapshot_parent *p, const struct snapshot_args *a,
			 const struct snapshot_dest *d, struct usnap_err *err)
{
	const char *path = a->parent ? a->parent : d->parent;
	size_t n;
	int r;

	if (!path)
		return 0;
	p->img = usnap_image_new();
	r = p->img ? usnap_image_open(p->img, path) : -ENOMEM;
	if (r == 0)
		r = usnap_image_get_nr_ancestors(p->img, &n); /* reads the index */
	if (r < 0 && !a->parent && r != -ENOMEM) {
		snprintf(p->why, sizeof(p->why), "%s", usnap_image_error(p->img));
		usnap_image_free(p->img);
		p->img = NULL;
		return 0;
	}
	if (r < 0) {
		usnap_fail(err, r, "%s", usnap_image_error(p->img));
		return *usnap_image_hint(p->img) ? usnap_hint(err, "%s", usnap_image_hint(p->img))
						 : r;
	}
	p->path = realpath(path, NULL);
	p->depth = snapshot_depth(p->img);
	return a->output ? show_check_output(p->img, a->output, err) : 0;
}

int snapshot_parent_adopt(struct snapshot_parent *p, struct image_writer *w, const struct target *t,
			  struct usnap_err *err)
{
	struct usnap_info info;
	int r;

	if (!p->img)
		return 0;
	r = capture_adopt_parent(w, p->img, t, p->why, sizeof(p->why));
	if (r < 0)
		return usnap_fail(err, r, "%s", p->why);
	if (r == 1 && usnap_image_get_info(p->img, &info, sizeof(info)) == 0)
		p->id = info.id;
	return 0;
}

void snapshot_parent_close(struct snapshot_parent *p)
{
	usnap_image_free(p->img);
	free(p->path);
	p->img = NULL;
	p->path = NULL;
}

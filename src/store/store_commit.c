#include "store/store_commit.h"

#include <errno.h>
#include <stdio.h>
#include <uffd-snap.h>

int store_new_path(struct store *s, const char *name, char **ret, struct usnap_err *err)
{
	if (asprintf(ret, "%s/%s/image.usnap", store_path(s), name) < 0)
		return usnap_fail_errno(err, -ENOMEM, "cannot write into '%s'", name);
	return 0;
}

int store_commit(struct output *output, char ret_file[STORE_FILE_LEN + 1], struct usnap_err *err)
{
	struct usnap_image *img = usnap_image_new();
	char file[STORE_FILE_LEN + 1];
	struct usnap_info info;
	int r = img ? usnap_image_open_fd(img, output_fd(output), "new image") : -ENOMEM;

	/* What could not be read back must not get a name. */
	if (r < 0 || (r = usnap_image_get_info(img, &info, sizeof(info))) < 0)
		usnap_fail(err, r, "%s", usnap_image_error(img));
	else if ((r = store_file_name(info.t0_realtime_ns / 1000000, info.id, file)) < 0)
		usnap_fail_errno(err, r, "cannot name an image of this time");
	usnap_image_free(img);
	if (r < 0 || (r = output_set_name(output, file, err)) < 0 ||
	    (r = output_commit(output, err)) < 0)
		return r;
	snprintf(ret_file, STORE_FILE_LEN + 1, "%s", file);
	return 0;
}

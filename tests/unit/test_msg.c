#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/msg.h"
#include "cli/progress.h"
#include "common/util.h"

static int saved = -1, reader = -1;

static void catch_stderr(void)
{
	int p[2];

	cr_assert_eq(pipe(p), 0);
	saved = dup(STDERR_FILENO);
	dup2(p[1], STDERR_FILENO);
	close(p[1]);
	reader = p[0];
}

/* What one read(2) returns: a message is one write, so it is all of it. */
static const char *caught(void)
{
	static char buf[16384];

	dup2(saved, STDERR_FILENO);
	ssize_t n = read(reader, buf, sizeof(buf) - 1);
	buf[n > 0 ? n : 0] = '\0';
	return buf;
}

Test(msg, failure_and_hint_are_one_write)
{
	struct usnap_err err = {0};

	usnap_fail(&err, -EIO, "cannot read 'x': broken");
	usnap_hint(&err, "mend it");
	catch_stderr();
	cr_assert_eq(msg_failure(&err), EXIT_FAILED);
	cr_assert_str_eq(caught(), "uffd-snap: cannot read 'x': broken\nhint: mend it\n");
}

Test(msg, damage_has_an_exit_code_of_its_own)
{
	struct usnap_err err = {0};

	usnap_fail(&err, -EBADMSG, "cannot read 'x': damaged");
	catch_stderr();
	cr_assert_eq(msg_failure(&err), EXIT_DAMAGED);
	cr_assert_str_eq(caught(), "uffd-snap: cannot read 'x': damaged\n");
}

Test(msg, control_characters_are_shown_not_obeyed)
{
	catch_stderr();
	msg_error("a\033[2Jb\nc\rd\x7f\xc2\x9b"
		  "e \xc3\xa4");
	cr_assert_str_eq(caught(), "uffd-snap: a\\x1b[2Jb\\x0ac\\x0dd\\x7f\\xc2\\x9be \xc3\xa4\n");
}

Test(msg, long_messages_end_with_their_line)
{
	char text[8192];

	memset(text, '\n', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	catch_stderr();
	msg_error("%s", text);
	const char *got = caught();
	cr_assert_lt(strlen(got), 4096);
	cr_assert_eq(got[strlen(got) - 1], '\n');
}

Test(msg, quiet_leaves_errors)
{
	msg_set_level(MSG_QUIET);
	catch_stderr();
	msg_info("1");
	msg_warning("2");
	msg_error("3");
	cr_assert_str_eq(caught(), "uffd-snap: 3\n");
}

Test(progress, says_nothing_unless_on_a_terminal)
{
	struct progress p;

	catch_stderr();
	progress_start(&p, false);
	progress_update(&p, "sweeping", 1, 2);
	progress_end(&p);
	msg_error("end");
	cr_assert_str_eq(caught(), "uffd-snap: end\n");
}

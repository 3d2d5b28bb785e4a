/* What the agent reads of what the command says. */
#include <criterion/criterion.h>
#include <string.h>

#include "agent/reply.c"

static struct reply r;

static enum reply_kind say(const char *text)
{
	enum reply_kind kind = REPLY_NOTHING;

	for (; *text; text++) {
		enum reply_kind k = reply_add(&r, *text);

		if (k != REPLY_NOTHING)
			kind = k;
	}
	return kind;
}

Test(reply, steps_are_lines_of_their_own)
{
	reply_begin(&r);
	cr_assert_eq(say("freeze"), REPLY_NOTHING);
	cr_assert_eq(say("\n"), REPLY_FREEZE);
	cr_assert_eq(say("attach\n"), REPLY_ATTACH);
	cr_assert_eq(say("frozen\n"), REPLY_FROZEN);
	cr_assert_eq(say("done\n"), REPLY_DONE);
	cr_assert_eq(say(" done\ndone \nfrozen?\n"), REPLY_NOTHING);
}

Test(reply, the_path_is_unescaped)
{
	reply_begin(&r);
	say("{\"pid\":1,\"name\":\"\\\"file\\\":\\\"no\\\"\",\"file\":\"/a "
	    "b/\\\"\\\\\\u0007\\t\xc3\xbc.usnap\",\"x\":1}\n");
	cr_assert_str_eq(r.path, "/a b/\"\\\a\t\xc3\xbc.usnap");
	reply_begin(&r);
	cr_assert_str_eq(r.path, "");
	say("{\"file\":\"/not ended\n");
	cr_assert_str_eq(r.path, "");
	say("{\"file\":\"\\u00e9\"}\n{\"file\":\"\\u00\"}\n{\"file\":\"\\x\"}\n{\"file\":\"\\\n");
	cr_assert_str_eq(r.path, "");
}

Test(reply, a_path_that_is_too_long_is_none)
{
	char text[5000];

	reply_begin(&r);
	memset(text, 'a', sizeof(text));
	text[sizeof(text) - 1] = '\0';
	say("{\"file\":\"");
	say(text);
	say("\"}\n");
	cr_assert_str_eq(r.path, "");
}

Test(reply, the_first_error_counts_with_its_hint)
{
	reply_begin(&r);
	say("uffd-snap: warning: slow\nuffd-snap: cannot do 'it': no (way)\nhint: try\nhint: more\n"
	    "uffd-snap: cannot do this either\n");
	cr_assert_str_eq(r.error, "cannot do 'it': no (way) (try)");
}

Test(reply, long_lines_are_cut)
{
	reply_begin(&r);
	say("uffd-snap: ");
	for (int i = 0; i < 40000; i++)
		reply_add(&r, 'e');
	say("\nhint: ");
	for (int i = 0; i < 40000; i++)
		reply_add(&r, 'h');
	say("\n");
	cr_assert_eq(strlen(r.error), sizeof(r.error) - 1);
	cr_assert_eq(say("done\n"), REPLY_DONE);
}

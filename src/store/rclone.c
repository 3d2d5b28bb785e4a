#include "store/rclone.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "common/io.h"
#include "common/util.h"

enum {
	MAX_ANSWER = 256 << 20, /* a list of a million files */
	MAX_WORDS = 64 << 10, /* the end of what it had to say */
	NOT_FOUND_DIR = 3, /* exit statuses: rclone(1) */
	NOT_FOUND_FILE = 4
};

int rclone_find(struct rclone *ret, struct usnap_err *err)
{
	const char *path = getenv("PATH");
	struct stat st;

	/* An empty element is the working directory, where nobody means to have programs. */
	while (path && *path) {
		size_t len = strcspn(path, ":");
		char *program;

		if (asprintf(&program, "%.*s/rclone", (int)len, path) < 0)
			return usnap_fail_errno(err, -ENOMEM, "cannot find 'rclone'");
		if (len && access(program, X_OK) == 0 && stat(program, &st) == 0 &&
		    S_ISREG(st.st_mode)) {
			*ret = (struct rclone){.program = program};
			return 0;
		}
		free(program);
		path += len + (path[len] == ':');
	}
	usnap_fail(err, -ENOENT, "cannot find 'rclone': it is not in PATH");
	return usnap_hint(err, "install it (apt-get install rclone) and set up the remote with "
			       "'rclone config'");
}

void rclone_free(struct rclone *r)
{
	free(r->program);
	*r = (struct rclone){0};
}

char *rclone_join(const char *dir, const char *file)
{
	size_t len = strlen(dir);
	bool ends = len && (dir[len - 1] == '/' || dir[len - 1] == ':');
	char *path;

	return asprintf(&path, "%s%s%s", dir, ends ? "" : "/", file) < 0 ? NULL : path;
}

/* ---- running it ---------------------------------------------------------------------------- */

/* "rclone -q WORDS... -- ARGS...". */
struct call {
	const char *words[5], *args[3]; /* each ends with NULL */
	const char *what, *object; /* for messages */
	int out; /* where its output goes if it is not wanted as an answer */
	uint64_t max_bytes; /* of a file that it writes; 0: no limit */
};

/* In the child: only calls that are safe after fork(). */
static _Noreturn void become(const struct rclone *r, char **argv, pid_t parent,
			     const struct call *c, int out, int err)
{
	struct sigaction sa = {.sa_handler = SIG_DFL};
	struct rlimit limit = {c->max_bytes, c->max_bytes};
	int null = open("/dev/null", O_RDONLY);

	/* Handlers end with execv(); what nohup ignores stays ignored. */
	sigaction(SIGPIPE, &sa, NULL);
	/* A remote that never ends must not fill the disk. */
	if (c->max_bytes)
		setrlimit(RLIMIT_FSIZE, &limit);
	/* In a directory here an image is as private as in the store. */
	umask(077);
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() == parent && null >= 0 && dup2(null, STDIN_FILENO) >= 0 &&
	    dup2(out, STDOUT_FILENO) >= 0 && dup2(err, STDERR_FILENO) >= 0)
		execv(r->program, argv);
	_exit(127);
}

/* Looks at the flag each second: a signal can come just before the wait. */
static int wait_for(const struct rclone *r, pid_t pid, int *ret_status)
{
	cleanup_fd int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	struct pollfd p = {.fd = pidfd, .events = POLLIN};
	bool canceled = false;

	while (pidfd >= 0) {
		int n = poll(&p, 1, 1000);

		if (n > 0 || (n < 0 && errno != EINTR))
			break;
		if (r->cancel && *r->cancel) {
			canceled = true;
			kill(pid, SIGTERM);
		}
	}
	while (waitpid(pid, ret_status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return canceled || (r->cancel && *r->cancel) ? -ECANCELED : 0;
}

/* The last line, without the time before it and what only says that there is more to come. */
static const char *last_line(char *text)
{
	static const char was[] = "last error was: ";
	size_t len = strlen(text);
	char *line, *more;

	while (len && isspace((unsigned char)text[len - 1]))
		text[--len] = '\0';
	line = strrchr(text, '\n');
	line = line ? line + 1 : text;
	/* "2026/11/22 22:47:02 " */
	if (strspn(line, "0123456789/: ") >= 20)
		line += 20;
	while ((more = strstr(line, was)))
		line = more + strlen(was);
	return line;
}

/* rclone's exit status does not tell; these are the words of systems and servers. */
static bool tells_of_no_room(const char *text)
{
	static const char *const words[] = {"no space left", "remaining disk space",
					    "Insufficient Storage", "quota"};

	for (size_t i = 0; i < ARRAY_SIZE(words); i++)
		if (strcasestr(text, words[i]))
			return true;
	return false;
}

static int explain(int fd, int status, const char *what, const char *object, struct usnap_err *err)
{
	struct stat st;
	char *text = NULL;
	size_t len = 0;
	int r = -EIO;

	if (fstat(fd, &st) == 0 && st.st_size > 0)
		len = MIN((size_t)st.st_size, (size_t)MAX_WORDS);
	if (len && (text = calloc(1, len + 1)) &&
	    io_pread_full(fd, text, len, (uint64_t)st.st_size - len) < 0)
		*text = '\0';
	if (WIFEXITED(status) &&
	    (WEXITSTATUS(status) == NOT_FOUND_DIR || WEXITSTATUS(status) == NOT_FOUND_FILE))
		r = -ENOENT;
	else if (text && tells_of_no_room(text))
		r = -ENOSPC;
	if (text && *last_line(text))
		usnap_fail(err, r, "cannot %s '%.200s': rclone: %.250s", what, object,
			   last_line(text));
	else if (WIFSIGNALED(status))
		usnap_fail(err, r, "cannot %s '%.200s': rclone died of signal %d", what, object,
			   WTERMSIG(status));
	else
		usnap_fail(err, r, "cannot %s '%.200s': rclone ended with exit status %d", what,
			   object, WEXITSTATUS(status));
	free(text);
	return r;
}

/* ret_answer: NULL, or what it prints, which the caller frees. */
static int run(const struct rclone *r, const struct call *c, char **ret_answer,
	       struct usnap_err *err)
{
	cleanup_fd int answer = memfd_create("rclone", MFD_CLOEXEC);
	cleanup_fd int said = memfd_create("rclone", MFD_CLOEXEC);
	char *argv[16] = {r->program, (char *)"-q", (char *)"--ask-password=false"};
	size_t n = 3;
	pid_t parent = getpid(), pid;
	int status, result;
	struct stat st;

	if (answer < 0 || said < 0)
		return usnap_fail_errno(err, -errno, "cannot run rclone");
	if (r->cancel && *r->cancel)
		return usnap_fail(err, -ECANCELED, "cannot %s '%s': interrupted", c->what,
				  c->object);
	for (size_t i = 0; c->words[i]; i++)
		argv[n++] = (char *)c->words[i];
	argv[n++] = (char *)"--";
	for (size_t i = 0; c->args[i]; i++)
		argv[n++] = (char *)c->args[i];
	pid = fork();
	if (pid < 0)
		return usnap_fail_errno(err, -errno, "cannot run rclone");
	if (pid == 0)
		become(r, argv, parent, c, ret_answer || c->out < 0 ? answer : c->out, said);
	result = wait_for(r, pid, &status);
	if (result == -ECANCELED)
		return usnap_fail(err, result, "cannot %s '%s': interrupted", c->what, c->object);
	if (result < 0)
		return usnap_fail_errno(err, result, "cannot run rclone");
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
		return explain(said, status, c->what, c->object, err);
	if (!ret_answer)
		return 0;
	if (fstat(answer, &st) < 0 || st.st_size > MAX_ANSWER)
		return usnap_fail(err, -EFBIG, "cannot %s '%s': rclone's answer is too long",
				  c->what, c->object);
	*ret_answer = calloc(1, (size_t)st.st_size + 1);
	if (!*ret_answer)
		return usnap_fail_errno(err, -ENOMEM, "cannot %s '%s'", c->what, c->object);
	result = io_pread_full(answer, *ret_answer, (size_t)st.st_size, 0);
	if (result < 0) {
		free(*ret_answer);
		return usnap_fail_errno(err, result, "cannot %s '%s'", c->what, c->object);
	}
	return 0;
}

/* ---- what is there ------------------------------------------------------------------------- */

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct rclone_file *)a)->name, ((const struct rclone_file *)b)->name);
}

static int parse_list(const json_t *list, struct rclone_files *ret)
{
	struct rclone_files files = {0};
	size_t i;
	json_t *j;

	if (!json_is_array(list))
		return -EPROTO;
	if (!(files.file = calloc(json_array_size(list) + 1, sizeof(*files.file))))
		return -ENOMEM;
	json_array_foreach (list, i, j) {
		const char *name = json_string_value(json_object_get(j, "Name"));
		json_int_t bytes = json_integer_value(json_object_get(j, "Size"));

		/* What has no size, as a document that is made when it is asked for, is no file of
		 * ours. */
		if (!name || bytes < 0 || json_is_true(json_object_get(j, "IsDir")))
			continue;
		if (!(files.file[files.nr].name = strdup(name))) {
			rclone_files_free(&files);
			return -ENOMEM;
		}
		files.file[files.nr++].bytes = (uint64_t)bytes;
	}
	if (files.nr)
		qsort(files.file, files.nr, sizeof(*files.file), by_name);
	*ret = files;
	return 0;
}

int rclone_list(const struct rclone *r, const char *dir, struct rclone_files *ret,
		struct usnap_err *err)
{
	const struct call c = {
		.words = {"lsjson", "--files-only", "--no-mimetype", "--no-modtime"},
		.args = {dir},
		.what = "list",
		.object = dir,
		.max_bytes = MAX_ANSWER,
	};
	cleanup_free char *answer = NULL;
	json_t *list;
	int result = run(r, &c, &answer, err);

	if (result < 0)
		return result;
	list = json_loads(answer, 0, NULL);
	result = parse_list(list, ret);
	json_decref(list);
	if (result == -EPROTO)
		return usnap_fail(err, result, "cannot list '%s': rclone's answer is no list", dir);
	return result < 0 ? usnap_fail_errno(err, result, "cannot list '%s'", dir) : 0;
}

const struct rclone_file *rclone_files_find(const struct rclone_files *files, const char *name)
{
	const struct rclone_file key = {.name = (char *)name};

	return files->nr ? bsearch(&key, files->file, files->nr, sizeof(key), by_name) : NULL;
}

void rclone_files_free(struct rclone_files *files)
{
	for (size_t i = 0; i < files->nr; i++)
		free(files->file[i].name);
	free(files->file);
	*files = (struct rclone_files){0};
}

static bool is_type(const char *type)
{
	size_t len = type ? strspn(type, "abcdefghijklmnopqrstuvwxyz0123456789-_") : 0;

	return len && len <= RCLONE_TYPE_LEN && !type[len] && *type != '-';
}

int rclone_hash_type(const struct rclone *r, const char *dir, char ret[RCLONE_TYPE_LEN + 1],
		     struct usnap_err *err)
{
	/* The strongest first. */
	static const char *const good[] = {"sha256", "sha1", "md5"};
	const struct call c = {
		.words = {"backend", "features"},
		.args = {dir},
		.what = "ask",
		.object = dir,
		.max_bytes = MAX_ANSWER,
	};
	cleanup_free char *answer = NULL;
	int result = run(r, &c, &answer, err);
	size_t best = ARRAY_SIZE(good), i;
	json_t *features, *j;

	if (result < 0)
		return result;
	features = json_loads(answer, 0, NULL);
	*ret = '\0';
	json_array_foreach (json_object_get(features, "Hashes"), i, j) {
		const char *type = json_string_value(j);

		if (!is_type(type))
			continue;
		for (size_t k = 0; k < best; k++)
			if (strcmp(type, good[k]) == 0)
				best = k;
		if (!*ret)
			snprintf(ret, RCLONE_TYPE_LEN + 1, "%s", type);
	}
	if (best < ARRAY_SIZE(good))
		snprintf(ret, RCLONE_TYPE_LEN + 1, "%s", good[best]);
	json_decref(features);
	return 0;
}

int rclone_hash(const struct rclone *r, const char *path, const char *type, bool download,
		char ret[RCLONE_HASH_LEN + 1], struct usnap_err *err)
{
	const struct call c = {
		.words = {"hashsum", type, download ? "--download" : NULL},
		.args = {path},
		.what = "check",
		.object = path,
		.max_bytes = MAX_ANSWER,
	};
	cleanup_free char *answer = NULL;
	int result = run(r, &c, &answer, err);
	size_t len;

	if (result < 0)
		return result;
	/* "HASH  NAME"; spaces or a word in capitals when it does not know. */
	len = strcspn(answer, " \n");
	*ret = '\0';
	if (len <= RCLONE_HASH_LEN && strncmp(answer + len, "  ", 2) == 0 &&
	    strncmp(answer, "UNSUPPORTED", len) != 0 && strncmp(answer, "ERROR", len) != 0)
		snprintf(ret, RCLONE_HASH_LEN + 1, "%.*s", (int)len, answer);
	if (!*ret && download)
		return usnap_fail(err, -EPROTO, "cannot check '%s': rclone tells no hash", path);
	return 0;
}

/* ---- what is carried and changed ------------------------------------------------------------ */

int rclone_put(const struct rclone *r, const char *local, const char *path, struct usnap_err *err)
{
	/* There is nothing of this name: without a look at it, it is one request less. */
	const struct call c = {
		.words = {"copyto", "--no-check-dest"},
		.args = {local, path},
		.what = "write",
		.object = path,
		.out = -1,
	};

	return run(r, &c, NULL, err);
}

int rclone_get(const struct rclone *r, const char *path, int fd, uint64_t bytes,
	       struct usnap_err *err)
{
	/* More than it should have shows that it is another; a file of rclone's own can be larger. */
	const struct call c = {
		.words = {"cat"},
		.args = {path},
		.what = "read",
		.object = path,
		.out = fd,
		.max_bytes = MAX(bytes + 1, MIB(1)),
	};

	return run(r, &c, NULL, err);
}

int rclone_rename(const struct rclone *r, const char *from, const char *to, struct usnap_err *err)
{
	const struct call c = {
		.words = {"moveto"},
		.args = {from, to},
		.what = "name",
		.object = to,
		.out = -1,
	};

	return run(r, &c, NULL, err);
}

int rclone_remove(const struct rclone *r, const char *path, struct usnap_err *err)
{
	const struct call c = {
		.words = {"deletefile"},
		.args = {path},
		.what = "remove",
		.object = path,
		.out = -1,
	};

	return run(r, &c, NULL, err);
}

/* SPDX-License-Identifier: MIT */
/* Programs of the build tree ($top_builddir, or here), run with their output caught. */
#include "tests/unit/tools-run.h"

#include <check.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define ARGS_MAX 24

static void read_all(int fd, char *to, size_t room)
{
	size_t n = 0;
	ssize_t got;

	while (n < room - 1 && (got = read(fd, to + n, room - 1 - n)) > 0)
		n += (size_t)got;
	to[n] = 0;
	close(fd);
}

struct tools_running tools_start(const char *program, const char *out_path, va_list list)
{
	char path[4096], *args[ARGS_MAX + 1] = { path };
	const char *build = getenv("top_builddir");
	struct tools_running running;
	int out[2], err[2];

	(void)snprintf(path, sizeof(path), "%s/%s", build ? build : ".", program);
	for (size_t n = 1; n < ARGS_MAX && (args[n] = va_arg(list, char *)); ++n)
		;
	ck_assert_int_eq(pipe(out) | pipe(err), 0);
	running.child = fork();
	if (running.child == 0) {
		dup2(out_path ? open(out_path, O_WRONLY | O_CLOEXEC) : out[1], STDOUT_FILENO);
		dup2(err[1], STDERR_FILENO);
		close(out[0]);
		close(out[1]);
		close(err[0]);
		close(err[1]);
		execv(path, args);
		_exit(127);
	}
	close(out[1]);
	close(err[1]);
	running.out = out[0];
	running.err = err[0];
	return running;
}

struct tools_output tools_finish(struct tools_running *running)
{
	struct tools_output output;
	int status;

	read_all(running->out, output.out, sizeof(output.out));
	read_all(running->err, output.err, sizeof(output.err));
	ck_assert_int_eq(waitpid(running->child, &status, 0), running->child);
	output.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	return output;
}

struct tools_output tools_run(const char *program, const char *out_path, ...)
{
	struct tools_running running;
	va_list list;

	va_start(list, out_path);
	running = tools_start(program, out_path, list);
	va_end(list);
	return tools_finish(&running);
}

void tools_expect_refused(struct tools_output output, const char *words)
{
	ck_assert_msg(output.status == 1, "status %d: %s", output.status, output.err);
	ck_assert_str_eq(output.out, "");
	ck_assert_msg(strstr(output.err, words), "'%s' is not in '%s'", words, output.err);
	ck_assert_ptr_eq(strchr(output.err, '\n'), output.err + strlen(output.err) - 1);
}

/* SPDX-License-Identifier: MIT */
/* The control connection against a server that answers with given bytes, however oddly cut, and with descriptors. */
#include <check.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "tools/control.h"
#include "tools/tool.h"
#include "tests/lib/run-suite.h"

struct answer {
	const char *bytes;
	size_t n;
	size_t piece;   /* bytes per write */
	unsigned n_fds; /* descriptors beside the first byte */
};

static char socket_path[TOOL_PATH_MAX];
static pid_t server;

static void send_piece(int fd, const char *bytes, size_t n, unsigned n_fds)
{
	_Alignas(struct cmsghdr) char ancillary[CMSG_SPACE(sizeof(int) * 32)] = { 0 };
	struct iovec part = { (void *)(uintptr_t)bytes, n };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };

	if (n_fds) {
		struct cmsghdr *head = (struct cmsghdr *)ancillary;

		message.msg_control = ancillary;
		message.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
		*head = (struct cmsghdr){ CMSG_LEN(sizeof(int) * n_fds), SOL_SOCKET, SCM_RIGHTS };
		for (unsigned i = 0; i < n_fds; ++i) {
			int memory = memfd_create("file", MFD_CLOEXEC);

			dprintf(memory, "file %u", i);
			memcpy(CMSG_DATA(head) + sizeof(int) * i, &memory, sizeof(int));
		}
	}
	if (sendmsg(fd, &message, MSG_NOSIGNAL) < 0)
		_exit(1);
}

/* The server: one connection, one call; the call must end in NUL and hold what is expected. */
static void serve(int listener, const struct answer *answer, const char *expected)
{
	int fd = accept(listener, NULL, NULL);
	char call[4096];
	size_t n = 0;

	do {
		ssize_t got = read(fd, call + n, sizeof(call) - n);

		if (got <= 0)
			_exit(1);
		n += (size_t)got;
	} while (call[n - 1]);
	if (!strstr(call, expected))
		_exit(2);
	for (size_t at = 0; at < answer->n; at += answer->piece) {
		size_t left = answer->n - at;

		send_piece(fd, answer->bytes + at, left < answer->piece ? left : answer->piece, at ? 0 : answer->n_fds);
	}
	_exit(0);
}

static struct control *start(const struct answer *answer, const char *expected)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct control *control = NULL;
	struct diag diag;
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	(void)snprintf(socket_path, sizeof(socket_path), "/tmp/test-tools-control-%d", (int)getpid());
	(void)snprintf(address.sun_path, sizeof(address.sun_path), "%.90s.control", socket_path);
	(void)unlink(address.sun_path);
	ck_assert_int_eq(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
	ck_assert_int_eq(listen(listener, 1), 0);
	server = fork();
	if (server == 0)
		serve(listener, answer, expected);
	close(listener);
	ck_assert_int_eq(control_open(&control, socket_path, &diag), TOOL_OK);
	(void)unlink(address.sun_path);
	return control;
}

static void finish(struct control *control)
{
	int status;

	control_close(control);
	ck_assert_int_eq(waitpid(server, &status, 0), server);
	ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the server saw another call");
}

struct steps {
	unsigned n;
	double last;
};

static void count_step(void *userdata, const json_t *parameters)
{
	struct steps *steps = userdata;

	++steps->n;
	steps->last = json_number_value(json_object_get(parameters, "fraction"));
}

START_TEST(test_reply_in_pieces)
{
	static const char text[] = "{\"parameters\":{\"fraction\":0.25},\"continues\":true}\0"
				   "{\"parameters\":{\"fraction\":0.5},\"continues\":true}\0"
				   "{\"parameters\":{\"result\":\"imported\"}}";

	for (size_t piece = 1; piece <= sizeof(text); piece = piece * 3 + 1) {
		struct control *control = start(&(struct answer){ text, sizeof(text), piece, 0 }, "\"more\":true");
		_cleanup_(control_reply_deinit) struct control_reply reply = { .n_fds = 0 };
		_cleanup_(json_decrefp) json_t *parameters = json_pack("{s:s}", "name", "a");
		struct steps steps = { 0 };
		struct diag diag = { "" };

		ck_assert_int_eq(control_call(control, &(struct control_call){ "Import", parameters, NULL, 0, count_step, &steps },
					      &reply, &diag), TOOL_OK);
		ck_assert_uint_eq(steps.n, 2);
		ck_assert_double_eq(steps.last, 0.5);
		ck_assert_str_eq(json_string_value(json_object_get(reply.parameters, "result")), "imported");
		finish(control);
	}
}
END_TEST

START_TEST(test_descriptors)
{
	static const char text[] = "{\"parameters\":{\"files\":[\"a\",\"b\"]}}";
	struct control *control = start(&(struct answer){ text, sizeof(text), 7, 2 }, "\"method\":\"io.lorad.Export\"");
	_cleanup_(control_reply_deinit) struct control_reply reply = { .n_fds = 0 };
	_cleanup_(json_decrefp) json_t *parameters = json_object();
	char content[8] = "";
	struct diag diag;

	ck_assert_int_eq(control_call(control, &(struct control_call){ .method = "Export", .parameters = parameters }, &reply,
				      &diag), TOOL_OK);
	ck_assert_uint_eq(reply.n_fds, 2);
	ck_assert_int_eq(pread(reply.fds[1], content, sizeof(content), 0), 6);
	ck_assert_str_eq(content, "file 1");
	finish(control);
}
END_TEST

static void expect_failure(const char *text, size_t bytes, const char *words)
{
	struct control *control = start(&(struct answer){ text, bytes, bytes, 20 }, "io.lorad.Show");
	_cleanup_(control_reply_deinit) struct control_reply reply = { .n_fds = 0 };
	_cleanup_(json_decrefp) json_t *parameters = json_object();
	struct diag diag = { "" };

	ck_assert_int_eq(control_call(control, &(struct control_call){ .method = "Show", .parameters = parameters }, &reply,
				      &diag), TOOL_FAILED);
	ck_assert_msg(strstr(diag.text, words), "'%s' is not in '%s'", words, diag.text);
	ck_assert_ptr_null(reply.parameters);
	finish(control);
}

START_TEST(test_failures)
{
	static const char refused[] = "{\"error\":\"io.lorad.Failed\",\"parameters\":{\"code\":2,\"message\":\"x: not\\nthere\"}}";
	static const char unknown[] = "{\"error\":\"org.varlink.service.MethodNotFound\"}";
	static const char no_object[] = "[1]";
	static const char no_json[] = "{\"parameters\":";

	expect_failure(refused, sizeof(refused), "x: not?there");
	expect_failure(unknown, sizeof(unknown), "MethodNotFound");
	expect_failure(no_object, sizeof(no_object), "no JSON object");
	expect_failure(no_json, sizeof(no_json), "no JSON object");
	expect_failure(no_json, sizeof(no_json) - 1, "closed the connection");
}
END_TEST

START_TEST(test_nobody_there)
{
	struct control *control = NULL;
	char longest[TOOL_PATH_MAX];
	struct diag diag;

	ck_assert_int_eq(control_open(&control, "/nonexistent/lorad.sock", &diag), TOOL_FAILED);
	ck_assert_ptr_nonnull(strstr(diag.text, "/nonexistent/lorad.sock.control"));
	memset(longest, 'a', sizeof(longest));
	longest[sizeof(longest) - 1] = 0;
	ck_assert_int_eq(control_open(&control, longest, &diag), TOOL_FAILED);
	ck_assert_ptr_null(control);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("tools/control");
	TCase *tcase = tcase_create("control");

	tcase_add_test(tcase, test_reply_in_pieces);
	tcase_add_test(tcase, test_descriptors);
	tcase_add_test(tcase, test_failures);
	tcase_add_test(tcase, test_nobody_there);
	suite_add_tcase(suite, tcase);
	return run_suite(suite);
}

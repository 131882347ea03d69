/* SPDX-License-Identifier: MIT */
/*
 * loractl as a whole, against a control server that answers each method with a fixed reply and notes what it was sent.
 * What only the daemon can show (generate, score, list, real imports) is tested end to end.
 */
#include <check.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "daemon/base/cleanup.h"
#include "tests/unit/tools-run.h"
#include "tests/lib/run-suite.h"

/* What the server saw, shared with it. */
struct seen {
	unsigned n_calls;
	char call[2048];
	unsigned n_fds;
	char fd_bytes[4][32];
};

static const struct reply {
	const char *method, *text;
	unsigned n_fds;
} replies[] = {
	{ "Import", "{\"parameters\":{\"result\":\"imported\",\"name\":\"one\",\"digest\":\"0123456789abcdef\",\"kind\":\"lora\","
		    "\"bytes\":4096}}", 0 },
	{ "Status", "{\"parameters\":{\"model\":{\"path\":\"m.gguf\",\"layers\":30},\"uptime_s\":1.5}}", 0 },
	{ "Metrics", "{\"parameters\":{\"text\":\"lorad_steps_total 3\\n\"}}", 0 },
	{ "Verify", "{\"parameters\":{\"checked\":2,\"failed\":[{\"name\":\"bad\",\"message\":\"chunk 3: checksum\"}]}}", 0 },
	{ "Export", "{\"parameters\":{\"files\":[\"adapter_config.json\",\"adapter_model.safetensors\"]}}", 2 },
	{ "Pin", "{\"parameters\":{}}", 0 },
	{ "Prefetch", "{\"parameters\":{\"name\":\"a\",\"result\":\"loading\"}}", 0 },
	{ "Show", "{\"error\":\"io.lorad.Failed\",\"parameters\":{\"code\":2,\"message\":\"ghost: no such adapter\"}}", 0 },
};

static char folder[64], socket_path[96];
static struct seen *seen;
static pid_t server;

static void answer(int fd, const struct reply *reply)
{
	_Alignas(struct cmsghdr) char ancillary[CMSG_SPACE(sizeof(int) * 2)] = { 0 };
	struct iovec part = { (void *)(uintptr_t)reply->text, strlen(reply->text) + 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };

	if (reply->n_fds) {
		struct cmsghdr *head = (struct cmsghdr *)ancillary;

		message.msg_control = ancillary;
		message.msg_controllen = sizeof(ancillary);
		*head = (struct cmsghdr){ CMSG_LEN(sizeof(int) * 2), SOL_SOCKET, SCM_RIGHTS };
		for (unsigned i = 0; i < 2; ++i) {
			int memory = memfd_create("file", MFD_CLOEXEC);

			dprintf(memory, "content %u", i);
			memcpy(CMSG_DATA(head) + sizeof(int) * i, &memory, sizeof(int));
		}
	}
	(void)sendmsg(fd, &message, MSG_NOSIGNAL);
}

/* One call: small enough to come in one piece. False: the caller has hung up, or wants what is not known here. */
static bool serve_one(int fd)
{
	_Alignas(struct cmsghdr) char ancillary[CMSG_SPACE(sizeof(int) * 8)];
	struct iovec part = { seen->call, sizeof(seen->call) - 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = ancillary,
				  .msg_controllen = sizeof(ancillary) };
	ssize_t n = recvmsg(fd, &message, 0);
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);

	if (n <= 0)
		return false;
	++seen->n_calls;
	seen->call[n] = 0;
	seen->n_fds = head ? (unsigned)((head->cmsg_len - CMSG_LEN(0)) / sizeof(int)) : 0;
	for (unsigned i = 0; i < seen->n_fds && i < 4; ++i) {
		int file;

		memcpy(&file, CMSG_DATA(head) + sizeof(int) * i, sizeof(int));
		memset(seen->fd_bytes[i], 0, sizeof(seen->fd_bytes[i]));
		(void)!read(file, seen->fd_bytes[i], sizeof(seen->fd_bytes[i]) - 1);
		close(file);
	}
	for (size_t i = 0; i < sizeof(replies) / sizeof(replies[0]); ++i) {
		char method[64];

		(void)snprintf(method, sizeof(method), "\"method\":\"io.lorad.%s\"", replies[i].method);
		if (strstr(seen->call, method)) {
			answer(fd, &replies[i]);
			return true;
		}
	}
	return false;
}

/* Each connection has a process: an import of several keeps some open at a time. */
static void serve(int listener)
{
	(void)signal(SIGCHLD, SIG_IGN);
	for (;;) {
		int fd = accept(listener, NULL, NULL);

		if (fork() == 0) {
			while (serve_one(fd))
				;
			_exit(0);
		}
		close(fd);
	}
}

static void start(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	(void)snprintf(folder, sizeof(folder), "/tmp/test-tools-loractl-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(folder));
	(void)snprintf(socket_path, sizeof(socket_path), "%s/s", folder);
	(void)snprintf(address.sun_path, sizeof(address.sun_path), "%s.control", socket_path);
	ck_assert_int_eq(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
	ck_assert_int_eq(listen(listener, 8), 0);
	seen = mmap(NULL, sizeof(*seen), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(seen, MAP_FAILED);
	server = fork();
	if (server == 0)
		serve(listener);
	close(listener);
}

static void stop(void)
{
	kill(server, SIGKILL);
	waitpid(server, NULL, 0);
	munmap(seen, sizeof(*seen));
	if (fork() == 0) {
		execlp("rm", "rm", "-rf", folder, NULL);
		_exit(127);
	}
	wait(NULL);
}

#define loractl(...) tools_run("tools/loractl", NULL, "--socket", socket_path, __VA_ARGS__, (char *)NULL)
#define loractl_to(path, ...) tools_run("tools/loractl", path, "--socket", socket_path, __VA_ARGS__, (char *)NULL)

static char *path_of(const char *name)
{
	static char path[4][160];
	static unsigned turn;

	turn = (turn + 1) % 4;
	(void)snprintf(path[turn], sizeof(path[turn]), "%s/%s", folder, name);
	return path[turn];
}

static void write_file(const char *name, const char *text)
{
	_cleanup_(fclosep) FILE *file = fopen(path_of(name), "w");

	ck_assert_ptr_nonnull(file);
	(void)fputs(text, file);
}

static void make_adapter(const char *name)
{
	char path[100];

	ck_assert_int_eq(mkdir(path_of(name), 0700), 0);
	(void)snprintf(path, sizeof(path), "%s/adapter_config.json", name);
	write_file(path, "the config");
	(void)snprintf(path, sizeof(path), "%s/adapter_model.safetensors", name);
	write_file(path, "the tensors");
}

START_TEST(test_import)
{
	struct tools_output output;

	make_adapter("one");
	output = loractl("import", path_of("one/"));
	ck_assert_msg(output.status == 0, "%s", output.err);
	ck_assert_str_eq(output.out, "one: imported 0123456789ab\n");
	ck_assert_ptr_nonnull(strstr(seen->call, "\"name\":\"one\""));
	ck_assert_ptr_nonnull(strstr(seen->call, "\"replace\":false"));
	ck_assert_ptr_nonnull(strstr(seen->call, "[\"adapter_config.json\",\"adapter_model.safetensors\"]"));
	ck_assert_uint_eq(seen->n_fds, 2);
	ck_assert_str_eq(seen->fd_bytes[0], "the config");
	ck_assert_str_eq(seen->fd_bytes[1], "the tensors");
	output = loractl("import", "--json", "--replace", "--name", "x.y", path_of("one"));
	ck_assert_int_eq(output.status, 0);
	ck_assert_int_eq(output.out[0], '[');
	ck_assert_ptr_nonnull(strstr(seen->call, "\"name\":\"x.y\""));
	ck_assert_ptr_nonnull(strstr(seen->call, "\"replace\":true"));
}
END_TEST

START_TEST(test_import_refuses_files)
{
	make_adapter("pickle");
	ck_assert_int_eq(rename(path_of("pickle/adapter_model.safetensors"), path_of("pickle/adapter_model.bin")), 0);
	make_adapter("fifo");
	ck_assert_int_eq(unlink(path_of("fifo/adapter_config.json")), 0);
	ck_assert_int_eq(mkfifo(path_of("fifo/adapter_config.json"), 0600), 0);
	make_adapter("a folder");
	write_file("plain", "text");
	write_file("weights.bin", "pickle");
	ck_assert_int_eq(mkdir(path_of("empty"), 0700), 0);
	tools_expect_refused(loractl("import", path_of("pickle")), "pickle/adapter_model.bin: is a pickle");
	tools_expect_refused(loractl("import", path_of("fifo")), "fifo/adapter_config.json: is no regular file");
	tools_expect_refused(loractl("import", path_of("a folder")), "a folder: its last part is no adapter name");
	tools_expect_refused(loractl("import", path_of("plain")), "plain: is no folder");
	tools_expect_refused(loractl("import", path_of("weights.bin")), "weights.bin: is a pickle");
	tools_expect_refused(loractl("import", path_of("empty")), "empty/adapter_config.json: No such file");
	tools_expect_refused(loractl("import", path_of("nothing")), "nothing: No such file");
	tools_expect_refused(loractl("import", "--name", "a/b", path_of("empty")), "'a/b'");
	ck_assert_uint_eq(seen->n_calls, 0);
}
END_TEST

START_TEST(test_import_of_several)
{
	struct tools_output output;

	make_adapter("good");
	output = loractl("import", path_of("good"), path_of("missing"), path_of("good"));
	ck_assert_int_eq(output.status, 1);
	ck_assert_str_eq(output.out, "");
	ck_assert_ptr_nonnull(strstr(output.err, "missing: No such file"));
	ck_assert_msg(strstr(output.err, "1 of 3 adapters failed; 2 are in the store") != NULL, "%s", output.err);
	output = loractl("import", path_of("good"), path_of("good"));
	ck_assert_int_eq(output.status, 0);
	ck_assert_ptr_nonnull(strstr(output.out, "2 adapters, 0 of them unchanged\n"));
	ck_assert_int_eq(loractl("import", "--name", "x", path_of("good"), path_of("good")).status, 2);
}
END_TEST

static void expect_content(const char *name, const char *text)
{
	_cleanup_(fclosep) FILE *file = fopen(path_of(name), "r");
	char content[32] = "";

	ck_assert_msg(file, "%s", name);
	ck_assert_ptr_nonnull(fgets(content, sizeof(content), file));
	ck_assert_str_eq(content, text);
}

START_TEST(test_export)
{
	struct tools_output output = loractl("export", "one", path_of("out"));

	ck_assert_msg(output.status == 0, "%s", output.err);
	expect_content("out/adapter_config.json", "content 0");
	expect_content("out/adapter_model.safetensors", "content 1");
	tools_expect_refused(loractl("export", "one", path_of("out")), "out: is not empty");
	tools_expect_refused(loractl("export", "one", path_of("no/where")), "no/where: No such file");
	expect_content("out/adapter_config.json", "content 0");
}
END_TEST

START_TEST(test_replies)
{
	struct tools_output output = loractl("status");

	ck_assert_int_eq(output.status, 0);
	ck_assert_ptr_nonnull(strstr(output.out, "model.path"));
	ck_assert_ptr_nonnull(strstr(output.out, " 30\n"));
	output = loractl("status", "--json");
	ck_assert_str_eq(output.out, "{\"model\": {\"path\": \"m.gguf\", \"layers\": 30}, \"uptime_s\": 1.5}\n");
	ck_assert_str_eq(loractl("metrics").out, "lorad_steps_total 3\n");
	ck_assert_str_eq(loractl("pin", "a").out, "a: pinned\n");
	ck_assert_str_eq(loractl("prefetch", "a").out, "a: loading\n");
	ck_assert_str_eq(loractl("--json", "pin", "a").out, "{\"name\": \"a\", \"result\": \"pinned\"}\n");
	tools_expect_refused(loractl("show", "ghost"), "ghost: no such adapter");
	tools_expect_refused(loractl("verify", "good", "bad"), "bad: chunk 3: checksum");
	ck_assert_ptr_nonnull(strstr(seen->call, "[\"good\",\"bad\"]"));
	tools_expect_refused(loractl("remove", "a"), "closed the connection");
	tools_expect_refused(loractl_to("/dev/full", "status"), "standard output: No space left");
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("tools/loractl");
	TCase *tcase = tcase_create("loractl");

	tcase_add_checked_fixture(tcase, start, stop);
	tcase_set_timeout(tcase, 60);
	tcase_add_test(tcase, test_import);
	tcase_add_test(tcase, test_import_refuses_files);
	tcase_add_test(tcase, test_import_of_several);
	tcase_add_test(tcase, test_export);
	tcase_add_test(tcase, test_replies);
	suite_add_tcase(suite, tcase);
	return run_suite(suite);
}

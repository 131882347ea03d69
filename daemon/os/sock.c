/* SPDX-License-Identifier: MIT */
/*
 * Local sockets.
 *
 * A socket file outlives the daemon that made it. Whether one that is found is still served is asked in the only sure
 * way, by connecting to it: one that refuses is stale and replaced, one that answers belongs to a running daemon and is
 * left alone. Two daemons that start in the same moment are told apart by the store's lock, not here.
 */
#include "daemon/os/sock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "daemon/base/cleanup.h"

#define DIRECTORY_MODE 0755

static int refuse(struct diag *diag, const char *path)
{
	return diag_set(diag, SOCK_E_REFUSED, "%s: %s", path, strerror(errno));
}

/* The folder that path lies in, if that alone is missing. A whole missing way is rather a mistyped one. */
static int make_folder(const char *path, struct diag *diag)
{
	_cleanup_free_ char *folder = strdup(path);
	char *slash;

	if (!folder)
		return error_origin(-ENOMEM);
	slash = strrchr(folder, '/');
	if (!slash || slash == folder)
		return SOCK_OK;
	*slash = 0;
	return mkdir(folder, DIRECTORY_MODE) < 0 && errno != EEXIST ? refuse(diag, folder) : SOCK_OK;
}

/* Removes what a dead daemon left at the address; refuses what is alive or no socket. */
static int clear_stale(const struct sockaddr_un *address, struct diag *diag)
{
	_cleanup_close_ int probe = -1;
	const char *path = address->sun_path;
	struct stat found;

	if (lstat(path, &found) < 0)
		return errno == ENOENT ? SOCK_OK : refuse(diag, path);
	if (!S_ISSOCK(found.st_mode))
		return diag_set(diag, SOCK_E_REFUSED, "%s: is there already and not a socket", path);
	probe = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (probe < 0)
		return error_origin(-errno);
	if (connect(probe, (const struct sockaddr *)address, sizeof(*address)) == 0 || errno != ECONNREFUSED)
		return diag_set(diag, SOCK_E_REFUSED, "%s: another program is listening there", path);
	return unlink(path) < 0 && errno != ENOENT ? refuse(diag, path) : SOCK_OK;
}

/**
 * sock_listen() - make a listening socket
 * @ret_fd: a nonblocking socket; the file stays when it is closed
 * @type:   SOCK_SEQPACKET or SOCK_STREAM
 * @path:   its file; a missing folder is made, a stale file is replaced
 * @mode:   permissions of the file: who may write to it may connect
 * @diag:   why not, for SOCK_E_REFUSED
 */
int sock_listen(int *ret_fd, int type, const char *path, mode_t mode, struct diag *diag)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	_cleanup_close_ int fd = -1;
	int r;

	if (!*path || strlen(path) >= sizeof(address.sun_path))
		return diag_set(diag, SOCK_E_REFUSED, "%s: a socket's path has 1 to %zu characters", path,
				sizeof(address.sun_path) - 1);
	memcpy(address.sun_path, path, strlen(path) + 1);
	r = make_folder(path, diag);
	if (r)
		return r < 0 ? error_trace(r) : r;
	r = clear_stale(&address, diag);
	if (r)
		return r < 0 ? error_trace(r) : r;
	fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return error_origin(-errno);
	/* Before bind() the mode can only shrink by the umask, never be wider than asked for; after it, it is exact. */
	if (fchmod(fd, mode) < 0 || bind(fd, (const struct sockaddr *)&address, sizeof(address)) < 0 ||
	    chmod(path, mode) < 0 || listen(fd, SOMAXCONN) < 0)
		return refuse(diag, path);
	*ret_fd = TAKE_FD(fd);
	return SOCK_OK;
}

/**
 * sock_accept() - take one connection
 * @listen_fd: a nonblocking listening socket
 * @ret_fd:    the connection, nonblocking
 * @ret_peer:  who connected, as the kernel saw them at connect()
 *
 * Return: SOCK_OK, SOCK_E_AGAIN, SOCK_E_LIMIT or a negative errno.
 */
int sock_accept(int listen_fd, int *ret_fd, struct ucred *ret_peer)
{
	_cleanup_close_ int fd = -1;
	socklen_t size = sizeof(*ret_peer);
	struct ucred peer;

	do
		fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	while (fd < 0 && (errno == EINTR || errno == ECONNABORTED));
	if (fd < 0 && errno == EAGAIN)
		return SOCK_E_AGAIN;
	if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS))
		return SOCK_E_LIMIT;
	if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
		return error_origin(-errno);
	*ret_peer = peer;
	*ret_fd = TAKE_FD(fd);
	return SOCK_OK;
}

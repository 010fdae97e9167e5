// SPDX-License-Identifier: Apache-2.0
/* Sockets of other network namespaces, for questions to the kernel about what is in them. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "shim.h"

/* The calling thread is in the other namespace for a moment only; it must get back, or nothing it
 * does is right. */
int otb_socket_in(const char *netns, int family, int type, int protocol)
{
	int home = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	int there = open(netns, O_RDONLY | O_CLOEXEC);
	int fd = -1;

	if (home >= 0 && there >= 0 && !setns(there, CLONE_NEWNET)) {
		fd = socket(family, type | SOCK_CLOEXEC, protocol);
		if (fd < 0)
			fd = -errno;
		if (setns(home, CLONE_NEWNET))
			abort();
	} else {
		fd = -errno;
	}
	if (home >= 0)
		close(home);
	if (there >= 0)
		close(there);
	return fd;
}

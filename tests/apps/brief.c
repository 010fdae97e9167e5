/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A server that does not live long: with the listening socket as descriptor 3,
 * answers 3 requests of one connection and ends.
 *
 * brief          does it itself
 * brief NUMBER   has so many children do it, one after the other
 */
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi\n";

static int serve(void)
{
	char request[4096];
	int c = accept(3, NULL, NULL);

	for (int i = 0; i < 3; i++) {
		size_t have = 0;

		do {
			ssize_t got = read(c, request + have, sizeof(request) - 1 - have);

			if (got <= 0)
				return 1;
			have += got;
			request[have] = 0;
		} while (!strstr(request, "\r\n\r\n"));
		if (write(c, answer, sizeof(answer) - 1) != sizeof(answer) - 1)
			return 1;
	}
	return 0;
}

int main(int argc, char **argv)
{
	int children = argc > 1 ? atoi(argv[1]) : 0;

	if (!children)
		return serve();
	for (int i = 0; i < children; i++) {
		int status = 1;

		if (fork() == 0)
			_exit(serve());
		wait(&status);
		if (status)
			return 1;
	}
	return 0;
}

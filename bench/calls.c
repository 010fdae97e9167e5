// SPDX-License-Identifier: Apache-2.0
/*
 * What a server's two socket calls for one request cost, in ns.
 *
 *   calls PORT http|other BURSTS BURST PAUSE_MS
 *
 * One thread holds both ends of a connection on loopback, so that no scheduler
 * is in the way: the client's end sends 200 bytes, then the server's end
 * receives them and sends 200 back, which alone is timed. Bursts with pauses:
 * the agent's ring must not fill. Prints the mean of each burst; those of the first
 * half second do not count: the agent learns what it can ignore.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 200 };

static void check(int ok, const char *what)
{
	if (ok)
		return;
	perror(what);
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void fill(char *to, const char *head, char with)
{
	memset(to, with, SIZE);
	memcpy(to, head, strlen(head));
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = { .sin_family = AF_INET,
				       .sin_addr = { htonl(INADDR_LOOPBACK) } };
	char request[SIZE], response[SIZE], got[SIZE];
	int listener, client, server, on = 1;
	uint64_t warm_until;

	check(argc == 6, "usage: calls PORT http|other BURSTS BURST PAUSE_MS");
	if (!strcmp(argv[2], "http")) {
		fill(request, "GET /bench HTTP/1.1\r\nHost: localhost\r\nUser-Agent: ", 'x');
		memcpy(request + SIZE - 4, "\r\n\r\n", 4);
		/* 40 bytes of head, so 160 of body */
		fill(response, "HTTP/1.1 200 OK\r\nContent-Length: 160\r\n\r\n", 'y');
	} else {
		fill(request, "\1\2\3\4", 5);
		fill(response, "\6\7\10\11", 10);
	}

	address.sin_port = htons((uint16_t)atoi(argv[1]));
	listener = socket(AF_INET, SOCK_STREAM, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	check(!bind(listener, (void *)&address, sizeof(address)), "bind");
	check(!listen(listener, 1), "listen");
	client = socket(AF_INET, SOCK_STREAM, 0);
	check(!connect(client, (void *)&address, sizeof(address)), "connect");
	server = accept(listener, NULL, NULL);
	check(server >= 0, "accept");
	setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));

	warm_until = now_ns() + 500000000;
	for (int burst = 0; burst < atoi(argv[3]);) {
		int warm = now_ns() >= warm_until, n = atoi(argv[4]);
		uint64_t took = 0;

		for (int i = 0; i < n; i++) {
			uint64_t start;

			check(send(client, request, SIZE, 0) == SIZE, "send");
			start = now_ns();
			check(recv(server, got, SIZE, 0) == SIZE, "recv");
			check(send(server, response, SIZE, 0) == SIZE, "send");
			took += now_ns() - start;
			check(recv(client, got, SIZE, 0) == SIZE, "recv");
		}
		if (warm) {
			printf("%f\n", (double)took / n);
			burst++;
		}
		usleep((unsigned)atoi(argv[5]) * 1000);
	}
	return 0;
}

// SPDX-License-Identifier: Apache-2.0
/*
 * An HTTP server that computes: one thread for each connection, and for each
 * request two copies, seven launches of three kernels, and a synchronisation.
 * Prints its port. The request's path says how large the first grid is: /task/17.
 */
#include <arpa/inet.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <netinet/in.h>
#include <sys/socket.h>
#include <thread>
#include <unistd.h>

__global__ void vectorAdd(const float *a, const float *b, float *c, int n)
{
	int i = blockIdx.x * blockDim.x + threadIdx.x;

	if (i < n)
		c[i] = a[i] + b[i];
}

namespace
{
template <int N> __global__ void scale(float *p)
{
	p[threadIdx.x] *= N;
}
} // namespace

namespace model
{
__global__ void softmax(float *p)
{
	p[threadIdx.x] = 1;
}
} // namespace model

static void compute(unsigned n)
{
	float in[256] = {}, *a, *b;
	cudaStream_t stream;

	cudaStreamCreate(&stream);
	cudaMalloc(&a, sizeof(in));
	cudaMalloc(&b, 2 * sizeof(in));
	cudaMemcpyAsync(a, in, sizeof(in), cudaMemcpyHostToDevice, stream);
	for (int i = 0; i < 4; i++)
		vectorAdd<<<dim3(n, 2, 3), dim3(32, 4, 1), 512, stream>>>(a, a, b, 256);
	scale<3><<<1, 64, 0, stream>>>(b);
	scale<3><<<1, 64, 0, stream>>>(b);
	model::softmax<<<2, 128, 0, stream>>>(b);
	cudaMemcpyAsync(in, b, sizeof(in) / 2, cudaMemcpyDeviceToHost, stream);
	cudaStreamSynchronize(stream);
	cudaFree(a);
	cudaFree(b);
	cudaStreamDestroy(stream);
}

static void serve(int c)
{
	static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
	char head[4096];
	ssize_t n;

	while ((n = recv(c, head, sizeof(head) - 1, 0)) > 0) {
		head[n] = 0;
		const char *path = strstr(head, "/task/");

		if (path)
			compute(strtoul(path + 6, NULL, 10));
		send(c, answer, sizeof(answer) - 1, MSG_NOSIGNAL);
	}
	close(c);
}

int main()
{
	int s = socket(AF_INET, SOCK_STREAM, 0), on = 1;
	sockaddr_in at = {};
	socklen_t len = sizeof(at);

	getchar(); /* until we are observed */
	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	at.sin_family = AF_INET;
	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (bind(s, (sockaddr *)&at, sizeof(at)) || listen(s, 64))
		return 1;
	getsockname(s, (sockaddr *)&at, &len);
	printf("%d\n", ntohs(at.sin_port));
	fflush(stdout);
	for (int c; (c = accept(s, NULL, NULL)) >= 0;)
		std::thread(serve, c).detach();
	return 0;
}

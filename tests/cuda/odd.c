// SPDX-License-Identifier: Apache-2.0
/* Calls that are rarely made, or should not be: one of each for each line. */
#include <stdio.h>

typedef struct {
	unsigned x, y, z;
} dim3;

int cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **args, size_t shared,
		     void *stream);
int cudaLaunchCooperativeKernel(const void *function, dim3 grid, dim3 block, void **args,
				size_t shared, void *stream);
int cudaLaunchKernelExC(const void *config, const void *function, void **args);
int cudaMalloc(void **out, size_t size);
int cudaMallocPitch(void **out, size_t *pitch, size_t width, size_t height);
int cudaFree(void *p);
int cudaMemcpy(void *to, const void *from, size_t n, int kind);
int cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
		      size_t height, int kind, void *stream);
int cudaMemcpyPeerAsync(void *to, int to_device, const void *from, int from_device, size_t n,
			void *stream);
int cudaMemsetAsync(void *p, int value, size_t n, void *stream);
int cudaSetDevice(int number);
int cudaStreamBeginCapture(void *stream, int mode);
int cudaStreamEndCapture(void *stream, void **graph);
int cudaGraphInstantiate(void **out, void *graph, unsigned long long flags);
int cudaGraphLaunch(void *graph, void *stream);
int cudaEventQuery(void *event);
int cudaEventRecord(void *event, void *stream);
int cudaEventElapsedTime(float *ms, void *start, void *end);

static void bad(void)
{
	dim3 most = { ~0u, ~0u, ~0u };

	cudaLaunchKernel(NULL, most, most, NULL, ~0ul, (void *)~0ul);
	cudaLaunchKernelExC(NULL, NULL, NULL);
	cudaFree(NULL);
	cudaMemcpy(NULL, NULL, 5, 77);
	cudaMemcpy(NULL, NULL, ~0ul, 1);
}

static void rare(void)
{
	static struct {
		dim3 grid, block;
		size_t shared;
		void *stream, *attributes;
		unsigned n;
	} config = { { 3, 1, 1 }, { 5, 1, 1 }, 9, (void *)0x99, NULL, 0 };
	dim3 one = { 1, 1, 1 };
	void *p, *graph, *stream = (void *)0x1234;
	size_t pitch;
	float ms;

	cudaSetDevice(3);
	cudaLaunchCooperativeKernel(rare, one, one, NULL, 0, stream);
	cudaLaunchKernelExC(&config, rare, NULL);
	cudaMallocPitch(&p, &pitch, 100, 7);
	cudaMemcpy2DAsync(p, 512, p, 512, 100, 7, 3, stream);
	cudaMemcpyPeerAsync(p, 0, p, 1, 4096, stream);
	cudaMemsetAsync(p, 0, 700, stream);
	cudaFree(p);
	cudaStreamBeginCapture(stream, 0);
	cudaLaunchKernel(rare, one, one, NULL, 0, stream);
	cudaStreamEndCapture(stream, &graph);
	cudaGraphInstantiate(&graph, graph, 0);
	cudaGraphLaunch(graph, stream);
	cudaEventRecord(p, stream);
	cudaEventQuery(p);
	cudaEventElapsedTime(&ms, p, p);
}

int main(void)
{
	char line[64];

	while (fgets(line, sizeof(line), stdin)) {
		if (line[0] == 'b')
			bad();
		else
			rare();
		puts("done");
		fflush(stdout);
	}
	return 0;
}

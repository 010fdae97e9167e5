// SPDX-License-Identifier: Apache-2.0
/*
 * "ROUNDS N PAUSE_US": that often, N launches of two kernels that nobody has
 * registered, a synchronisation, and a pause. Says how many launches there were.
 */
#include <stdio.h>
#include <unistd.h>

typedef struct {
	unsigned x, y, z;
} dim3;

int cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **args, size_t shared,
		     void *stream);
int cudaStreamSynchronize(void *stream);
int cudaMemcpyAsync(void *to, const void *from, size_t n, int kind, void *stream);

static int first, second;

int main(void)
{
	dim3 grid = { 1, 1, 1 }, block = { 32, 1, 1 };
	int rounds, n, pause_us;

	while (scanf("%d %d %d", &rounds, &n, &pause_us) == 3) {
		for (int i = 0; i < rounds; i++) {
			for (int k = 0; k < n; k++)
				cudaLaunchKernel(k % 4 ? &first : &second, grid, block, NULL, 0,
						 NULL);
			cudaStreamSynchronize(NULL);
			usleep((useconds_t)pause_us);
		}
		printf("%d\n", rounds * n);
		fflush(stdout);
	}
	return 0;
}

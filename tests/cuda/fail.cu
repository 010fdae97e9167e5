// SPDX-License-Identifier: Apache-2.0
/* Launches from a function with a name, whatever becomes of it: "go N". */
#include <cstdio>

__global__ void doomed(int *p)
{
	*p = 1;
}

extern "C" __attribute__((noinline)) void train_step()
{
	doomed<<<4, 128>>>(NULL);
	cudaStreamSynchronize(0);
	asm volatile("");
}

extern "C" __attribute__((noinline)) void train(int n)
{
	for (int i = 0; i < n; i++)
		train_step();
	asm volatile("");
}

int main()
{
	char line[64];
	int n;

	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "go %d", &n) == 1)
			train(n);
		puts("done");
		fflush(stdout);
	}
	return 0;
}

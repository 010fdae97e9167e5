// SPDX-License-Identifier: Apache-2.0
/*
 * Allocates as the lines say: "leak N" keeps N times 1,000 bytes, "clean N"
 * has another thread free the same. "both N" does both, from its own functions.
 */
#include <cstdio>
#include <thread>

extern "C" __attribute__((noinline)) void *leaky_allocation()
{
	void *p = NULL;

	cudaMalloc(&p, 1000);
	asm volatile("");
	return p;
}

extern "C" __attribute__((noinline)) void *tidy_allocation()
{
	void *p = NULL;

	cudaMalloc(&p, 1000);
	asm volatile("");
	return p;
}

int main()
{
	char line[64];
	int n;

	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "leak %d", &n) == 1 || sscanf(line, "both %d", &n) == 1)
			for (int i = 0; i < n; i++)
				leaky_allocation();
		if (sscanf(line, "clean %d", &n) == 1 || sscanf(line, "both %d", &n) == 1)
			for (int i = 0; i < n; i++) {
				void *p = tidy_allocation();

				std::thread([p] { cudaFree(p); }).join();
			}
		puts("done");
		fflush(stdout);
	}
	return 0;
}

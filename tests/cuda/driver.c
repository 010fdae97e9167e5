// SPDX-License-Identifier: Apache-2.0
/* A program of the driver API: for each line that comes in, a bit of everything. */
#include <stdio.h>

struct config {
	unsigned grid[3], block[3], shared;
	void *stream;
	void *attributes;
	unsigned n;
};

int cuInit(unsigned flags);
int cuModuleLoadData(void **module, const void *image);
int cuModuleGetFunction(void **out, void *module, const char *name);
int cuLibraryGetKernel(void **out, void *library, const char *name);
int cuKernelGetFunction(void **out, void *kernel);
int cuMemAlloc_v2(unsigned long *out, size_t size);
int cuMemFree_v2(unsigned long p);
int cuMemCreate(unsigned long *out, size_t size, const void *properties, unsigned long long flags);
int cuMemRelease(unsigned long p);
int cuMemcpyHtoD_v2(unsigned long to, const void *from, size_t n);
int cuMemcpyDtoHAsync_v2(void *to, unsigned long from, size_t n, void *stream);
int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
		   unsigned bz, unsigned shared, void *stream, void **args, void **extra);
int cuLaunchKernelEx(const void *config, void *f, void **args, void **extra);
int cuStreamSynchronize(void *stream);
int cuCtxSynchronize(void);

int main(void)
{
	struct config config = { { 1, 2, 3 }, { 4, 5, 6 }, 777, (void *)0x88, NULL, 0 };
	void *module, *by_name, *kernel, *function, *stream = (void *)0x77;
	unsigned long memory, handle;
	char line[64], bytes[96] = "";

	while (fgets(line, sizeof(line), stdin)) {
		cuInit(0);
		cuModuleLoadData(&module, bytes);
		cuModuleGetFunction(&by_name, module, "triton_poi_fused_add_0");
		cuLibraryGetKernel(&kernel, module, "_ZN3jit6kernelIfEEvPT_");
		cuKernelGetFunction(&function, kernel);
		cuMemAlloc_v2(&memory, 96);
		cuMemCreate(&handle, 2 << 20, NULL, 0);
		cuMemcpyHtoD_v2(memory, bytes, 96);
		cuLaunchKernel(by_name, 11, 12, 13, 21, 22, 23, 4096, stream, NULL, NULL);
		cuLaunchKernelEx(&config, kernel, NULL, NULL);
		cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, NULL, NULL);
		cuMemcpyDtoHAsync_v2(bytes, memory, 48, stream);
		cuStreamSynchronize(stream);
		cuCtxSynchronize();
		cuMemAlloc_v2(&memory, 2ul << 40); /* there is not so much */
		cuMemRelease(handle);
		puts("done");
		fflush(stdout);
	}
	return 0;
}

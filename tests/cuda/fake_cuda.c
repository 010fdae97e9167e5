// SPDX-License-Identifier: Apache-2.0
/*
 * A CUDA driver without a GPU, for programs that call the driver themselves:
 * Triton, CuPy, JAX do. Not for the real runtime, which checks whom it talks to.
 * Handles grow from 0xf000. Build it with -O0, as fake_cudart.c.
 */
#include <stdlib.h>
#include <string.h>

enum { OK = 0, MEMORY = 2 };

static unsigned long next_handle = 0xf000;

static int handle(void **out)
{
	*out = (void *)(next_handle += 0x10);
	return OK;
}

static int allocate(unsigned long *out, size_t size)
{
	void *p = size > (1ul << 40) ? NULL : malloc(size);

	*out = (unsigned long)p;
	return p ? OK : MEMORY;
}

int cuInit(unsigned flags)
{
	return OK;
}

int cuModuleLoadData(void **module, const void *image)
{
	return handle(module);
}

int cuModuleGetFunction(void **out, void *module, const char *name)
{
	return handle(out);
}

int cuLibraryGetKernel(void **out, void *library, const char *name)
{
	return handle(out);
}

int cuKernelGetFunction(void **out, void *kernel)
{
	return handle(out);
}

int cuMemAlloc_v2(unsigned long *out, size_t size)
{
	return allocate(out, size);
}

int cuMemFree_v2(unsigned long p)
{
	free((void *)p);
	return OK;
}

int cuMemCreate(unsigned long *out, size_t size, const void *properties, unsigned long long flags)
{
	return allocate(out, size);
}

int cuMemRelease(unsigned long p)
{
	free((void *)p);
	return OK;
}

int cuMemcpyHtoD_v2(unsigned long to, const void *from, size_t n)
{
	memmove((void *)to, from, n);
	return OK;
}

int cuMemcpyDtoHAsync_v2(void *to, unsigned long from, size_t n, void *stream)
{
	memmove(to, (void *)from, n);
	return OK;
}

int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
		   unsigned bz, unsigned shared, void *stream, void **args, void **extra)
{
	return OK;
}

int cuLaunchKernelEx(const void *config, void *f, void **args, void **extra)
{
	return OK;
}

int cuStreamSynchronize(void *stream)
{
	return OK;
}

int cuCtxSynchronize(void)
{
	return OK;
}

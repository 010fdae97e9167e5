// SPDX-License-Identifier: Apache-2.0
/*
 * A CUDA runtime without a GPU: the real export names, and what a program can
 * see of them. Programs that nvcc made run against it unchanged. Memory is the
 * host's, launches do nothing, and handles stand for kernels as from CUDA 13 on.
 *
 * FAKE_CUDA_FAIL=cudaLaunchKernel:719[,…]  these calls fail so
 * FAKE_CUDA_WAIT_US=N                      each synchronisation takes this long
 *
 * Build it with -O0: then each function begins with `push %rbp`, as the real
 * ones do, and passes all of its arguments on.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
	unsigned x, y, z;
} dim3;

struct config {
	dim3 grid, block;
	size_t shared;
	void *stream;
};

struct kernel {
	const void *host;
	const char *name;
};

enum { OK = 0, INVALID_VALUE = 1, MEMORY = 2, INVALID_FUNCTION = 98, NOT_READY = 600 };
enum { MAX_KERNELS = 65536 };

static struct kernel kernels[MAX_KERNELS];
static int n_kernels;
static __thread int last_error;
static __thread struct config configs[16];
static __thread int n_configs;
static __thread int device;

/* Whether this call is told to fail, and with what. */
static int result(const char *call)
{
	static const char *told;
	static int looked;
	size_t n = strlen(call);
	const char *at;

	if (!looked) {
		told = getenv("FAKE_CUDA_FAIL");
		looked = 1;
	}
	for (at = told; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
		if (!strncmp(at, call, n) && at[n] == ':')
			return last_error = atoi(at + n + 1);
	return OK;
}

static void wait_for_gpu(void)
{
	static int us = -1;

	if (us < 0)
		us = getenv("FAKE_CUDA_WAIT_US") ? atoi(getenv("FAKE_CUDA_WAIT_US")) : 0;
	if (us)
		usleep((useconds_t)us);
}

/* ---- what nvcc's code calls ---- */

void **__cudaRegisterFatBinary(void *binary)
{
	static void *handle;

	handle = binary;
	return &handle;
}

void __cudaRegisterFatBinaryEnd(void **handle)
{
}

void __cudaUnregisterFatBinary(void **handle)
{
}

char __cudaInitModule(void **handle)
{
	return 1;
}

void __cudaRegisterFunction(void **handle, const char *host, char *device_function,
			    const char *name, int limit, void *tid, void *bid, void *block,
			    void *grid, int *warp)
{
	if (n_kernels < MAX_KERNELS)
		kernels[n_kernels++] = (struct kernel){ host, name };
}

void __cudaRegisterVar(void **handle, char *host, char *device_address, const char *name,
		       int external, size_t size, int constant, int global)
{
}

void __cudaRegisterManagedVar(void **handle, void **host, char *device_address, const char *name,
			      int external, size_t size, int constant, int global)
{
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream)
{
	if (n_configs == 16)
		return INVALID_VALUE;
	configs[n_configs++] = (struct config){ grid, block, shared, stream };
	return OK;
}

int __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream)
{
	struct config *c;

	if (!n_configs)
		return INVALID_VALUE;
	c = &configs[--n_configs];
	*grid = c->grid;
	*block = c->block;
	*shared = c->shared;
	*(void **)stream = c->stream;
	return OK;
}

int __cudaGetKernel(void **out, const void *host)
{
	for (int i = 0; i < n_kernels; i++)
		if (kernels[i].host == host) {
			*out = &kernels[i];
			return OK;
		}
	return INVALID_FUNCTION;
}

int cudaGetKernel(void **out, const void *host)
{
	return __cudaGetKernel(out, host);
}

/* ---- launches ---- */

int cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **args, size_t shared,
		     void *stream)
{
	return result("cudaLaunchKernel");
}

int __cudaLaunchKernel(void *kernel, dim3 grid, dim3 block, void **args, size_t shared,
		       void *stream)
{
	return cudaLaunchKernel(kernel, grid, block, args, shared, stream);
}

int cudaLaunchKernel_ptsz(const void *function, dim3 grid, dim3 block, void **args, size_t shared,
			  void *stream)
{
	return result("cudaLaunchKernel");
}

int __cudaLaunchKernel_ptsz(void *kernel, dim3 grid, dim3 block, void **args, size_t shared,
			    void *stream)
{
	return cudaLaunchKernel_ptsz(kernel, grid, block, args, shared, stream);
}

int cudaLaunchCooperativeKernel(const void *function, dim3 grid, dim3 block, void **args,
				size_t shared, void *stream)
{
	return result("cudaLaunchCooperativeKernel");
}

int cudaLaunchKernelExC(const void *config, const void *function, void **args)
{
	return result("cudaLaunchKernelExC");
}

int cudaGraphLaunch(void *graph, void *stream)
{
	return result("cudaGraphLaunch");
}

int cudaGraphInstantiate(void **out, void *graph, unsigned long long flags)
{
	*out = graph;
	return result("cudaGraphInstantiate");
}

int cudaGraphExecDestroy(void *graph)
{
	return OK;
}

int cudaGraphDestroy(void *graph)
{
	return OK;
}

int cudaStreamBeginCapture(void *stream, int mode)
{
	return result("cudaStreamBeginCapture");
}

int cudaStreamEndCapture(void *stream, void **graph)
{
	*graph = stream;
	return result("cudaStreamEndCapture");
}

/* ---- memory ---- */

static int allocate(const char *call, void **out, size_t size)
{
	int failed = result(call);

	if (failed)
		return failed;
	*out = size > (1ul << 40) ? NULL : malloc(size ? size : 1);
	return *out ? OK : (last_error = MEMORY);
}

int cudaMalloc(void **out, size_t size)
{
	return allocate("cudaMalloc", out, size);
}

int cudaMallocManaged(void **out, size_t size, unsigned flags)
{
	return allocate("cudaMallocManaged", out, size);
}

int cudaMallocHost(void **out, size_t size)
{
	return allocate("cudaMallocHost", out, size);
}

int cudaHostAlloc(void **out, size_t size, unsigned flags)
{
	return allocate("cudaHostAlloc", out, size);
}

int cudaMallocAsync(void **out, size_t size, void *stream)
{
	return allocate("cudaMallocAsync", out, size);
}

int cudaMallocPitch(void **out, size_t *pitch, size_t width, size_t height)
{
	*pitch = (width + 511) & ~511ul;
	return allocate("cudaMallocPitch", out, *pitch * height);
}

static int give_back(const char *call, void *p)
{
	int failed = result(call);

	if (!failed)
		free(p);
	return failed;
}

int cudaFree(void *p)
{
	return give_back("cudaFree", p);
}

int cudaFreeAsync(void *p, void *stream)
{
	return give_back("cudaFreeAsync", p);
}

int cudaFreeHost(void *p)
{
	return give_back("cudaFreeHost", p);
}

int cudaMemcpy(void *to, const void *from, size_t n, int kind)
{
	int failed = result("cudaMemcpy");

	if (!failed && to && from)
		memmove(to, from, n);
	wait_for_gpu();
	return failed;
}

int cudaMemcpyAsync(void *to, const void *from, size_t n, int kind, void *stream)
{
	int failed = result("cudaMemcpyAsync");

	if (!failed && to && from)
		memmove(to, from, n);
	return failed;
}

int cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
		 size_t height, int kind)
{
	return result("cudaMemcpy2D");
}

int cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
		      size_t height, int kind, void *stream)
{
	return result("cudaMemcpy2DAsync");
}

int cudaMemcpyPeerAsync(void *to, int to_device, const void *from, int from_device, size_t n,
			void *stream)
{
	return result("cudaMemcpyPeerAsync");
}

int cudaMemset(void *p, int value, size_t n)
{
	return result("cudaMemset");
}

int cudaMemsetAsync(void *p, int value, size_t n, void *stream)
{
	return result("cudaMemsetAsync");
}

/* ---- streams, events, devices ---- */

int cudaDeviceSynchronize(void)
{
	wait_for_gpu();
	return result("cudaDeviceSynchronize");
}

int cudaStreamCreate(void **out)
{
	*out = malloc(64);
	return result("cudaStreamCreate");
}

int cudaStreamDestroy(void *stream)
{
	free(stream);
	return result("cudaStreamDestroy");
}

int cudaStreamSynchronize(void *stream)
{
	wait_for_gpu();
	return result("cudaStreamSynchronize");
}

int cudaStreamQuery(void *stream)
{
	return result("cudaStreamQuery");
}

int cudaEventCreate(void **out)
{
	*out = malloc(64);
	return OK;
}

int cudaEventDestroy(void *event)
{
	free(event);
	return OK;
}

int cudaEventRecord(void *event, void *stream)
{
	return result("cudaEventRecord");
}

int cudaEventQuery(void *event)
{
	static __thread int asked;
	int failed = result("cudaEventQuery");

	if (failed)
		return failed;
	return asked++ % 2 ? OK : NOT_READY;
}

int cudaEventSynchronize(void *event)
{
	wait_for_gpu();
	return result("cudaEventSynchronize");
}

int cudaEventElapsedTime(float *ms, void *start, void *end)
{
	*ms = 12.5f;
	return result("cudaEventElapsedTime");
}

int cudaSetDevice(int number)
{
	device = number;
	return result("cudaSetDevice");
}

int cudaGetDevice(int *number)
{
	*number = device;
	return OK;
}

int cudaGetDeviceCount(int *n)
{
	*n = 8;
	return OK;
}

int cudaRuntimeGetVersion(int *version)
{
	*version = 13000;
	return OK;
}

int cudaDriverGetVersion(int *version)
{
	*version = 13000;
	return OK;
}

int cudaGetLastError(void)
{
	int error = last_error;

	last_error = OK;
	return error;
}

int cudaPeekAtLastError(void)
{
	return last_error;
}

const char *cudaGetErrorName(int error)
{
	return error ? "an error" : "cudaSuccess";
}

const char *cudaGetErrorString(int error)
{
	return cudaGetErrorName(error);
}

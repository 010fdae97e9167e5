// SPDX-License-Identifier: Apache-2.0
/*
 * Three kernels, launched by the lines that come in: "go N" launches each N
 * times, one of them through the C API, too, and waits; "fork N" does so in a
 * child that ends then.
 */
#include <cstdio>
#include <sys/wait.h>
#include <unistd.h>

__global__ void vectorAdd(const float *a, const float *b, float *c, int n)
{
	c[threadIdx.x] = a[threadIdx.x] + b[threadIdx.x] + n;
}

namespace
{
template <int N, typename T> __global__ void hidden(T *p)
{
	p[threadIdx.x] *= N;
}
} // namespace

namespace model
{
template <typename T> struct layer {
	T weight;
};
template <typename T> __global__ void softmax(layer<T> p)
{
	p.weight = 1;
}
} // namespace model

static void go(int n)
{
	for (int i = 0; i < n; i++) {
		float *p = NULL;
		void *args[] = { &p };

		vectorAdd<<<dim3(11, 12, 13), dim3(21, 22, 2), 4096>>>(p, p, p, i);
		hidden<3><<<2, 64>>>(p);
		model::softmax<<<1, 32>>>(model::layer<double>{ 1 });
		cudaLaunchKernel((const void *)hidden<3, float>, dim3(5), dim3(6), args, 7, 0);
	}
	printf("%d\n", cudaDeviceSynchronize());
	fflush(stdout);
}

int main()
{
	char line[64];
	int n;

	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "go %d", &n) == 1) {
			go(n);
		} else if (sscanf(line, "fork %d", &n) == 1) {
			if (!fork()) {
				go(n);
				_exit(0);
			}
			wait(NULL);
		}
	}
	return 0;
}

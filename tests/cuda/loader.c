// SPDX-License-Identifier: Apache-2.0
/* Loads a library when told to, "load PATH", and calls its run(N): "run N". Knows nothing of CUDA. */
#include <dlfcn.h>
#include <stdio.h>

int main(void)
{
	char line[4096], path[4096];
	void (*run)(int) = NULL;
	int n;

	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "load %4095s", path) == 1) {
			void *library = dlopen(path, RTLD_NOW);

			run = library ? (void (*)(int))dlsym(library, "run") : NULL;
			puts(run ? "loaded" : dlerror());
		} else if (sscanf(line, "run %d", &n) == 1 && run) {
			run(n);
			puts("done");
		}
		fflush(stdout);
	}
	return 0;
}

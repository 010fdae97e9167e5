// SPDX-License-Identifier: Apache-2.0
/* C++ names, by libstdc++'s own demangler, where there is one. */
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "shim.h"

typedef char *(*demangler)(const char *symbol, char *out, size_t *len, int *status);

int otb_demangle(const char *symbol, char *out, uint32_t size)
{
	static demangler demangle;
	static int looked;
	char *text;
	int status = 0;

	if (!looked) {
		void *library = dlopen("libstdc++.so.6", RTLD_LAZY | RTLD_LOCAL);

		looked = 1;
		if (library)
			demangle = (demangler)dlsym(library, "__cxa_demangle");
	}
	text = demangle ? demangle(symbol, NULL, NULL, &status) : NULL;
	if (!text || status || strlen(text) >= size) {
		free(text);
		return 0;
	}
	strcpy(out, text);
	free(text);
	return 1;
}

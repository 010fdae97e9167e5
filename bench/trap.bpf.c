// SPDX-License-Identifier: Apache-2.0
/* Programs that do nothing: what a probe costs before it does anything. */
#include "kernel.h"
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Apache-2.0";

SEC("uprobe")
int trap_enter(void *ctx)
{
	return 0;
}

SEC("uretprobe")
int trap_leave(void *ctx)
{
	return 0;
}

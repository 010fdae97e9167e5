/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What kernels before 5.14 cannot do. `./dev build` compiles each object that
 * includes this twice; the agent tries the ordinary one first.
 *
 *   5.12  compare-and-swap, exchange and fetching atomics: their very presence
 *         makes older kernels refuse a program, so no run-time test can help
 *   5.14  SEC("syscall") programs; 5.13 bpf_for_each_map_elem
 */
#pragma once

#include "kernel.h"
#include <bpf/bpf_helpers.h>

#ifdef OLD_KERNEL

/* Not atomic: two CPUs that work on one connection within the same few instructions both go on. */
static __always_inline bool take(__u32 *busy)
{
	if (*(volatile __u32 *)busy)
		return false;
	*(volatile __u32 *)busy = 1;
	return true;
}

static __always_inline void give(__u32 *busy)
{
	*(volatile __u32 *)busy = 0;
}

#define ATOMIC_XOR(at, value) (*(at) ^= (value))

#else

static __always_inline bool take(__u32 *busy)
{
	return !__sync_val_compare_and_swap(busy, 0, 1);
}

static __always_inline void give(__u32 *busy)
{
#ifdef __TARGET_ARCH_x86 /* stores are not reordered with what was before them */
	asm volatile("" ::: "memory");
	*(volatile __u32 *)busy = 0;
#else
	__sync_lock_test_and_set(busy, 0);
#endif
}

#define ATOMIC_XOR(at, value) __sync_fetch_and_xor(at, value)

#endif

/* Keep the compiler from proving a bound in a way that the verifier cannot follow. */
#define CLAMP(var, max) \
	asm volatile("if %0 <= %[limit] goto +1; %0 = %[limit]" : "+r"(var) : [limit] "i"(max))

/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The ids of what has no traceparent, and whether a trace is sampled: the kernel
 * side and user space come to the same answer, each by itself.
 */
#pragma once

#define TRACE_INLINE static inline __attribute__((always_inline, unused))

/* splitmix64's finalizer (Steele, Lea, Flood 2014). */
TRACE_INLINE __u64 mix(__u64 x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

/* A number for one exchange under one seed; never 0. */
TRACE_INLINE __u64 exchange_hash(__u64 seed, __u64 cookie, __u32 number)
{
	__u64 x = mix(seed ^ mix(cookie + 0x9e3779b97f4a7c15u * number));

	return x ? x : 1;
}

/* The last 8 bytes of the trace id that begins with exchange_hash() under the second seed. */
TRACE_INLINE __u64 trace_id_end(__u64 begin, __u64 first_seed)
{
	return mix(begin ^ first_seed);
}

/*
 * OpenTelemetry's randomness of a trace: the last 56 bits of its id, whose last
 * 8 bytes are *end* as they lie in memory.
 */
TRACE_INLINE __u64 trace_randomness(__u64 end)
{
	return __builtin_bswap64(end) & 0xffffffffffffff;
}

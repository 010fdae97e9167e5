/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Capabilities of the calling thread, as bit sets by the numbers of linux/capability.h. cffi reads
 * this file as gcc does, so it has no directives; include <stdint.h> before it.
 */

uint64_t caps_effective(void);
uint64_t caps_permitted(void);

/* Use only these for now; 0 or -errno. */
int caps_use(uint64_t effective);

/*
 * Have only these from now on, and threads made from now on with them; no program that we run
 * gains any by being run. 0 or -errno.
 */
int caps_keep(uint64_t permitted);

// SPDX-License-Identifier: Apache-2.0
/* capget(2) and capset(2), which glibc has no functions for. */
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/capability.h>

#include "caps.h"

static struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };

static int get(struct __user_cap_data_struct data[2])
{
	memset(data, 0, 2 * sizeof(data[0]));
	return syscall(SYS_capget, &header, data) ? -errno : 0;
}

static int set(const struct __user_cap_data_struct data[2])
{
	return syscall(SYS_capset, &header, data) ? -errno : 0;
}

uint64_t caps_effective(void)
{
	struct __user_cap_data_struct data[2];

	get(data);
	return (uint64_t)data[1].effective << 32 | data[0].effective;
}

uint64_t caps_permitted(void)
{
	struct __user_cap_data_struct data[2];

	get(data);
	return (uint64_t)data[1].permitted << 32 | data[0].permitted;
}

int caps_use(uint64_t effective)
{
	struct __user_cap_data_struct data[2];
	int err = get(data);

	if (err)
		return err;
	data[0].effective = (uint32_t)effective & data[0].permitted;
	data[1].effective = (uint32_t)(effective >> 32) & data[1].permitted;
	return set(data);
}

int caps_keep(uint64_t permitted)
{
	struct __user_cap_data_struct data[2];
	int err = get(data);

	if (err)
		return err;
	for (int i = 0; i < 2; i++) {
		uint32_t keep = (uint32_t)(permitted >> (32 * i));

		data[i].permitted &= keep;
		data[i].effective = data[i].permitted;
		data[i].inheritable = 0; /* the ambient set follows */
	}
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return -errno;
	return set(data);
}

/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What cuda.bpf.c and user space tell each other. Read by clang, gcc and cffi:
 * no directives. Widest members first: -Wpadded stays silent.
 */

enum cuda_limits {
	CUDA_APIS = 512,
	CUDA_NAME_LEN = 2048,
	CUDA_STACK_DEPTH = 32,
	CUDA_BUCKETS = 24,
	CUDA_FIRST_BUCKET = 10, /* durations up to 2^10 ns, then twice as much each */
	CUDA_SIZE_STEP = 2,     /* sizes up to 2^2 bytes, then four times as much each */
};

/* What a function does, and with it how its arguments are read. */
enum cuda_family {
	CUDA_OTHER = 0,
	CUDA_LAUNCH = 1,        /* (function, dim3 grid, dim3 block, args, shared, stream) */
	CUDA_LAUNCH_CONFIG = 2, /* (config *, function, …) */
	CUDA_LAUNCH_DRIVER = 3, /* (function, grid x, y, z, block x, y, z, shared, stream, …) */
	CUDA_GRAPH_LAUNCH = 4,
	CUDA_COPY = 5,
	CUDA_SET = 6,
	CUDA_ALLOC = 7,
	CUDA_FREE = 8,
	CUDA_SYNC = 9,
	CUDA_QUERY = 10,
	CUDA_RECORD = 11,
	CUDA_DEVICE = 12, /* (device) becomes the thread's */
	CUDA_CAPTURE_BEGIN = 13,
	CUDA_CAPTURE_END = 14,
	CUDA_ELAPSED = 15, /* (float *ms, …) */
	CUDA_INSTANTIATE = 16,
};

/* The CUDA function behind an attach cookie. Arguments are numbered from 1; 0: it has none such. */
struct cuda_api {
	__u8 family;
	__u8 driver;     /* of libcuda; else of the runtime */
	__u8 size_arg;   /* bytes */
	__u8 factor_arg; /* to multiply them with */
	__u8 stream_arg;
	__u8 pointer_arg; /* of an allocation where the pointer is stored, else the pointer */
	__u8 kind_arg;    /* enum cudaMemcpyKind */
	__u8 flags;       /* enum cuda_api_flags */
};

enum cuda_api_flags {
	CUDA_API_TOLD = 1, /* each call is an event; of others, those that fail */
	CUDA_API_PITCH =
		2, /* the row's size is what the call returned behind its second argument */
	CUDA_API_HANDLE = 4,  /* the pointer is a handle of physical memory */
	CUDA_API_HOST = 8,    /* memory of the host */
	CUDA_API_KIND = 16,   /* kind_arg is the kind itself, plus 1 */
	CUDA_API_NARROW = 32, /* the size is of 32 bits */
	CUDA_API_VALUE = 64,  /* the pointer argument of an allocation is the pointer itself */
};

enum cuda_call_flags {
	CUDA_CALL_CAPTURED = 1, /* recorded into a graph, not carried out */
};

enum { CUDA_NO_DEVICE = 0xffff };

/* One call of a CUDA function. Times are CLOCK_MONOTONIC. */
struct cuda_call {
	__u64 start_ns;
	__u64 end_ns;
	__u64 process_start_ns; /* CLOCK_BOOTTIME; with pid, names a process for good */
	__u64 cookie;           /* the inbound exchange open on the thread; 0: none, or several */
	__u64 function;         /* a launch's: host function, or a handle; a graph's executable */
	__u64 bytes;
	__u64 stream;
	__u64 pointer;
	__u32 number; /* of the exchange on its connection */
	__u32 pid;
	__u32 tid;
	__u32 grid_x;
	__u32 grid_y;
	__u32 grid_z;
	__u32 block_x;
	__u32 block_y;
	__u32 block_z;
	__u32 shared_bytes;
	__u32 error;   /* cudaError_t or CUresult */
	__u32 stack;   /* where it was called: key of cuda_stacks, plus 1; 0: not recorded */
	__u32 elapsed; /* the milliseconds that a CUDA_ELAPSED stored, a float's bits */
	__u16 api;
	__u16 device; /* the thread's, if it said so */
	__u8 kind;
	__u8 flags; /* enum cuda_call_flags */
	__u8 _pad[6];
};

/* Metrics, per CPU: what was called how often. */
struct cuda_key {
	__u64 function; /* of a launch, else 0 */
	__u64 process_start_ns;
	__u32 pid;
	__u32 error;
	__u16 api;
	__u8 kind;
	__u8 flags; /* enum cuda_call_flags */
	__u8 _pad[4];
};

struct cuda_count {
	__u64 calls;
	__u64 bytes;
	__u64 duration_ns;
	__u64 durations[CUDA_BUCKETS];
};

/* Sizes of copies, likewise. */
struct cuda_size_key {
	__u64 process_start_ns;
	__u32 pid;
	__u8 kind;
	__u8 _pad[3];
};

struct cuda_sizes {
	__u64 bytes;
	__u64 sizes[CUDA_BUCKETS];
};

/* Memory that is allocated now. */
struct cuda_memory_key {
	__u64 pointer;
	__u32 pid;
	__u32 space; /* 0: addresses, 1: handles of physical memory */
};

struct cuda_memory {
	__u64 process_start_ns;
	__u64 bytes;
	__u32 stack;
	__u16 api;
	__u8 _pad[2];
};

/* Likewise, by where it was allocated. */
struct cuda_site_key {
	__u64 process_start_ns;
	__u32 pid;
	__u32 stack;
	__u16 api;
	__u8 _pad[6];
};

struct cuda_site {
	__u64 live_bytes;
	__u64 live; /* allocations */
	__u64 allocated_bytes;
	__u64 allocated; /* allocations */
};

enum cuda_name_kind {
	CUDA_NAME_REGISTERED = 1, /* handle: the host function; a name follows */
	CUDA_NAME_GIVEN = 2,      /* handle: of the driver or runtime; a name follows */
	CUDA_NAME_ALIAS = 3,      /* handle stands for target */
};

/* What a kernel is called. Followed by len bytes of its symbol. */
struct cuda_name {
	__u64 process_start_ns;
	__u64 handle;
	__u64 target;
	__u32 pid;
	__u16 len;
	__u8 kind;
	__u8 _pad;
};

enum cuda_process_kind {
	CUDA_PROCESS_MAPPED = 1, /* may have mapped a file */
	CUDA_PROCESS_FORKED = 2,
	CUDA_PROCESS_EXECED = 3,
	CUDA_PROCESS_EXITED = 4,
};

/* A selected process may use other libraries from now on. */
struct cuda_process {
	__u64 process_start_ns;
	__u32 pid;
	__u32 parent_pid; /* of one that forked */
	__u32 kind;
	__u32 _pad;
};

/* In of the program that forgets a process: its live memory. */
struct cuda_command {
	__u32 pid;
	__u32 _pad;
};

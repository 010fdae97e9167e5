# SPDX-License-Identifier: Apache-2.0
"""CUDA's functions: which are looked at, and where their arguments are.

One row for each function of the CUDA Runtime and Driver APIs (version 13, and
the older forms that binaries still call). A library also exports the forms for
programs that are compiled with a default stream per thread: *_ptsz, *_ptds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum


class Family(IntEnum):
    """The values are enum cuda_family's (bpf/cuda.h)."""

    OTHER = 0
    LAUNCH = 1
    LAUNCH_CONFIG = 2
    LAUNCH_DRIVER = 3
    GRAPH_LAUNCH = 4
    COPY = 5
    SET = 6
    ALLOC = 7
    FREE = 8
    SYNC = 9
    QUERY = 10
    RECORD = 11
    DEVICE = 12
    CAPTURE_BEGIN = 13
    CAPTURE_END = 14
    ELAPSED = 15
    INSTANTIATE = 16


LAUNCHES = (Family.LAUNCH, Family.LAUNCH_CONFIG, Family.LAUNCH_DRIVER)
TOLD, PITCH, HANDLE, HOST, KIND, NARROW, VALUE = (1 << i for i in range(7))  # enum cuda_api_flags
HOST_TO_HOST, HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE, DEFAULT = range(1, 6)  # enum cudaMemcpyKind, plus 1
KINDS = ("", "HostToHost", "HostToDevice", "DeviceToHost", "DeviceToDevice", "Default")


@dataclass(frozen=True, slots=True)
class Api:
    """A function as it is called in a program; arguments are numbered from 1, 0: it has none such."""

    name: str
    family: Family
    size: int = 0
    factor: int = 0
    stream: int = 0
    pointer: int = 0
    kind: int = 0
    flags: int = 0
    suffix: str = ""
    """What the library appends to the name."""

    @property
    def driver(self) -> bool:
        return not self.name.startswith("cuda")

    @property
    def memory(self) -> str:
        """Which memory it allocates."""
        return "host" if self.flags & HOST else "managed" if self.name.endswith("Managed") else "device"


def _runtime() -> Iterator[Api]:
    f = Family
    for name in ("cudaLaunchKernel", "cudaLaunchCooperativeKernel"):
        yield Api(name, f.LAUNCH, flags=TOLD)
    yield Api("cudaLaunchKernelExC", f.LAUNCH_CONFIG, flags=TOLD)
    yield Api("cudaGraphLaunch", f.GRAPH_LAUNCH, pointer=1, stream=2, flags=TOLD)
    for name in ("cudaGraphInstantiate", "cudaGraphInstantiateWithFlags"):
        yield Api(name, f.INSTANTIATE, flags=TOLD)
    yield Api("cudaStreamBeginCapture", f.CAPTURE_BEGIN, stream=1)
    yield Api("cudaStreamEndCapture", f.CAPTURE_END, stream=1)

    yield Api("cudaMemcpy", f.COPY, size=3, kind=4, flags=TOLD)
    yield Api("cudaMemcpyAsync", f.COPY, size=3, kind=4, stream=5, flags=TOLD)
    yield Api("cudaMemcpy2D", f.COPY, size=5, factor=6, kind=7, flags=TOLD)
    yield Api("cudaMemcpy2DAsync", f.COPY, size=5, factor=6, kind=7, stream=8, flags=TOLD)
    yield Api("cudaMemcpyPeer", f.COPY, size=5, kind=DEVICE_TO_DEVICE, flags=TOLD | KIND)
    yield Api("cudaMemcpyPeerAsync", f.COPY, size=5, kind=DEVICE_TO_DEVICE, stream=6, flags=TOLD | KIND)
    for name in ("cudaMemcpyToSymbol", "cudaMemcpyFromSymbol"):
        yield Api(name, f.COPY, size=3, kind=5, flags=TOLD)
        yield Api(f"{name}Async", f.COPY, size=3, kind=5, stream=6, flags=TOLD)
    yield Api("cudaMemset", f.SET, size=3, flags=TOLD)
    yield Api("cudaMemsetAsync", f.SET, size=3, stream=4, flags=TOLD)
    yield Api("cudaMemset2D", f.SET, size=4, factor=5, flags=TOLD)
    yield Api("cudaMemset2DAsync", f.SET, size=4, factor=5, stream=6, flags=TOLD)

    for name in ("cudaMalloc", "cudaMallocManaged"):
        yield Api(name, f.ALLOC, pointer=1, size=2, flags=TOLD)
    for name in ("cudaMallocHost", "cudaHostAlloc"):
        yield Api(name, f.ALLOC, pointer=1, size=2, flags=TOLD | HOST)
    yield Api("cudaMallocPitch", f.ALLOC, pointer=1, size=4, flags=TOLD | PITCH)
    yield Api("cudaMallocAsync", f.ALLOC, pointer=1, size=2, stream=3, flags=TOLD)
    yield Api("cudaMallocFromPoolAsync", f.ALLOC, pointer=1, size=2, stream=4, flags=TOLD)
    yield Api("cudaFree", f.FREE, pointer=1, flags=TOLD)
    yield Api("cudaFreeAsync", f.FREE, pointer=1, stream=2, flags=TOLD)
    yield Api("cudaFreeHost", f.FREE, pointer=1, flags=TOLD | HOST)
    yield Api("cudaHostRegister", f.OTHER, size=2, flags=HOST)

    yield Api("cudaDeviceSynchronize", f.SYNC, flags=TOLD)
    yield Api("cudaStreamSynchronize", f.SYNC, stream=1, flags=TOLD)
    yield Api("cudaEventSynchronize", f.SYNC, pointer=1, flags=TOLD)
    yield Api("cudaStreamQuery", f.QUERY, stream=1)
    yield Api("cudaEventQuery", f.QUERY, pointer=1)
    yield Api("cudaEventRecord", f.RECORD, pointer=1, stream=2)
    yield Api("cudaEventRecordWithFlags", f.RECORD, pointer=1, stream=2)
    yield Api("cudaEventElapsedTime", f.ELAPSED, flags=TOLD)
    yield Api("cudaSetDevice", f.DEVICE, pointer=1)
    for name in ("cudaStreamCreate", "cudaStreamCreateWithFlags", "cudaStreamCreateWithPriority"):
        yield Api(name, f.OTHER)
    yield Api("cudaStreamDestroy", f.OTHER, stream=1)
    yield Api("cudaLaunchHostFunc", f.OTHER, stream=1)


def _driver() -> Iterator[Api]:
    f = Family
    for name in ("cuLaunchKernel", "cuLaunchCooperativeKernel"):
        yield Api(name, f.LAUNCH_DRIVER, flags=TOLD)
    yield Api("cuLaunchKernelEx", f.LAUNCH_CONFIG, flags=TOLD)
    yield Api("cuGraphLaunch", f.GRAPH_LAUNCH, pointer=1, stream=2, flags=TOLD)
    yield Api("cuGraphInstantiateWithFlags", f.INSTANTIATE, flags=TOLD)
    yield Api("cuStreamBeginCapture", f.CAPTURE_BEGIN, stream=1, suffix="_v2")
    yield Api("cuStreamEndCapture", f.CAPTURE_END, stream=1)

    for name, kind in (("HtoD", HOST_TO_DEVICE), ("DtoH", DEVICE_TO_HOST), ("DtoD", DEVICE_TO_DEVICE), ("", DEFAULT)):
        suffix = "_v2" if name else ""
        yield Api(f"cuMemcpy{name}", f.COPY, size=3, kind=kind, flags=TOLD | KIND, suffix=suffix)
        yield Api(f"cuMemcpy{name}Async", f.COPY, size=3, kind=kind, stream=4, flags=TOLD | KIND, suffix=suffix)
    yield Api("cuMemcpyPeer", f.COPY, size=5, kind=DEVICE_TO_DEVICE, flags=TOLD | KIND)
    yield Api("cuMemcpyPeerAsync", f.COPY, size=5, kind=DEVICE_TO_DEVICE, stream=6, flags=TOLD | KIND)
    yield Api("cuMemsetD8", f.SET, size=3, flags=TOLD, suffix="_v2")
    yield Api("cuMemsetD8Async", f.SET, size=3, stream=4, flags=TOLD)
    for bits in (16, 32):  # their size is a number of elements
        yield Api(f"cuMemsetD{bits}", f.SET, flags=TOLD, suffix="_v2")
        yield Api(f"cuMemsetD{bits}Async", f.SET, stream=4, flags=TOLD)

    yield Api("cuMemAlloc", f.ALLOC, pointer=1, size=2, flags=TOLD, suffix="_v2")
    yield Api("cuMemAllocManaged", f.ALLOC, pointer=1, size=2, flags=TOLD)
    yield Api("cuMemAllocHost", f.ALLOC, pointer=1, size=2, flags=TOLD | HOST, suffix="_v2")
    yield Api("cuMemHostAlloc", f.ALLOC, pointer=1, size=2, flags=TOLD | HOST)
    yield Api("cuMemAllocPitch", f.ALLOC, pointer=1, size=4, flags=TOLD | PITCH, suffix="_v2")
    yield Api("cuMemAllocAsync", f.ALLOC, pointer=1, size=2, stream=3, flags=TOLD)
    yield Api("cuMemAllocFromPoolAsync", f.ALLOC, pointer=1, size=2, stream=4, flags=TOLD)
    yield Api("cuMemCreate", f.ALLOC, pointer=1, size=2, flags=TOLD | HANDLE)
    yield Api("cuMemFree", f.FREE, pointer=1, flags=TOLD, suffix="_v2")
    yield Api("cuMemFreeAsync", f.FREE, pointer=1, stream=2, flags=TOLD)
    yield Api("cuMemFreeHost", f.FREE, pointer=1, flags=TOLD | HOST)
    yield Api("cuMemRelease", f.FREE, pointer=1, flags=TOLD | HANDLE)
    yield Api("cuMemMap", f.OTHER, size=2)
    yield Api("cuMemHostRegister", f.OTHER, size=2, flags=HOST, suffix="_v2")

    yield Api("cuCtxSynchronize", f.SYNC, flags=TOLD)
    yield Api("cuStreamSynchronize", f.SYNC, stream=1, flags=TOLD)
    yield Api("cuEventSynchronize", f.SYNC, pointer=1, flags=TOLD)
    yield Api("cuStreamQuery", f.QUERY, stream=1)
    yield Api("cuEventQuery", f.QUERY, pointer=1)
    yield Api("cuEventRecord", f.RECORD, pointer=1, stream=2)
    yield Api("cuEventElapsedTime", f.ELAPSED, flags=TOLD)
    yield Api("cuStreamCreate", f.OTHER)
    yield Api("cuStreamDestroy", f.OTHER, stream=1, suffix="_v2")


APIS: tuple[Api, ...] = (*_runtime(), *_driver())
"""By number: what an attach cookie says."""
SYMBOLS: dict[str, int] = {
    api.name + api.suffix + per_thread: number
    for number, api in enumerate(APIS)
    for per_thread in ("", "_ptsz", "_ptds")
} | {"cuCtxSynchronize_v2": next(i for i, api in enumerate(APIS) if api.name == "cuCtxSynchronize")}
"""Exported name -> number."""

REGISTER = "__cudaRegisterFunction"
NAMING = {"cuModuleGetFunction": 3, "cuLibraryGetKernel": 3, "cudaLibraryGetKernel": 3}
"""(handle *, …, name): which argument is the kernel's name."""
ALIASES = {"__cudaGetKernel": 2, "cudaGetKernel": 2, "cudaGetFuncBySymbol": 2, "cuKernelGetFunction": 2}
"""(handle *, target): the handle stands for the target."""

# cudaError_t and CUresult: where both have a number it means the same, but for these names.
_ERRORS = {
    1: "InvalidValue",
    2: "MemoryAllocation",
    3: "InitializationError",
    4: "CudartUnloading",
    9: "InvalidConfiguration",
    12: "InvalidPitchValue",
    13: "InvalidSymbol",
    17: "InvalidDevicePointer",
    20: "InvalidMemcpyDirection",
    35: "InsufficientDriver",
    36: "CallRequiresNewerDriver",
    46: "DevicesUnavailable",
    52: "MissingConfiguration",
    98: "InvalidDeviceFunction",
    100: "NoDevice",
    101: "InvalidDevice",
    103: "SoftwareValidityNotEstablished",
    200: "InvalidKernelImage",
    201: "DeviceUninitialized",
    205: "MapBufferObjectFailed",
    208: "AlreadyMapped",
    209: "NoKernelImageForDevice",
    210: "AlreadyAcquired",
    214: "ECCUncorrectable",
    215: "UnsupportedLimit",
    217: "PeerAccessUnsupported",
    218: "InvalidPtx",
    219: "InvalidGraphicsContext",
    220: "NvlinkUncorrectable",
    222: "UnsupportedPtxVersion",
    300: "InvalidSource",
    301: "FileNotFound",
    302: "SharedObjectSymbolNotFound",
    303: "SharedObjectInitFailed",
    304: "OperatingSystem",
    400: "InvalidResourceHandle",
    401: "IllegalState",
    500: "SymbolNotFound",
    600: "NotReady",
    700: "IllegalAddress",
    701: "LaunchOutOfResources",
    702: "LaunchTimeout",
    704: "PeerAccessAlreadyEnabled",
    705: "PeerAccessNotEnabled",
    708: "SetOnActiveProcess",
    709: "ContextIsDestroyed",
    710: "Assert",
    711: "TooManyPeers",
    712: "HostMemoryAlreadyRegistered",
    713: "HostMemoryNotRegistered",
    714: "HardwareStackError",
    715: "IllegalInstruction",
    716: "MisalignedAddress",
    717: "InvalidAddressSpace",
    718: "InvalidPc",
    719: "LaunchFailure",
    720: "CooperativeLaunchTooLarge",
    800: "NotPermitted",
    801: "NotSupported",
    802: "SystemNotReady",
    803: "SystemDriverMismatch",
    804: "CompatNotSupportedOnDevice",
    900: "StreamCaptureUnsupported",
    901: "StreamCaptureInvalidated",
    902: "StreamCaptureMerge",
    903: "StreamCaptureUnmatched",
    904: "StreamCaptureUnjoined",
    905: "StreamCaptureIsolation",
    906: "StreamCaptureImplicit",
    907: "CapturedEvent",
    908: "StreamCaptureWrongThread",
    909: "Timeout",
    910: "GraphExecUpdateFailure",
    911: "ExternalDevice",
    912: "InvalidClusterSize",
    999: "Unknown",
}


def error_name(code: int) -> str:
    """The cudaError name of a result: what `cudaGetErrorName` says; error_N of one that is not known."""
    return f"cudaError{_ERRORS[code]}" if code in _ERRORS else f"cuda_error_{code}"

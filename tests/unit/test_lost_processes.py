"""The words in which libraries say that memory is full, or that another process is lost: each ends with its code.

They are those of PyTorch 2.15's own libraries (`strings libtorch_cuda.so libtorch_cpu.so libc10_cuda.so`), of NCCL's,
and of reports in their issue trackers, whose numbers stand beside them.
"""

import errno
import os

import pytest
import torch
import torch.distributed as dist

from glioma_dist.distributed.run_command import as_run_error
from glioma_dist.errors import ExitCode, MemoryFullError, is_out_of_memory

NCCL_ERROR = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.hpp:268, {}, NCCL version 2.27.5\n{}\n"
NCCL_ERROR += "Last error:\n{}"
REMOTE = "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely."
EXITED = "remote process exited or there was a network error"
INTERNAL = "ncclInternalError: Internal check failed."
UNHANDLED = "ncclUnhandledCudaError: Call to CUDA function failed."
SYSTEM = "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error. "
TIMEOUT = (
    "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1580, OpType=ALLREDUCE, NumelIn=9801523, "
    "NumelOut=9801523, Timeout(ms)=600000) ran for 600060 milliseconds before timing out."
)
ENDED = {
    "nccl 2076": NCCL_ERROR.format(
        EXITED, REMOTE, "socketProgressOpt: Call to recv from 172.16.0.1<33759> failed : Connection reset by peer"
    ),
    "nccl 1928": NCCL_ERROR.format(EXITED, REMOTE, "NET/OFI Request 0x7f14 completed with error. RC: 113."),
    "nccl 1514": NCCL_ERROR.format(
        "internal error - please report this issue to the NCCL developers",
        INTERNAL,
        "Net : Connection closed by remote peer user<50260>",
    ),
    "nccl 795": NCCL_ERROR.format(
        "internal error", INTERNAL, "Net : Call to recv from 10.2.8.2<5> failed : Broken pipe"
    ),
    "alpaca 207": NCCL_ERROR.format(
        EXITED,
        REMOTE,
        "NET/IB : Got completion from peer 11.2.1.1<39138> with error 12, opcode 0, len 0, vendor err 129",
    ),
    "a peer's port": NCCL_ERROR.format(
        "unhandled system error", SYSTEM, "socketStartConnect: Connect to 10.0.0.2<43> failed : Connection refused"
    ),
    "pytorch 57974": "NCCL communicator was aborted on rank 1.",
    "no further words": "NCCL communicator was aborted after a previous error",
    "set by the group": "NCCL communicator encountered error set by ProcessGroupNCCL: unknown",
    "pytorch 144498": "[PG ID 0 PG GUID 0 Rank 0] remote error detected from rank: 1",
    "gloo": "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:45459",
    "gloo's write": "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] writev [10.0.0.1]:6: Broken pipe",
    "the store": "Failed to recv, got 0 bytes. Connection was likely closed. Connection reset by peer",
}
SILENT = {
    "pytorch 118369": TIMEOUT,
    "sglang 1693": f"[PG 3 Rank 5] Process group watchdog thread terminated with exception: {TIMEOUT}",
    "pytorch 64241": "NCCL communicator was aborted on rank 1. Original reason for failure was: Work: WorkNCCL("
    "OpType=ALLREDUCE, TensorShape=[1], Timeout(ms)=2000) timed out in call to wait().",
    "blocking wait": "[Rank 1] WorkNCCL(SeqNum=3, OpType=BROADCAST) timed out in blocking wait.",
    "nccl2": "Watchdog caught collective operation timeout: NCCL operation timed out",
    "nonblocking": "NCCL timeout when waiting for nonblocking call to become successful.",
    "gloo": "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 5000ms for recv",
    "gloo's pair": "Application timeout caused pair closure",
    "gloo's connection": "Connect timeout [127.0.0.1]:4711",
    "the store": "wait timeout after 300000ms, keys: /default_pg/0//cuda//timeout_key",
    "the store's socket": "Socket Timeout",
    "the store's client": "The client socket has timed out after 60000ms while trying to connect to (10.0.0.1, 29500).",
    "the launch": "Timed out after 61 seconds waiting for clients. 1/2 clients joined.",
}
FULL = {
    "allocator": "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB",
    "asynchronous": "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at another call",
    "its code": "CUDA error: memory allocation\nSearch for `cudaErrorMemoryAllocation' in https://docs.nvidia.com/cuda/",
    "driver": "CUDA driver error: out of memory",
    "driver's code": "cuMemCreate failed with CUDA_ERROR_OUT_OF_MEMORY",
    "outside the allocator": "CUDA ran out of memory outside PyTorch's allocator. If this workload uses many shapes, …",
    "cuBLAS": "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN": "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN 9": "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cuFFT": "cuFFT error: CUFFT_ALLOC_FAILED",
    "cuSOLVER": "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "nccl 1235": NCCL_ERROR.format("unhandled cuda error", UNHANDLED, "Cuda failure 2 'out of memory'"),
    "nccl, last line": NCCL_ERROR.format("unhandled cuda error", UNHANDLED, "Failed to CUDA calloc 6291456 bytes"),
    "nccl, malloc": NCCL_ERROR.format("unhandled cuda error", UNHANDLED, "Failed to CUDA malloc 4194304 bytes"),
    "nccl, host": NCCL_ERROR.format("unhandled cuda error", UNHANDLED, "Failed to CUDA host alloc 65536 bytes"),
    "CPU": "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: tried to allocate 9 bytes",
    "CPU, newer": "DefaultCPUAllocator: not enough memory: you tried to allocate 274877906944 bytes.",
    "C++": "std::bad_alloc",
    "shared memory": "unable to mmap 4096 bytes from file </torch_1_2>: Cannot allocate memory (12)",
}
OTHER_FAULTS = {
    "wrong use": NCCL_ERROR.format(
        "invalid usage",
        "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.",
        "Duplicate GPU detected",
    ),
    "a kernel's fault": "[PG ID 0 Rank 0] Process group watchdog thread terminated with exception: CUDA error: "
    "an illegal memory access was encountered",
    "shapes": "mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)",
    "a library": "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED",
}
KINDS = (RuntimeError, dist.DistBackendError)
# PyTorch 2.7 has no AcceleratorError.
CUDA_KINDS = [RuntimeError, dist.DistBackendError, getattr(torch, "AcceleratorError", RuntimeError)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ENDED)
def test_a_process_that_ended_is_recognised(name, kind):
    found = as_run_error(kind(ENDED[name]), 600.0)
    assert (found.exit_code, "another process of this run ended" in str(found)) == (ExitCode.UNAVAILABLE, True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SILENT)
def test_a_silent_process_is_recognised(name, kind):
    found = as_run_error(kind(SILENT[name]), 600.0)
    assert (found.exit_code, "did not answer for 600 s" in str(found)) == (ExitCode.UNAVAILABLE, True)


@pytest.mark.parametrize("kind", CUDA_KINDS)
@pytest.mark.parametrize("name", FULL)
def test_a_full_memory_is_recognised(name, kind):
    error = kind(FULL[name])
    assert is_out_of_memory(error)
    assert isinstance(as_run_error(error), MemoryFullError)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
@pytest.mark.parametrize("name", [(), ("a.tar",)])
def test_a_limit_on_open_files_is_named(code, name):
    ending = as_run_error(OSError(code, os.strerror(code), *name))
    assert ending.exit_code == ExitCode.USER_ERROR
    assert "ulimit -n" in str(ending)
    assert all(each in str(ending) for each in name)


def test_a_full_memory_of_the_system_is_recognised():
    """As a fork or a mapping fails with it."""
    error = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    assert is_out_of_memory(error)
    assert as_run_error(error).exit_code == ExitCode.OUT_OF_MEMORY
    assert not is_out_of_memory(OSError(errno.ENOENT, "out of memory.png"))


@pytest.mark.parametrize("name", OTHER_FAULTS)
def test_other_faults_stay_faults_of_the_program(name):
    assert as_run_error(RuntimeError(OTHER_FAULTS[name])) is None
    assert not is_out_of_memory(RuntimeError(OTHER_FAULTS[name]))

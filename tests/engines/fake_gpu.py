# SPDX-License-Identifier: Apache-2.0
"""KV on a GPU that is not there: tests/gpu/fake_cuda.c stands for the driver, a region of its memory
for the GPU's. The engine's side reaches it by another address, and the connector is handed views
that have nothing but addresses of the GPU.
"""

import ctypes
import os
import subprocess

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DEVICE = torch.device("cuda", 0)


def build(folder):
    path = os.path.join(folder, "fake-cuda.so")
    subprocess.run(
        [os.environ.get("CC", "gcc"), "-std=c17", "-D_GNU_SOURCE", "-O1", "-shared", "-fPIC",
         "-fvisibility=hidden", "-DFAKE_BATCH=2",
         *(f"-I{i}" for i in ("connector", "src/base/include", "kernels/include", "tests/gpu")),
         "-o", path, "tests/gpu/fake_cuda.c", "kernels/gather.c", "src/base/status.c",
         "src/base/util.c", "-lpthread"], cwd=ROOT, check=True)
    return path


class GpuView:
    """What layouts are read from, and nothing else: touching its memory is a fault."""

    def __init__(self, view, address):
        self.view, self.address = view, address
        self.shape, self.device, self.nbytes = view.shape, DEVICE, view.nbytes

    def stride(self):
        return self.view.stride()

    def element_size(self):
        return self.view.element_size()

    def data_ptr(self):
        return self.address


class FakeGpu:
    def __init__(self, folder):
        self.library = build(folder)
        self.driver = ctypes.CDLL(self.library)
        self.driver.fake_alias.restype = ctypes.c_void_p
        context = ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self.call("cuCtxPushCurrent_v2", context)

    def call(self, name, *args):
        result = getattr(self.driver, name)(*args)
        if result != 0:
            raise RuntimeError(f"{name}: {result}")

    def bytes(self, n):
        """(as the processor sees them, address on the GPU)"""
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(n))
        alias = self.driver.fake_alias(address)
        return torch.frombuffer((ctypes.c_char * n).from_address(alias), dtype=torch.uint8), \
            address.value

    def byte_buffer(self, n, device):
        return GpuView(*self.bytes(n))

    def moved(self, caches):
        """(KV caches that the engine's side uses, the same for the connector)"""
        seen, told, regions = {}, {}, {}
        for name, view in caches.items():
            storage = view.untyped_storage()
            if storage.data_ptr() not in regions:
                regions[storage.data_ptr()] = self.bytes(storage.nbytes())
                regions[storage.data_ptr()][0].copy_(torch.tensor([], dtype=torch.uint8).set_(
                    storage, 0, (storage.nbytes(),)))
            memory, address = regions[storage.data_ptr()]
            seen[name] = memory.view(view.dtype).as_strided(view.size(), view.stride(),
                                                            view.storage_offset())
            told[name] = GpuView(seen[name],
                                 address + view.storage_offset() * view.element_size())
        return seen, told

    def compute(self):
        """Work is done when it was asked for: there is no stream to be ahead of."""

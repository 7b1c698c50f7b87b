"""Teaches a CPU build of torch that it has a CUDA device, before torch is imported: `pytest -p cuda_guard`.

A small C++ library registers what a CUDA build would: a guard of the device, through which autograd starts
a thread of the device's own, and hooks that say that there is one GPU. `simulated_cuda` has its tensors,
and what it computes. Without a compiler nothing is loaded, and the tests of the device are skipped.
"""

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = r"""
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {
using namespace c10;

Stream only_stream() { return Stream(Stream::DEFAULT, Device(kCUDA, 0)); }

struct OneDevice final : impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Device exchangeDevice(Device) const override { return Device(kCUDA, 0); }
  Device getDevice() const override { return Device(kCUDA, 0); }
  Stream getStream(Device) const noexcept override { return only_stream(); }
  Stream getDefaultStream(Device) const override { return only_stream(); }
  Stream getNewStream(Device, int) const override { return only_stream(); }
  Stream exchangeStream(Stream) const noexcept override { return only_stream(); }
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, OneDevice);
}  // namespace

namespace at {
struct DeviceGenerator final : CPUGeneratorImpl {  // draws as the CPU's, and says that it is the device's
  DeviceGenerator() { this->device_ = Device(kCUDA, 0); }
};
struct CUDAHooks : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex current_device() const override { return 0; }
  int getNumGPUs() const override { return 1; }
  Generator getNewGenerator(DeviceIndex) const override { return make_generator<DeviceGenerator>(); }
  bool compiledWithCuDNN() const override { return true; }
  bool hasCuDNN() const override { return true; }
  long versionCuDNN() const override { return 92000; }
  long versionRuntimeCuDNN() const override { return 92000; }
  double batchnormMinEpsilonCuDNN() const override { return 0; }
  void deviceSynchronize(DeviceIndex) const override {}
};
REGISTER_CUDA_HOOKS(CUDAHooks);
}  // namespace at

namespace at::accelerator {  // stands before the CPU build's own, which knows of no accelerator
std::optional<c10::DeviceType> getAccelerator(bool) { return kCUDA; }
}  // namespace at::accelerator
"""
COMPILER = shutil.which(os.environ.get("CXX", "g++"))


def compiled(compiler: str, folder: Path) -> Path:
    """The library, made for the torch that would be imported."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch = Path(spec.origin).parent
    source, library = folder / "guard.cpp", folder / "guard.so"
    source.write_text(SOURCE)
    command = [compiler, "-std=c++20", "-O0", "-shared", "-fPIC", str(source), "-o", str(library)]
    command += [f"-I{torch / 'include'}", f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'}"]
    subprocess.run([*command, "-lc10", "-ltorch_cpu"], check=True)
    return library


if COMPILER is not None:
    if "torch" in sys.modules:
        raise ImportError(
            "cuda_guard: torch is imported already. Give it first: pytest -p cuda_guard."
        )
    with tempfile.TemporaryDirectory() as name:
        ctypes.CDLL(str(compiled(COMPILER, Path(name))))

"""Build the native code: the ops, `zcpipe/_C`, through the LibTorch stable ABI, and the graphs, `zcpipe/_graph`.

The first serves every CPython; the second has no tensors and is made with pybind11, for the CPython that builds it.
The rest of the package's metadata is in pyproject.toml.
"""

from pathlib import Path

import pybind11
from setuptools import Extension, setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).parent

# One library serves every CPython from 3.10 and every torch from 2.13 (the release the target version names).
STABLE_ABI = ["-DTORCH_STABLE_ONLY", "-DTORCH_TARGET_VERSION=0x020d000000000000", "-DPy_LIMITED_API=0x030A0000"]

# Fused multiply-adds would give other bits on other instruction sets, so contraction is off. sqrt must not set errno
# and comparisons must not trap, or the compiler keeps those loops scalar; neither changes a result.
CXX = ["-std=c++20", "-O3", "-g0", "-Wall", "-Wextra", "-Wno-unused-parameter", "-fvisibility=hidden", "-fopenmp-simd"]
CXX += ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]


def sources(pattern: str) -> list[str]:
    """List files below csrc, relative to the root and in one order everywhere."""
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(f"csrc/{pattern}"))


library = CppExtension(
    "zcpipe._C",
    sources=sources("*.cpp") + sources("cpu/*.cpp"),
    depends=sources("**/*.h") + sources("**/*.inc"),
    include_dirs=[str(ROOT.absolute() / "csrc")],
    extra_compile_args={"cxx": CXX + STABLE_ABI},
    py_limited_api=True,
)

graph = Extension(
    "zcpipe._graph",
    sources=sources("graph/*.cpp"),
    depends=sources("graph/*.h") + sources("common/*.h"),
    include_dirs=[str(ROOT.absolute() / "csrc"), pybind11.get_include()],
    extra_compile_args=CXX,
    language="c++",
)

setup(ext_modules=[library, graph], cmdclass={"build_ext": BuildExtension})

"""Build the native code: the ops, `zcpipe/_C`, through the LibTorch stable ABI, and the graphs, `zcpipe/_graph`.

The first serves every CPython; the second has no tensors and is made with pybind11, for the CPython that builds it.
CUDA kernels go into the first where ``FORCE_CUDA=1`` asks for them, or where torch is a CUDA build and nvcc is found
(``CUDA_HOME``, the path, or PyPI's nvidia-cuda-nvcc); ``FORCE_CUDA=0`` leaves them out. ``TORCH_CUDA_ARCH_LIST`` names
other architectures ("8.0;9.0+PTX") and ``MAX_JOBS`` the compilers that run at a time. The rest of the package's
metadata is in pyproject.toml.
"""

import fcntl
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pybind11
import torch
from setuptools import Extension, setup
from torch.utils.cpp_extension import BuildExtension, CppExtension, include_paths

ROOT = Path(__file__).parent.absolute()

# One library serves every CPython from 3.10 and every torch from 2.13 (the release the target version names).
STABLE_ABI = ["-DTORCH_STABLE_ONLY", "-DTORCH_TARGET_VERSION=0x020d000000000000", "-DPy_LIMITED_API=0x030A0000"]

# Fused multiply-adds would give other bits on other instruction sets, so contraction is off. sqrt must not set errno
# and comparisons must not trap, or the compiler keeps those loops scalar; neither changes a result.
CXX = ["-std=c++20", "-O3", "-g0", "-Wall", "-Wextra", "-Wno-unused-parameter", "-fvisibility=hidden", "-fopenmp-simd"]
CXX += ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]

# ptxas reports registers and spills, which tests/cuda read.
NVCC = ["-std=c++20", "-O3", "-fmad=false", "--expt-relaxed-constexpr", "-Xptxas", "-v"]
NVCC += ["-Xcompiler", "-fPIC,-fvisibility=hidden,-ffp-contract=off"]
ARCHITECTURES = "8.0;9.0;10.0+PTX"
FLAGS = ("CFLAGS", "CXXFLAGS", "CPPFLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN", "NVCC_PREPEND_FLAGS")


def sources(pattern: str) -> list[str]:
    """List files below csrc, relative to the root and in one order everywhere."""
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(f"csrc/{pattern}"))


def find_nvcc() -> Path | None:
    """Find nvcc by CUDA_HOME, on the path, or among the packages of this Python."""
    homes = [Path(home) for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")) if home]
    found = [home / "bin" / "nvcc" for home in homes]
    if on_path := shutil.which("nvcc"):
        found.append(Path(on_path))
    found += sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin/nvcc"), reverse=True)
    return next((nvcc for nvcc in found if nvcc.is_file()), None)


def wants_cuda() -> bool:
    asked = os.environ.get("FORCE_CUDA", "")
    return asked != "0" if asked else torch.version.cuda is not None and find_nvcc() is not None


def gencode(architectures: str) -> list[str]:
    """Turn "8.0;9.0+PTX" into nvcc's options."""
    flags = []
    for name in re.split(r"[;\s]+", architectures.strip()):
        match = re.fullmatch(r"(\d+)\.(\d+[af]?)(\+PTX)?", name)
        if match is None:
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST: got {name!r}, expected versions such as 8.0, 9.0a or 10.0+PTX")
        number = match[1] + match[2]
        codes = [f"sm_{number}"] + ([f"compute_{number}"] if match[3] else [])
        flags += ["-gencode", f"arch=compute_{number},code=[{','.join(codes)}]"]
    return flags


class Toolkit:
    """The nvcc in use, and how to compile and link with it."""

    def __init__(self) -> None:
        nvcc = find_nvcc()
        if nvcc is None:
            raise SystemExit(
                "FORCE_CUDA: no nvcc by CUDA_HOME, on the path or in this Python's packages; "
                "`make nvcc` installs one from PyPI"
            )
        # A dry run tells where the toolkit is, also when the nvcc on the path is a script that calls another.
        said = subprocess.run([nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
        version = re.search(r"release (\d+)\.(\d+)", subprocess.check_output([nvcc, "--version"], text=True))
        top = re.search(r"^#\$ _?TOP=(.+)$", said, re.MULTILINE)
        if top is None or version is None:
            raise SystemExit(f"{nvcc}: expected the CUDA compiler, got a program that does not answer like it")
        self.nvcc, self.major, self.home = nvcc, int(version[1]), Path(top[1].strip()).resolve()
        if torch.version.cuda is not None and torch.version.cuda.split(".")[0] != version[1]:
            raise SystemExit(
                f"{nvcc} is of CUDA {version[1]}, this torch of CUDA {torch.version.cuda}: "
                "set CUDA_HOME to a toolkit of torch's, or FORCE_CUDA=0"
            )

    def command(self) -> list[str]:
        architectures = gencode(os.environ.get("TORCH_CUDA_ARCH_LIST", ARCHITECTURES))
        static = [] if torch.version.cuda else ["-DZCPIPE_STATIC_CUDART"]
        includes = [f"-I{path}" for path in (ROOT / "csrc", *include_paths())]
        return [str(self.nvcc), *NVCC, *architectures, *STABLE_ABI, *static, *includes]

    def link_arguments(self) -> list[str]:
        """A CUDA torch brings a runtime that both must share; beside a CPU torch the library brings its own."""
        name = f"libcudart.so.{self.major}" if torch.version.cuda else "libcudart_static.a"
        folders = [self.home / "lib64", self.home / "lib", *self.home.glob("targets/*/lib")]
        folders += Path(sysconfig.get_path("purelib")).glob("nvidia/*/lib")
        folder = next((folder for folder in folders if (folder / name).exists()), None)
        if folder is None:
            raise SystemExit(f"{name}: not found below {self.home}; nvidia-cuda-runtime on PyPI holds it")
        own = [] if torch.version.cuda else ["-ldl", "-lrt", "-lpthread"]
        return [f"-L{folder}", f"-l:{name}", *own]


def remembered(file: Path, content: str) -> Path:
    """Give a file that is new when the content is another, so that everything that depends on it is built again."""
    if not file.exists() or file.read_text() != content:
        file.write_text(content)
    return file


def compilers(toolkit: Toolkit | None) -> str:
    """Tell everything outside this folder that objects depend on."""
    named = [os.environ.get("CXX", "c++"), *([] if toolkit is None else [shlex.quote(str(toolkit.nvcc))])]
    # Of one that is missing torch says so.
    programs = [program for program in map(shlex.split, named) if shutil.which(program[0])]
    said = [subprocess.run([*program, "--version"], capture_output=True, text=True).stdout for program in programs]
    flags = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name in FLAGS]
    return "\n".join([*said, torch.__version__, *flags])


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let one build at a time work in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class BuildNative(BuildExtension):
    """Compile csrc/cuda/*.cu with nvcc where asked for, then all else as usual.

    torch's own class refuses .cu files beside a CPU torch. Objects stay in build/objects (or --build-temp), so that the
    next build, be it of the other choice, compiles what has changed and nothing else.
    """

    def initialize_options(self) -> None:
        super().initialize_options()
        self.build_temp = str(ROOT / "build" / "objects")

    def build_extensions(self) -> None:
        with alone(Path(self.build_temp).absolute()):
            self.build_alone(Path(self.build_temp).absolute())

    def build_alone(self, objects: Path) -> None:
        toolkit = Toolkit() if wants_cuda() else None
        command = [] if toolkit is None else toolkit.command()
        # ninja does not ask who made an object.
        found = compilers(toolkit)
        known = objects / ("compilers.txt" if toolkit is None else "compilers-cuda.txt")
        if known.exists() and known.read_text() != found:
            for stale in objects.rglob("*.o"):
                stale.unlink()
        known.write_text(found)
        folder = objects / "cuda"
        folder.mkdir(exist_ok=True)
        library = next(extension for extension in self.extensions if extension.name == "zcpipe._C")
        library.depends.append(str(remembered(folder / "choice.txt", shlex.join(command))))
        if toolkit is not None:
            if not sources("cuda/*.cu"):
                raise SystemExit("csrc/cuda has no source to compile: this copy of zcpipe is incomplete")
            compiler = remembered(folder / "command.txt", shlex.join(command))
            with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
                compiled = pool.map(lambda file: self.compile_cuda(file, command, compiler), sources("cuda/*.cu"))
                library.extra_objects += compiled
            library.depends += library.extra_objects
            library.extra_link_args += toolkit.link_arguments()
        super().build_extensions()

    def compile_cuda(self, file: str, command: list[str], compiler: Path) -> str:
        """Compile one file, unless nothing has changed; what ptxas says stays beside the object."""
        output = compiler.with_name(Path(file).stem + ".o")
        headers = sources("common/*.h") + sources("cuda/**/*.h") + sources("cuda/*.cuh")
        inputs = [compiler, ROOT / file, *(ROOT / name for name in headers)]
        if output.exists() and all(path.stat().st_mtime < output.stat().st_mtime for path in inputs):
            return str(output)
        new = output.with_suffix(".new")  # what is killed leaves no half of an object that looks like a whole one
        done = subprocess.run([*command, "-c", str(ROOT / file), "-o", str(new)], capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{file} does not compile:\n{shlex.join(done.args)}\n{done.stdout}{done.stderr}")
        output.with_suffix(".log").write_text(done.stdout + done.stderr)
        new.replace(output)
        return str(output)


library = CppExtension(
    "zcpipe._C",
    sources=sources("*.cpp") + sources("cpu/*.cpp"),
    depends=sources("**/*.h") + sources("**/*.inc"),
    include_dirs=[str(ROOT / "csrc")],
    extra_compile_args={"cxx": CXX + STABLE_ABI},
    py_limited_api=True,
)

graph = Extension(
    "zcpipe._graph",
    sources=sources("graph/*.cpp"),
    depends=sources("graph/*.h") + sources("common/*.h"),
    include_dirs=[str(ROOT / "csrc"), pybind11.get_include()],
    extra_compile_args=CXX,
    language="c++",
)

setup(ext_modules=[library, graph], cmdclass={"build_ext": BuildNative})

"""Builds the native CPU kernels with the package; everything else is in pyproject.toml.

The kernels are a plain shared library without any Python in it, compiled once for each instruction
level that the compiler knows (docs/kernels.md). Without a compiler the package installs all the
same, and the engine computes with XLA alone.
"""

import hashlib
import logging
import os
import platform
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import chain
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

_FOLDER = "engine_worker/compute/backends/cpu_native"
_SOURCES = Path(_FOLDER, "src")
_COMMON = ("library.cc", "handlers.cc", "thread_pool.cc")
_LIST = str(_SOURCES / "levels.cc")
"""Names the levels that could be compiled, so it comes last."""
_FLAGS = [
    "-g0",
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-pthread",
]
_LINK_FLAGS = [
    "-pthread", "-static-libstdc++", "-static-libgcc",
    "-s", "-Wl,--no-undefined", "-Wl,--exclude-libs,ALL",
]  # fmt: skip
_AVX2 = ["-mavx2", "-mfma"]
_AVX512 = [
    *_AVX2,
    "-mavx512f",
    "-mavx512bw",
    "-mavx512dq",
    "-mavx512vl",
    "-mprefer-vector-width=512",
]
_AVX512_BF16 = [*_AVX512, "-mavx512vnni", "-mavx512bf16"]
_X86_LEVELS = {
    "amx": [*_AVX512_BF16, "-mamx-tile", "-mamx-bf16", "-mamx-int8"],
    "avx512_bf16": _AVX512_BF16,
    "avx512_vnni": [*_AVX512, "-mavx512vnni"],
    "avx512": _AVX512,
    "avx2_vnni": [*_AVX2, "-mavxvnni"],
    "avx2": _AVX2,
}
"""Options of each level, the best first; `generic` follows on every machine."""


class BuildKernels(build_ext):
    """Compiles each level with its own options and links them into one library."""

    def build_extension(self, ext):
        try:
            self._build(ext)
        except CompileError:
            self.warn("no native kernels: XLA alone computes, several times slower for few users")
            raise

    def _build(self, ext):
        temp = Path(self.build_temp, "kernels")
        levels = _X86_LEVELS if platform.machine() in {"x86_64", "AMD64"} else {}
        if "PENSTOCK_KERNEL_LEVELS" in os.environ:
            wanted = os.environ["PENSTOCK_KERNEL_LEVELS"].split()
            levels = {name: levels[name] for name in levels if name in wanted}
        with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
            compiling = {
                name: threads.submit(self._compile_level, name, options, temp / name)
                for name, options in (*levels.items(), ("generic", []))
            }
            common = threads.submit(self._compile_common, ext.sources, temp)
            self._tell(compiling.values())
        objects, names = common.result(), []
        for name, compiled in compiling.items():
            error = compiled.exception()
            if error is not None and name == "generic":
                raise error
            if error is not None:
                self.warn(f"the kernels are built without the level {name}: {error}")
                continue
            objects += compiled.result()
            names.append(name)
        listed = " ".join(f"LEVEL({name})" for name in names)
        objects += self._compile_common([_LIST], temp, macros=[("PENSTOCK_LEVELS", listed)])
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(
            objects, str(target), extra_postargs=_LINK_FLAGS, target_lang="c++"
        )
        # The loader looks at this digest before it opens a library that may be damaged.
        target.write_bytes(target.read_bytes() + hashlib.sha256(target.read_bytes()).digest())

    def _tell(self, compiling):
        """Say how far it is, for `make serve` and `pip install -v`: minutes on a busy machine."""
        for number, _ in enumerate(chain((None,), as_completed(compiling))):
            told = f"native kernels: {number} of {len(compiling)} levels compiled"
            self.announce(told, logging.INFO)

    def _compile_level(self, name, options, folder):
        return self.compiler.compile(
            [str(_SOURCES / "level.cc")],
            output_dir=str(folder),
            macros=[("PENSTOCK_LEVEL", name)],
            extra_postargs=[*_FLAGS, *options],
        )

    def _compile_common(self, sources, folder, macros=()):
        return self.compiler.compile(
            sources, output_dir=str(folder), macros=list(macros), extra_postargs=_FLAGS
        )

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def get_outputs(self):
        # What an optional extension couldn't build is not there to be packed.
        return [path for path in super().get_outputs() if Path(path).exists()]


class PlatformWheel(bdist_wheel):
    """A wheel for this machine and every Python: the library knows nothing of Python."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


kernels = Extension(
    f"{_FOLDER.replace('/', '.')}.libpenstock_kernels",
    [str(_SOURCES / name) for name in _COMMON],
    depends=sorted(str(path) for path in _SOURCES.glob("*")),
    language="c++",
    optional=True,
)
# Only the engine's image has the sources; the other services need no kernels.
if _SOURCES.is_dir():
    setup(ext_modules=[kernels], cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel})
else:
    setup()

"""Builds the native kernels; everything else stands in pyproject.toml.

Without a C++ compiler the build of the extension fails quietly, the torch path stays, and
`loci doctor` names it.
"""

from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup

KERNELS = Path("src/loci/nn/kernels")

ParallelCompile(default=0).install()  # all processors

setup(
    ext_modules=[
        Pybind11Extension(
            "loci.nn._native",
            sorted(str(path) for path in KERNELS.glob("*.cpp")),
            depends=sorted(str(path) for path in KERNELS.glob("*.hpp")),
            cxx_std=20,
            # Instructions are chosen file by file, inside the files. A product and a sum are
            # rounded one after the other unless the code says otherwise.
            extra_compile_args=["-O3", "-fno-math-errno", "-ffp-contract=off", "-pthread"],
            extra_link_args=["-pthread"],
            optional=True,
        )
    ]
)

"""Builds the native kernels; everything else stands in pyproject.toml.

Without a C++ compiler the build of the extension fails quietly, the torch path stays, and
`loci doctor` names it.
"""

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

setup(
    ext_modules=[
        Pybind11Extension(
            "loci.nn._native",
            ["src/loci/nn/native.cpp"],
            cxx_std=20,
            extra_compile_args=["-O3", "-fno-math-errno", "-ffp-contract=off", "-pthread"],
            extra_link_args=["-pthread"],
            optional=True,
        )
    ]
)

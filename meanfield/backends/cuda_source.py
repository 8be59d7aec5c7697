"""The text of the CUDA kernels, the names of their instances, and how CuPy compiles and starts them.

`source` puts the constants of `noise` before kernels.cu, so that both use the same. An instance is a name that C++
understands, such as "move<double, Tanh, 5>"; NVRTC compiles one when it is first asked for (about a second), and CuPy
keeps the machine code on disk. Nothing here imports CuPy until a kernel is started.
"""

import functools
from collections.abc import Callable
from importlib import resources
from typing import Any

import numpy as np

from meanfield import noise
from meanfield.noise import PRECISIONS, Precision

PARTICLES = SAMPLES = 32  # of a tile in shared memory
SMALL_D = 32  # up to here the fused kernels hold a particle in registers
OPTIONS = ("--std=c++17",)  # no fast arithmetic: division, roots and small numbers stay those of IEEE 754
STRUCTS = {
    "tanh": "Tanh", "erf": "Erf", "erf_sqrt2": "ErfSqrt2", "sigmoid": "Sigmoid",
    "relu": "Relu", "softplus": "Softplus", "sin": "Sin", "linear": "Linear",
}  # fmt: skip
CTYPES = {np.dtype(np.float64): "double", np.dtype(np.float32): "float"}

# Starts a kernel: (instance, grid, block, arguments, bytes of shared memory).
Launch = Callable[[str, tuple[int, ...], tuple[int, ...], tuple[Any, ...], int], None]


def source() -> str:
    """Return the text that is compiled: constants, then kernels.cu."""
    kernels = resources.files("meanfield.backends").joinpath("kernels.cu").read_text(encoding="utf-8")
    return "\n".join([*_constants(), kernels])


def _constants() -> list[str]:
    """Return the constants of `noise` as definitions, numbers in hexadecimal: no digit is lost."""
    lines = [f"#define ROUNDS {noise.ROUNDS}", f"#define PARTICLES {PARTICLES}", f"#define SAMPLES {SAMPLES}"]
    lines += [f"#define MULTIPLIER_{i} {value:#x}u" for i, value in enumerate(noise.MULTIPLIERS)]
    lines += [f"#define INCREMENT_{i} {value:#x}u" for i, value in enumerate(noise.KEY_INCREMENTS)]
    for prefix, suffix, dtype in (("DOUBLE", "", np.float64), ("FLOAT", "f", np.float32)):
        lines += _precision(prefix, suffix, PRECISIONS[np.dtype(dtype)])
    return lines


def _precision(prefix: str, suffix: str, p: Precision) -> list[str]:
    values = {"MANTISSA": str(p.mantissa), "SQRT_HALF": f"{p.sqrt_half:#x}"}
    values["LN2_HIGH"], values["LN2_LOW"] = (part.hex() + suffix for part in p.ln2)
    for name, coefficients in (("LOG", p.log), ("SIN", p.sin), ("COS", p.cos)):
        values[name] = "{" + ", ".join(c.hex() + suffix for c in coefficients) + "}"
    return [f"#define {prefix}_{name} {value}" for name, value in values.items()]


def instance(kernel: str, dtype: np.dtype, activation: str = "", d: int = 0) -> str:
    """Return the name of a kernel's instance: "channel<float>", "jets<float, Tanh>", "move<double, Tanh, 5>"."""
    arguments = [CTYPES[dtype], *([STRUCTS[activation]] if activation else []), *([str(d)] if d else [])]
    return f"{kernel}<{', '.join(arguments)}>"


@functools.cache
def _compiled(name: str) -> Any:
    import cupy

    return cupy.RawModule(code=source(), options=OPTIONS, name_expressions=(name,)).get_function(name)


def launch(name: str, grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...], shared: int) -> None:
    """Start a kernel on the current device and stream, compiling it where needed."""
    _compiled(name)(grid, block, arguments, shared_mem=shared)

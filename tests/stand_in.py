"""What stands in for a GPU in the tests: arrays that refuse what CuPy's refuse, and kernels that run on the CPU."""

import contextlib
import ctypes
import importlib.util
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from meanfield import backends
from meanfield.backends import cuda, cuda_source
from meanfield.backends.cuda_source import STRUCTS, instance

KINDS = (np.dtype(np.float64), np.dtype(np.float32))
D = 3  # inputs of the fused kernels
EACH = [
    instance("fold", KINDS[0]),
    *(instance(kernel, kind) for kernel in ("gaussian", "channel") for kind in KINDS),
    *(instance(k, kind, h) for k in ("jets", "values", "slopes") for kind in KINDS for h in STRUCTS),
    *(instance(k, kind, h, D) for k in ("predict", "move") for kind in KINDS for h in STRUCTS),
]

HEADER = Path(__file__).parent / "cuda_on_cpu.h"
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-shared", "-fPIC")
FAULTS = {
    1: "a barrier that some threads left out",
    2: "a write past the shared memory that was asked for",
    3: "more threads or shared memory than a block may have",
}


class DeviceArray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array on a device that is not there: numpy inside, and CuPy's rules.

    It turns into numpy only by `Module.asnumpy`, a number or a truth value, which count as downloads; it mixes with
    numbers but not with numpy arrays; ufuncs have one output and no methods; functions are found by their names.
    """

    def __init__(self, inside: Any, module: "Module") -> None:
        self.inside, self.module, self.device = np.asarray(inside), module, module.current.number

    shape = property(lambda self: self.inside.shape)
    dtype = property(lambda self: self.inside.dtype)
    size = property(lambda self: self.inside.size)
    ndim = property(lambda self: self.inside.ndim)
    flags = property(lambda self: self.inside.flags)
    T = property(lambda self: DeviceArray(self.inside.T, self.module))

    def __len__(self) -> int:
        return len(self.inside)

    def __getitem__(self, key: Any) -> "DeviceArray":
        return DeviceArray(self.inside[self.module.open(key)], self.module)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.inside[self.module.open(key)] = self.module.open(value)

    def astype(self, dtype: Any, copy: bool = True) -> "DeviceArray":
        return DeviceArray(self.inside.astype(dtype, copy=copy), self.module)

    def copy(self) -> "DeviceArray":
        return DeviceArray(self.inside.copy(), self.module)

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __float__(self) -> float:
        return float(self.module.asnumpy(self))

    def __bool__(self) -> bool:
        return bool(self.module.asnumpy(self))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__" or len(kwargs.get("out", (None,))) != 1:
            return NotImplemented
        if "out" in kwargs:
            kwargs["out"] = kwargs["out"][0]
        return self.module.call(ufunc, *inputs, **kwargs)

    def __array_function__(self, function: Any, types: Any, args: tuple, kwargs: dict) -> Any:
        if function is np.asarray:  # of a host array, like this one
            return self.module.asarray(*args, **kwargs)
        return self.module.call(function, *args, **kwargs)


class Current(threading.local):
    """The number of the device that is current in a thread: the first one, until another is chosen."""

    number = 0


class Module:
    """The array module: numpy's functions on device arrays; counts what crosses between host and device."""

    def __init__(self) -> None:
        self.uploads = self.downloads = 0
        self.current = Current()

    def open(self, value: Any) -> Any:
        """Return what a function may see of an argument: the inside of arrays of the current device, no host arrays."""
        if isinstance(value, DeviceArray):
            assert value.device == self.current.number, f"an array of device {value.device} on {self.current.number}"
            return value.inside
        if isinstance(value, np.ndarray):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        if isinstance(value, list | tuple):
            return type(value)(self.open(part) for part in value)
        return value

    def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Return function(*args, **kwargs) on device arrays."""
        kwargs = {key: self.open(value) for key, value in kwargs.items()}
        found = function(*(self.open(value) for value in args), **kwargs)
        return DeviceArray(found, self) if isinstance(found, np.ndarray | np.generic) else found

    def asarray(self, value: Any, dtype: Any = None) -> DeviceArray:
        """Return a value on the device."""
        if isinstance(value, DeviceArray):
            return value if dtype in (None, value.dtype) else DeviceArray(np.asarray(value.inside, dtype), self)
        self.uploads += 1
        return DeviceArray(np.array(value, dtype), self)

    def ascontiguousarray(self, value: Any) -> DeviceArray:
        """Return an array of the device C-contiguous, itself if it is; host arrays are refused."""
        if not isinstance(value, DeviceArray):
            raise TypeError(f"Argument 'a' has incorrect type (expected an array of the device, got {type(value)})")
        return value if value.flags.c_contiguous else DeviceArray(np.ascontiguousarray(value.inside), self)

    def asnumpy(self, value: DeviceArray) -> np.ndarray:
        """Return a copy on the host."""
        assert isinstance(value, DeviceArray)
        self.downloads += 1
        return np.array(value.inside)

    def empty(self, shape: Any, dtype: Any) -> DeviceArray:
        """Return a new array; its contents are NaN, so that what nobody wrote shows."""
        return DeviceArray(np.full(shape, np.nan, dtype), self)

    def empty_like(self, array: DeviceArray) -> DeviceArray:
        """Return a new array of that shape and dtype, full of NaN."""
        return self.empty(array.shape, array.dtype)

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self.call(getattr(np, name), *args, **kwargs)


class Visible(threading.local):
    """The buses of the devices that a thread sees; a rank of its own would see its own."""

    buses: tuple[str, ...] = ("0000:17:00.0", "0000:65:00.0")


class Gpus(Module):
    """The array module of a machine with several devices, as CuPy shows them; arrays stay where they were made."""

    def __init__(self) -> None:
        super().__init__()
        # What others ask of a module that is called cupy: xarray and scipy look whether arrays are of its kind.
        self.__spec__, self.__version__, self.ndarray = ModuleSpec("cupy", None), "0", DeviceArray
        self.visible = Visible()
        runtime = SimpleNamespace(
            getDeviceCount=lambda: len(self.visible.buses),
            getDeviceProperties=lambda number: {"name": b"Stand-in", "uuid": self.visible.buses[number].encode()},
            deviceGetPCIBusId=lambda number: self.visible.buses[number],
            CUDARuntimeError=RuntimeError,
        )
        self.cuda = SimpleNamespace(runtime=runtime, Device=self.device)

    @contextlib.contextmanager
    def device(self, number: int) -> Iterator[None]:
        """Make a device the current one of this thread for a while."""
        assert 0 <= number < len(self.visible.buses)
        before, self.current.number = self.current.number, number
        try:
            yield
        finally:
            self.current.number = before


def installed(start: Any, monkeypatch: pytest.MonkeyPatch) -> Gpus:
    """Let the backend `cuda` find a machine of two GPUs, whose kernels `start` starts."""
    found, spec = Gpus(), importlib.util.find_spec
    monkeypatch.setitem(sys.modules, "cupy", found)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "cupy" or spec(name))
    monkeypatch.setattr(cuda, "launch", start)
    monkeypatch.setattr(backends, "unavailable", lambda name: "")
    monkeypatch.setitem(vars(cuda), "BACKEND", cuda.make(found, start))
    return found


class Processor:
    """Starts kernels on the CPU: kernels.cu compiled by g++ behind cuda_on_cpu.h, threads in either order."""

    def __init__(self, names: list[str], folder: Path) -> None:
        self.backwards, self.started, self._folder = False, list[str](), folder
        self._entries: dict[str, tuple[Any, int]] = {}
        self._compile(names)

    def _compile(self, names: list[str]) -> None:
        entries = ", ".join(f"[](void** a) {{ call(&{name}, a); }}" for name in names)
        text = f"""#include "{HEADER.name}"
            {cuda_source.source()}
            static const Entry entries[] = {{{entries}}};
            extern "C" int launch(int which, const unsigned* grid, const unsigned* block, size_t shared,
                                  void** arguments, int backwards) {{
                return run(entries[which], grid, block, shared, arguments, backwards);
            }}"""
        stem = self._folder / f"kernels{len(self._entries)}"
        stem.with_suffix(".cpp").write_text(text)
        command = [
            "g++",
            "-std=c++17",
            "-O1",
            "-ffp-contract=off",
            "-U_FORTIFY_SOURCE",
            "-shared",
            "-fPIC",
            f"-I{HEADER.parent}",
        ]
        subprocess.run([*command, "-o", stem.with_suffix(".so"), stem.with_suffix(".cpp")], check=True)
        library = ctypes.CDLL(str(stem.with_suffix(".so")))
        self._entries |= {name: (library, i) for i, name in enumerate(names)}

    def __call__(self, name: str, grid: tuple, block: tuple, arguments: tuple, shared: int) -> None:
        """Start an instance, compiling it if it is not among those named at first."""
        if name not in self._entries:
            self._compile([name])
        library, which = self._entries[name]
        self.started.append(name)
        sizes = [(ctypes.c_uint * 2)(*(*shape, 1)[:2]) for shape in (grid, block)]
        held = [self._cell(value) for value in arguments]
        addresses = (ctypes.c_void_p * len(held))(*(ctypes.addressof(cell) for cell in held))
        fault = library.launch(which, *sizes, ctypes.c_size_t(shared), addresses, int(self.backwards))
        if fault:
            raise RuntimeError(f"{name}: {FAULTS[fault]}")

    @staticmethod
    def _cell(value: Any) -> Any:
        """Return what an argument looks like in memory: a pointer, or the bytes of a number."""
        if isinstance(value, DeviceArray):
            assert value.flags.c_contiguous and value.device == value.module.current.number
            return ctypes.c_uint64(value.inside.ctypes.data)
        assert isinstance(value, np.generic), f"{value!r} has no definite size"
        return ctypes.create_string_buffer(value.tobytes(), max(8, value.nbytes))

"""The CUDA kernels through NVRTC, the compiler that CuPy uses; it needs no GPU and is never skipped. Cost: 8 s."""

import ctypes
import importlib.util
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stand_in import EACH, KINDS

from meanfield.backends import cuda_source
from meanfield.backends.cuda_source import SMALL_D, STRUCTS, instance


class Nvrtc:
    """The compiler as CuPy calls it, from the wheel that the extra `test` installs; it needs no GPU and no driver."""

    def __init__(self):
        spec = importlib.util.find_spec("nvidia")
        folders = spec.submodule_search_locations if spec else ()
        found = sorted(path for folder in folders for path in Path(folder).glob("*/lib/libnvrtc.so.*"))
        assert found, 'NVRTC is missing; it comes with pip install "meanfield-nn[test]"'
        self.library = ctypes.CDLL(str(found[0]))

    def compile(self, names, target, *options):
        """Return (lowered names, log, PTX, size of the machine code)."""
        lib, program = self.library, ctypes.c_void_p()
        text = cuda_source.source().encode()
        assert lib.nvrtcCreateProgram(ctypes.byref(program), text, b"kernels.cu", 0, None, None) == 0
        try:
            for name in names:
                assert lib.nvrtcAddNameExpression(program, name.encode()) == 0
            given = [option.encode() for option in (*cuda_source.OPTIONS, f"-arch={target}", *options)]
            status = lib.nvrtcCompileProgram(program, len(given), (ctypes.c_char_p * len(given))(*given))
            log = self._text(program, "ProgramLog")
            assert status == 0, log
            return (
                [self._lowered(program, name) for name in names],
                log,
                self._text(program, "PTX"),
                self._size(program),
            )
        finally:
            lib.nvrtcDestroyProgram(ctypes.byref(program))

    def _text(self, program, what):
        size = ctypes.c_size_t()
        assert getattr(self.library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)) == 0
        buffer = ctypes.create_string_buffer(size.value)
        assert getattr(self.library, f"nvrtcGet{what}")(program, buffer) == 0
        return buffer.value.decode()

    def _size(self, program):
        size = ctypes.c_size_t()
        assert self.library.nvrtcGetCUBINSize(program, ctypes.byref(size)) == 0
        return size.value

    def _lowered(self, program, name):
        lowered = ctypes.c_char_p()
        assert self.library.nvrtcGetLoweredName(program, name.encode(), ctypes.byref(lowered)) == 0
        return lowered.value.decode()


def test_every_kernel_compiles_for_both_generations_without_a_warning():
    nvrtc = Nvrtc()
    with ThreadPoolExecutor(2) as pool:
        for lowered, log, ptx, size in pool.map(lambda target: nvrtc.compile(EACH, target), ("sm_80", "sm_90")):
            assert "warning" not in log and size > 100_000
            assert len(set(lowered)) == len(EACH)
            assert all(f".entry {name}(" in ptx for name in lowered)


def test_the_largest_particles_stay_in_registers():
    names = [instance("move", kind, "tanh", SMALL_D) for kind in KINDS]
    _, log, _, _ = Nvrtc().compile(names, "sm_90", "--ptxas-options=-v")
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert len(frames) >= 2 and all(frame == ("0", "0", "0") for frame in frames)


def test_noise_is_compiled_as_it_is_written():
    """No fused operation, no fast division or root, nothing flushed to zero; no double precision in float32."""
    nvrtc = Nvrtc()
    for kind, suffix in zip(KINDS, ("f64", "f32"), strict=True):
        _, _, ptx, _ = nvrtc.compile([instance("gaussian", kind)], "sm_90")
        assert f"div.rn.{suffix}" in ptx and f"sqrt.rn.{suffix}" in ptx
        assert not re.search(r"\bfma\.|\.ftz|\.approx", ptx)
    names = [instance("gaussian", KINDS[1]), *(instance("jets", KINDS[1], h) for h in STRUCTS if h != "sin")]
    assert ".f64" not in nvrtc.compile(names, "sm_90")[2]

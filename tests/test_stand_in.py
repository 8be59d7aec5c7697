"""What stands in for a GPU finds what it is there to find. Cost: 1 s."""

import numpy as np
import pytest
from stand_in import Module, Processor

from meanfield.backends import cuda_source

FAULTY = """
__global__ void races(double* out) {
    extern __shared__ double scratch[];
    scratch[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = scratch[(threadIdx.x + 1) % blockDim.x];
}
__global__ void parts(double* out) { if (threadIdx.x) __syncthreads(); out[0] = 1; }
__global__ void spills(double* out) { extern __shared__ double scratch[]; scratch[4] = 1; out[0] = 1; }
"""


def test_the_stand_in_finds_races_lost_barriers_and_writes_outside(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda_source, "source", lambda: FAULTY)
    faulty, xp = Processor(["races", "parts", "spills"], tmp_path), Module()
    seen = []
    for faulty.backwards in (False, True):
        out = xp.empty(4, np.float64)
        faulty("races", (1,), (4,), (out,), 32)
        seen.append(out.inside)
    assert np.isnan(seen[0]).any() and not np.array_equal(*seen)
    with pytest.raises(RuntimeError, match="barrier"):
        faulty("parts", (1,), (4,), (out,), 0)
    with pytest.raises(RuntimeError, match="past the shared memory"):
        faulty("spills", (1,), (4,), (out,), 32)


def test_arrays_of_the_device_do_not_mix_with_numpy_or_leave_unseen():
    xp = Module()
    a = xp.asarray(np.arange(3.0))
    for mixed in (
        lambda: a + np.ones(3),
        lambda: np.ones(3) * a,
        lambda: np.asarray(a),
        lambda: np.where(a > 1, a, np.ones(3)),
    ):
        with pytest.raises(TypeError):
            mixed()
    assert xp.downloads == 0 and float(np.sqrt(a[1] * 4.0)) == 2.0 and xp.downloads == 1

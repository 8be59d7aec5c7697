"""The problem that every candidate is given: data in general position, a common start, and what a step must give."""

import numpy as np

ALPHA, LAM, ETA = 10.0, 0.01, 1e-3


def step_case(n: int, d: int, m: int, dtype: str, **more) -> dict:
    """Return a case of one Euler step, in plain numbers so that it travels as JSON."""
    return {"n": n, "d": d, "m": m, "dtype": dtype, "alpha": ALPHA, "lam": LAM, "eta": ETA, **more}


def problem(case: dict) -> tuple[np.ndarray, np.ndarray]:
    """Return x (n, d), Gaussian rows of length one, and y (n,), the sign of the first coordinate."""
    x = np.random.default_rng(0).standard_normal((case["n"], case["d"]))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    dtype = case.get("dtype", "float64")
    return x.astype(dtype), np.where(x[:, 0] < 0, -1.0, 1.0).astype(dtype)


def start(case: dict) -> np.ndarray:
    """Return z (m, d + 1) of standard normals."""
    dtype = np.dtype(case["dtype"])
    return np.random.default_rng(1).standard_normal((case["m"], case["d"] + 1), dtype=dtype.type)


def points(case: dict) -> np.ndarray:
    """Return z (m, D) of standard normals."""
    return start({**case, "d": case["D"] - 1})


def expected_step(case: dict) -> np.ndarray:
    """Return z + eta (b - lam z) in float64: one step without noise, as Algorithm 1 is written."""
    (x, y), z = problem(case), start(case).astype(np.float64)
    x, y = x.astype(np.float64), y.astype(np.float64)
    h = np.tanh(z[:, :-1] @ x.T)
    c = -(2 * case["alpha"] / len(y)) * (case["alpha"] * (z[:, -1:] * h).mean(0) - y)
    b = np.hstack([z[:, -1:] * ((1 - h * h) * c) @ x, (h @ c)[:, None]])
    return z + case["eta"] * (b - case["lam"] * z)


def noise_of_step(case: dict) -> np.ndarray:
    """Return what step 0 of candidates with our noise adds: sqrt(2 lam eta) xi."""
    from meanfield import noise

    size = {"count": case["m"], "width": case["d"] + 1, "dtype": case["dtype"]}
    return np.sqrt(2 * case["lam"] * case["eta"]) * noise.normals(1, noise.Stream.DIFFUSION, step=0, **size)

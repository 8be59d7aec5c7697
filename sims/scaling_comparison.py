"""Three scalings of a network, 1/m, 1/sqrt(m) and the conventional one: what moves, and with which power of the width.

f = (alpha / m) sum_j u_j tanh(theta_j . x) with alpha = 1, sqrt(m), m; the conventional network, a sum without 1/m, is
alpha = m, its time tau = m t. Networks of width m as they are (`centred = False`), which start at f_0 of the order
alpha / sqrt(m), until one time of (3.4). For alpha = 1 output, particles and tangent kernel change by O(1). For the
others particles change by m^-1/2, and the kernel by m^-1: to first order it is an average of functions odd in u.

Where particles are compared with p0, the reference is that of the noise: it starts where the network does and moves by
decay and noise alone. E|Z - Zbar|^2 is at least W2^2 of the law of a particle; the account of KL is that of a particle
in the field of this network.

Points are of four parts: `gradient` (lam = 0), `between` (the same for powers of m between the scalings), `noisy`
(lam > 0, distances of laws) and `limit` (the limit law at alpha = 1, to which values at finite width are extrapolated).
With noise the loss is read for alpha = 1 alone: right after a long step of the kernel scheme the output of a network
carries noise of the order alpha (lam eta / m)^1/2, which a continuous path has not.
"""

import tempfile
from pathlib import Path

import numpy as np

import meanfield as mf
from meanfield import datasets, ensemble, parallel
from meanfield.claims import Claim, at_most, near
from meanfield.estimate import student_factor

from ._scaling_comparison_figures import plot as plot
from ._scaling_comparison_reading import exponent, limit_law, limits

TITLE = (
    "Loss, kernel drift, W2 and KL for three scalings against the width; map of regimes; coordinate check; m = infinity"
)
STATEMENT = "alpha = 1 learns features, alpha = sqrt(m) and m stay near their kernel as m grows"
MINUTES = 3.5

LAM = 0.01
SCALINGS = ["1", "sqrt(m)", "m"]
BETWEEN = ["m^0.25", "m^0.75"]


def _points(data, few: tuple[int, int], many: tuple[int, int], **more) -> list[dict]:
    """Widths are 2^smallest to 2^largest; the limit law is that of the largest of all."""
    sizes = {"gradient": many, "between": few, "noisy": many, "limit": (many[1], many[1])}
    return [
        {"part": part, "data": d, "smallest": low, "largest": high, **more}
        for part, (low, high) in sizes.items()
        for d in data
    ]


GRID = _points(("digits", "neuron"), (6, 12), (6, 14), replicates=5, time=10.0)
SMOKE = _points(("neuron",), (2, 3), (2, 3), replicates=2, time=0.5)

ALPHAS = {"gradient": SCALINGS, "between": BETWEEN, "noisy": SCALINGS, "limit": SCALINGS[:1]}
CHANGING = ["loss", "coupled_distance", "kernel_drift", "output_change", "test_loss"]
OBSERVABLES = {
    "gradient": CHANGING,
    "between": CHANGING,
    "noisy": ["loss", "kernel_drift", "test_loss", "w2_lower", "w2_upper", "kl_lower", "kl_upper"],
    "limit": ["loss", "prediction", "test_loss_unbiased", "kernel_drift"],
}


# --- building -----------------------------------------------------------------------------------------------------


def build(point: dict):
    with tempfile.TemporaryDirectory() as folder, parallel.single_threaded_blas():
        found = mf.sweep(configuration(point, Path(folder)))
    end = ensemble.last(found)
    return end.drop_vars(["directory", "message", "status"])


def configuration(point: dict, folder: Path) -> dict:
    """The sweep of one point of the grid: alpha against m."""
    part, limit = point["part"], point["part"] == "limit"
    return {
        "data": _data(point["data"], folder),
        "network": {"activation": "tanh", "centred": limit},
        "cloud": {"replicates": (2 if limit else 1) * point["replicates"], "seed": 1},
        "flow": {"lam": LAM if part in ("noisy", "limit") else 0.0, "time": point["time"]},
        "record": {"observables": OBSERVABLES[part], "bounds_every": [point["time"]]},
        "sweep": {
            "network.alpha": ALPHAS[part],
            "cloud.m": [2**k for k in range(point["smallest"], point["largest"] + 1)],
        },
    }


def _data(name: str, folder: Path) -> dict:
    """Twenty images of 3 and 8; or twenty inputs on the sphere in R^10 with the labels of one neuron."""
    if name == "digits":
        return {"source": "digits", "classes": [3, 8], "n": 20, "n_test": 100}
    x, _ = datasets.sphere(n=220, d=10, seed=3)
    y = np.tanh(3 * x[:, 0])
    path = folder / "neuron.npz"
    np.savez(path, x=x[:20], y=y[:20], x_test=x[20:], y_test=y[20:])
    return {"source": "npz", "path": str(path)}


# --- claims -------------------------------------------------------------------------------------------------------

CHANGES = {"output_change": "output", "coupled_distance": "particles", "kernel_drift": "kernel"}
# Exponents of the change of output, particles and kernel, at lam = 0.
EXPECTED = {"1": (0.0, 0.0, 0.0), "sqrt(m)": (0.0, -0.5, -1.0), "m": (0.5, -0.5, -1.0)}
# Of W2 and KL, from above, at lam > 0.
NOISY = {"1": (0.0, 0.0), "sqrt(m)": (-0.5, -1.0), "m": (-0.5, -1.0)}


def claims(results) -> list[Claim]:
    out = []
    for name in results.values("data"):
        data = results.one(part="gradient", data=name)
        for alpha, wanted in EXPECTED.items():
            for (variable, text), power in zip(CHANGES.items(), wanted, strict=True):
                found = exponent(data, variable, alpha)
                text = f"{name}, alpha = {alpha}, lam = 0: exponent in m of the change of the {text}"
                out.append(near(text, found, power, 0.15, full=True))
            text = f"{name}, alpha = {alpha}, lam = 0: exponent in m of the test loss"
            wanted = 1.0 if alpha == "m" else 0.0
            out.append(near(text, exponent(data, "test_loss", alpha), wanted, 0.15, full=True))
        out += _noisy_claims(results, name) + _limit_claims(results, name)
    return out


def _noisy_claims(results, name: str) -> list[Claim]:
    data = results.one(part="noisy", data=name)
    factor = student_factor(data.sizes["replicate"])
    out = []
    for kind in ("w2", "kl"):
        low = data[f"{kind}_lower"] - factor * data[f"{kind}_lower_se"]
        high = data[f"{kind}_upper"] + factor * data[f"{kind}_upper_se"]
        text = (
            f"{name}: lower over upper bound on {kind}, {factor:.1f} standard errors apart, at worst over alpha and m"
        )
        out.append(at_most(text, float((low / high).max()), 1.0))
    for alpha, wanted in NOISY.items():
        where = f"{name}, alpha = {alpha}, lam = {LAM:g}: exponent in m of"
        for variable, power in zip(("w2_upper", "kl_upper"), wanted, strict=True):
            out.append(near(f"{where} {variable}", exponent(data, variable, alpha), power, 0.15, full=True))
        drift = exponent(data, "kernel_drift", alpha)
        if alpha == "1":
            out.append(near(f"{where} kernel_drift", drift, 0.0, 0.15, full=True))
            continue
        holds = -1 - factor * drift.se <= drift.value <= -0.5 + factor * drift.se
        text = f"−1 (training) to −0.5 (noise), within {factor:.1f} standard errors"
        out.append(Claim(f"{where} kernel_drift", drift.value, text, bool(holds), drift.se, True))
    return out


def _limit_claims(results, name: str) -> list[Claim]:
    noisy, limit = (results.one(part=part, data=name) for part in ("noisy", "limit"))
    out = []
    for variable, text in (("loss", "loss"), ("test_loss", "test loss")):
        fit, law = limits(noisy, variable), limit_law(limit, variable)
        if fit is None:
            continue
        gap = fit.limit.value - law.value
        error = float(np.hypot(fit.limit.se, law.se))
        factor = student_factor(noisy.sizes["replicate"])
        text = f"{name}, alpha = 1: {text} extrapolated to m = infinity minus that of the limit law"
        wanted = f"0 within {factor:.1f} standard errors"
        out.append(Claim(text, gap, wanted, abs(gap) <= factor * error, error, True))
    return out

"""Do the intervals for KL cover, and do the bounds stay on their side? Laws of known KL, 200 replications of each.

    gaussian   Z = A Zbar + b                                      KL in closed form; fields: quadratic
    mixture    Z = Zbar + s v, s = 1 with probability .3, else -1   KL by quadrature; fields: functions, with log dp/dp0
    shear      Z = (theta, u + g(theta)), g = sum c_i tanh(w_i)     KL = E g^2 / 2; fields: those of the network

each in D = 2, 6, 11, 21 from R = 8 replicates of m = 500 particles. Beside the intervals, which claim to cover, stand
the bounds from below (how often value - c se exceeds the truth: chance allows 2.3 %) and the nearest-neighbour
estimate, which claims nothing.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from meanfield import canvas, donsker, entropy, families, intervals, noise, transport
from meanfield.claims import Claim, at_most
from meanfield.estimate import student_factor
from meanfield.network_families import Network
from meanfield.tilts import probe_features
from meanfield.units import resolve

TITLE = "Coverage of 95 % intervals for KL, and the share of the truth that estimators read, against D"
STATEMENT = "intervals for KL cover; bounds from below stay below"
MINUTES = 10

LAWS, DIMENSIONS = ("gaussian", "mixture", "shear"), (2, 6, 11, 21)
FULL = {"m": 500, "replicates": 8, "replications": 200, "probes": 20_000}
GRID = [{"law": law, "D": D, **FULL} for law in LAWS for D in DIMENSIONS]
SMOKE = [{"law": law, "D": 2, "m": 200, "replicates": 8, "replications": 20, "probes": 4000} for law in LAWS]
NOMINAL, WANTED = 0.95, (0.90, 0.99)
FACTOR, CHANCE = "c se", 1 - 0.9772498680518208  # c is Student's two-sigma factor
BOUNDS = {
    "gaussian": "Gaussian bound",
    "gelbrich": "Gelbrich's bound",
    "donsker": "Donsker-Varadhan",
    "held_out": "the interval's held-out value",
}
MARKS = (("o", canvas.BLUE), ("s", canvas.ORANGE), ("^", canvas.GREEN))
SHIFT, WEIGHT, STRETCH, SHEAR = 1.0, 0.3, 0.15, 0.6
NEIGHBOURS_AT = 20  # replications in which nearest neighbours are searched
# What the numbers are for, as the `step` of the noise.
LAW, PARTICLES, SIGNS, PROBES, LENGTHS = range(5)


class Law(NamedTuple):
    """A law as a map of the reference (and independent uniforms), what is known of it, and its fields."""

    move: Callable[[np.ndarray, np.ndarray], np.ndarray]
    kl: float
    w2_squared: float  # NaN where it is not known
    fields: Callable[[Any], Any]  # of the probes, or of the features made from them
    features: Callable[[np.ndarray], Any] | None = None


def drawn(step: int, count: int, width: int, name: int = 0, seed: int = 0) -> np.ndarray:
    return noise.normals(seed, noise.Stream.DATA, step=step, replicate=name, count=count, width=width)


def gaussian(D: int) -> Law:
    matrix, shift = drawn(LAW, D, D), drawn(LAW, 1, D, 1)[0]
    A = np.eye(D) + STRETCH * (matrix + matrix.T) / math.sqrt(2 * D)
    b = 0.3 * shift / np.linalg.norm(shift)
    kl, w2 = entropy.gaussian_kl(b, A @ A), transport.gelbrich(b, A @ A)
    return Law(lambda z, _: z @ A + b, kl, w2, lambda probes: "quadratic")


def mixture(D: int) -> Law:
    v = drawn(LAW, 1, D)[0]
    v /= np.linalg.norm(v)
    nodes, weights = np.polynomial.hermite_e.hermegauss(160)
    weights /= weights.sum()

    def log_ratio(s: np.ndarray) -> np.ndarray:
        return np.logaddexp(math.log(WEIGHT) + SHIFT * s, math.log(1 - WEIGHT) - SHIFT * s) - SHIFT**2 / 2

    kl = sum(mass * float(weights @ log_ratio(nodes + at)) for mass, at in ((WEIGHT, SHIFT), (1 - WEIGHT, -SHIFT)))

    def functions(z: np.ndarray) -> np.ndarray:
        s = z @ v
        return np.column_stack([log_ratio(s), s, s * s, s**3])

    def move(z: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        return z + SHIFT * np.where(uniforms < WEIGHT, 1.0, -1.0)[:, None] * v

    return Law(move, kl, math.nan, lambda probes: families.Functions(functions, probes, (1, 2, 3, 4)))


def shear(D: int) -> Law:
    d, n = D - 1, max(2, min(D - 1, 10))
    x, c = drawn(LAW, n, d), drawn(LAW, 1, n, 1)[0]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    h = resolve("tanh")
    # E g^2 exactly, by Mehler's series: features of a few probes carry it.
    few = probe_features(drawn(PROBES, 1000, D), x, h)
    back = np.linalg.pinv(few.transform)
    c *= SHEAR / math.sqrt(float(few.gram is not None and (back[:, :n] @ c) @ few.gram @ (back[:, :n] @ c)))

    def move(z: np.ndarray, _: np.ndarray) -> np.ndarray:
        return np.column_stack([z[:, :-1], z[:, -1] + h.value(z[:, :-1] @ x.T) @ c])

    def features(probes: np.ndarray) -> donsker.ProbeFeatures:
        return probe_features(probes, x, h)

    return Law(move, SHEAR**2 / 2, math.nan, Network, features)


MAKERS = {"gaussian": gaussian, "mixture": mixture, "shear": shear}


def build(point: dict[str, Any]) -> dict[str, float]:
    """Return rates and means over the replications of one law."""
    law, D, m, R = MAKERS[point["law"]](point["D"]), point["D"], point["m"], point["replicates"]
    rows = []
    for k in range(point["replications"]):
        z = drawn(PARTICLES, R * m, D, k).reshape(R, m, D)
        uniforms = noise.uniforms(0, noise.Stream.DATA, step=SIGNS, replicate=k, count=R * m).reshape(R, m)
        clouds = [(law.move(z[r], uniforms[r]), z[r], None) for r in range(R)]
        rows.append(_replication(law, clouds, drawn(PROBES, point["probes"], D, k + 1), k < NEIGHBOURS_AT))
    return {"kl": law.kl, **_summary(rows, law)}


def _replication(law: Law, clouds: Any, probes: np.ndarray, neighbours: bool) -> dict[str, float]:
    prepared = probes if law.features is None else law.features(probes)
    found = intervals.kl_interval(clouds, law.fields(prepared))
    c = student_factor(len(clouds))
    row = {"low": found.low, "high": found.high, "value": found.value, "se": found.se, "size": found.size}
    row |= {"held": found.held_out.value, "replicates": found.replicates}
    bounds = {"held_out": found.held_out, "gaussian": entropy.gaussian_lower(clouds)}
    if not math.isnan(law.w2_squared):
        bounds["gelbrich"] = transport.gelbrich_lower(clouds)
    if law.features is not None:
        bounds["donsker"] = donsker.donsker_varadhan(clouds, prepared)
    for name, bound in bounds.items():
        truth = law.w2_squared if name == "gelbrich" else law.kl
        row[f"{name}_exceeds"] = float(bound.value - c * bound.se > truth)
        row[f"{name}_share"] = bound.value / truth
    if neighbours:
        estimate = entropy.knn_estimate(clouds)
        row["knn"], row["knn_se"] = estimate.value, estimate.se
    return row


def _summary(rows: list[dict[str, float]], law: Law) -> dict[str, float]:
    column = {name: np.array([row[name] for row in rows if name in row]) for name in rows[0]}
    t = student_factor(int(rows[0]["replicates"]), 0.5 + NOMINAL / 2)
    out = {
        "coverage": float(np.mean((column["low"] <= law.kl) & (law.kl <= column["high"]))),
        "bias": float(column["value"].mean() - law.kl),
        "se": float(column["se"].mean()),
        "scatter": float(column["value"].std(ddof=1)),
        "held_out_share": float(column["held"].mean() / law.kl),
        "knn_share": float(column["knn"].mean() / law.kl),
        "knn_coverage": float(np.mean(np.abs(column["knn"] - law.kl) <= t * column["knn_se"])),
        "size": float(column["size"].mean()),
    }
    return out | {
        name: float(values.mean()) for name, values in column.items() if name.endswith(("_exceeds", "_share"))
    }


def plot(results) -> dict:
    """Draw coverage, and what the estimators read, against D."""
    figure, (left, right) = canvas.sheet(1, 2, width=4.8, height=3.8)
    left.axhspan(*WANTED, color="#ECECEC", zorder=0, label="wanted")
    left.axhline(NOMINAL, color=canvas.INK, ls=":", lw=1.0, label="nominal")
    right.axhline(1.0, color=canvas.INK, ls=":", lw=1.0)
    for law, (mark, colour) in zip(results.values("law"), MARKS, strict=False):
        found = results.where(law=law)
        D = [result.point["D"] for result in found]
        names = ("coverage", "bias", "kl", "knn_share")
        rows = {name: np.array([float(r.data[name]) for r in found]) for name in names}
        error = [2 * math.sqrt(NOMINAL * (1 - NOMINAL) / r.point["replications"]) for r in found]
        left.errorbar(D, rows["coverage"], error, marker=mark, capsize=3, color=colour, label=law)
        right.plot(D, 1 + rows["bias"] / rows["kl"], marker=mark, color=colour, label=f"{law}, interval")
        right.plot(D, rows["knn_share"], marker=mark, mfc="white", ls="--", color=colour, label="nearest neighbours")
    left.set(title="Intervals for KL cover", ylabel="share of 95 % intervals that cover (2 s.e.)", ylim=(0.85, 1.0))
    right.set(title="What estimators read", ylabel="mean estimate / KL", ylim=(0, 1.2))
    for ax in (left, right):
        ax.set(xlabel="dimension $D$", xticks=DIMENSIONS)
        canvas.legend(ax, "lower left")
    return {"coverage": figure}


def claims(results) -> list[Claim]:
    """Intervals cover; bounds from below exceed the truth no more often than chance allows; neighbours do not cover."""
    out = []
    for point, data in results:
        name, n = f"{point['law']}, D = {point['D']}", point["replications"]
        coverage, error = float(data["coverage"]), math.sqrt(NOMINAL * (1 - NOMINAL) / n)
        low, high = (WANTED[0], WANTED[1]) if results.full else (NOMINAL - 4 * error, 1.0)
        holds = low <= coverage <= high
        out.append(Claim(f"{name}: 95 % intervals cover", coverage, f"{low:.2f} to {high:.2f}", holds, error))
        most = CHANCE + 3 * math.sqrt(CHANCE * (1 - CHANCE) / n)
        for bound, text in BOUNDS.items():
            if f"{bound}_exceeds" in data:
                rate = float(data[f"{bound}_exceeds"])
                out.append(at_most(f"{name}: {text} - {FACTOR} exceeds the truth", rate, most))
    widest = results.where(law="gaussian", D=21)
    if len(widest):
        rate = float(widest.found[0].data["knn_coverage"])
        out.append(
            at_most("gaussian, D = 21: intervals around nearest neighbours, which claim nothing, cover", rate, 0.5)
        )
    return out

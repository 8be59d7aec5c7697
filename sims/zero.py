"""What each distance reads at zero, and what is left of a small truth: two laws that are equal, or nearly.

The law of the samples is p0 = N(0, I) (`shift` = 0) or p0 moved by 0.1 along the first axis and stretched there by 1.1,
so that W2^2 = 0.02 and KL = 0.0147 (`shift` = 0.1): distances of the size that training makes. A figure that reads
the same in both says nothing. The bounds from coupled clouds stand beside them.
"""

import math
from typing import Any

import numpy as np

from meanfield import canvas, distances, entropy, intervals, noise, transport
from meanfield.claims import Claim, agree, at_least, at_most
from meanfield.estimate import Estimate, student_factor

TITLE = "What each distance reads for equal laws and for laws a little apart, against D"
STATEMENT = "plug-in distances measure the sample size; bounds from coupled clouds read 0 at 0"
MINUTES = 1

APART = 0.1
MARKS = (("o", canvas.BLUE), ("s", canvas.ORANGE), ("^", canvas.GREEN), ("D", canvas.PURPLE))
FIGURES = ("exact", "sinkhorn", "sliced", "max_sliced")
GRID = [{"D": D, "shift": shift, "m": 1000, "replicates": 8} for D in (2, 6, 11, 21) for shift in (0.0, APART)]
SMOKE = [{"D": 2, "shift": shift, "m": 200, "replicates": 3} for shift in (0.0, APART)]
PARTICLES, STRANGERS = 1, 2


def build(point: dict[str, Any]) -> dict[str, float]:
    """Return value, null and errors of every figure for one law."""
    D, m, R, shift = point["D"], point["m"], point["replicates"], point["shift"]
    z, strangers = (
        noise.normals(0, noise.Stream.DATA, step=step, count=R * m, width=D).reshape(R, m, D)
        for step in (PARTICLES, STRANGERS)
    )
    first = np.zeros(D)
    first[0] = 1.0
    moved = [cloud * (1 + shift * first) + shift * first for cloud in z]
    out = {"kl": 0.5 * shift**2 + 0.5 * ((1 + shift) ** 2 - 1) - math.log1p(shift)}
    for name in FIGURES:
        found = getattr(distances, name)(moved, force=True)
        out |= {name: found.value, f"{name}_null": found.null, f"{name}_debiased": found.debiased}
        out |= {f"{name}_se": found.se, f"{name}_informative": float(found.informative)}
    # Independent of the reference, as any two samples; then coupled to it, as the clouds of a run.
    for kind, references in (("strangers", strangers), ("coupled", z)):
        clouds = [(one, other, None) for one, other in zip(moved, references, strict=True)]
        estimates = {
            "coupling": transport.coupled_upper(clouds),
            "gelbrich": transport.gelbrich_lower(clouds),
            "knn": entropy.knn_estimate(clouds),
            "interval": intervals.kl_interval(clouds),
        }
        for name, estimate in estimates.items():
            out |= {f"{name}_{kind}": estimate.value, f"{name}_{kind}_se": estimate.se}
    return out


def plot(results) -> dict:
    """Draw what the figures read for equal laws and for laws a little apart, by dimension."""
    figure, axes = canvas.sheet(1, 2, width=4.8, height=3.8)
    _between_samples(axes[0], results)
    _from_coupled_clouds(axes[1], results)
    for ax in axes:
        ax.axhline(2 * APART**2, color=canvas.INK, lw=1.0, ls=":", label="truth, laws apart")
        ax.set(xlabel="dimension $D$", xticks=results.values("D"))
        canvas.legend(ax, "center right")
    return {"zero": figure}


def _series(results, shift: float, name: str) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Dimensions, values and standard errors of one figure."""
    found = results.where(shift=shift)
    values, errors = (np.array([float(r.data[key]) for r in found]) for key in (name, f"{name}_se"))
    return [r.point["D"] for r in found], values, errors


def _between_samples(ax, results) -> None:
    for name, (mark, colour) in zip(FIGURES, MARKS, strict=True):
        for shift in results.values("shift"):
            D, values, errors = _series(results, shift, name)
            style = {"ls": "-", "label": name.replace("_", "-")} if shift else {"ls": "--", "mfc": "white"}
            ax.errorbar(D, values, 2 * errors, color=colour, marker=mark, capsize=2, **style)
    ax.set(title="Between samples (dashed, open: equal laws)", ylabel="$W_2^2$ as read, $m$ = 1,000 (2 s.e.)")
    canvas.log_axis(ax.yaxis, 1e-3, 40.0)


def _from_coupled_clouds(ax, results) -> None:
    apart = results.values("shift")[-1]
    for name, label, (mark, colour) in zip(("coupling", "gelbrich"), ("coupling, upper", "Gelbrich, lower"), MARKS,
                                           strict=False):  # fmt: skip
        D, values, errors = _series(results, apart, f"{name}_coupled")
        ax.errorbar(D, values, 2 * errors, color=colour, marker=mark, capsize=2, label=f"{label} (2 s.e.)")
    ax.set(title="Bounds from coupled clouds: 0 for equal laws", ylabel="$W_2^2$ as read", ylim=(0, 0.03))


def claims(results) -> list[Claim]:
    """Figures between samples read their null at equal laws, which dwarfs a small truth; coupled bounds read 0."""
    out = []
    for point, data in results:
        at = f"D = {point['D']}, W2^2 = {2 * point['shift'] ** 2:g}"
        if point["shift"] == 0:
            for figure in FIGURES:
                off = abs(float(data[f"{figure}_debiased"])) / float(data[f"{figure}_se"])
                out.append(at_most(f"{at}: {figure} off its null, in standard errors", off, 4))
            zero = abs(float(data["gelbrich_coupled"])) + float(data["coupling_coupled"])
            out.append(at_most(f"{at}: bounds from coupled clouds", zero, 1e-12))
        else:
            truth = 2 * point["shift"] ** 2
            for bound, side in (("gelbrich", at_most), ("coupling", at_least)):
                estimate = Estimate(float(data[f"{bound}_coupled"]), float(data[f"{bound}_coupled_se"]))
                out.append(side(f"{at}: {bound}", estimate, truth, student_factor(point["replicates"])))
            kl = Estimate(float(data["interval_coupled"]), float(data["interval_coupled_se"]))
            out.append(agree(f"{at}: centre of the interval for KL", kl, float(data["kl"]), point["replicates"]))
        if point["D"] > 5 and point["shift"]:
            times = float(data["exact_null"]) / truth
            out.append(at_least(f"{at}: null of the exact plug-in, in units of W2^2", times, 10))
    return out

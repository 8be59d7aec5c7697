"""The problem of `theorem_4_4`, what theory says of it, and what its points read."""

import functools

import numpy as np

import meanfield as mf
from meanfield import datasets, gibbs, theory
from meanfield.claims import jackknifed
from meanfield.estimate import Estimate, student_factor
from meanfield.observables import cross_product

N, D_INPUT, DIMENSION = 6, 5, 6
LAM, END = 0.2, 10.0
SMALL_LAM = 0.01
MODES = {"both": "decay and noise", "decay": "decay alone", "noise": "noise alone"}


# --- the problem and its theory ---------------------------------------------------------------------------------------


@functools.cache
def problem(alpha: float) -> mf.Risk:
    """Six random signs on the sphere in R^5, for which Lambda = 0.0946 and the next eigenvalue is 0.3007."""
    x, y = datasets.sphere(n=N, d=D_INPUT, teacher="random", seed=2)
    return mf.Risk(x, y, mf.Unit("tanh"), alpha)


@functools.cache
def lowest() -> float:
    """Lambda, the smallest eigenvalue of H(p0)."""
    return float(np.linalg.eigvalsh(problem(1.0).gram_start())[0])


@functools.cache
def floor(alpha: float, lam: float) -> float:
    """The loss of the fixed point: r = -(n lam / (2 alpha)) c, with c from its dual."""
    c = gibbs.fixed_point(problem(alpha), lam).coefficients
    return N * lam**2 / (4 * alpha**2) * float(c @ c)


@functools.cache
def leading() -> float:
    """|K2^-1 y|^2, of which c is the alpha^-2 part in the kernel limit."""
    coefficients = np.linalg.solve(problem(1.0).gram_start(train="u"), problem(1.0).y)
    return float(coefficients @ coefficients)


# --- reading ------------------------------------------------------------------------------------------------------


def symbols(alpha: float) -> tuple:
    """(alpha, lam, Lambda, n, d, G), as the functions of `theory` take them."""
    return alpha, LAM, lowest(), N, D_INPUT, theory.common_bound(problem(1.0).unit.h.suprema)


def losses(residual: np.ndarray) -> Estimate:
    """The loss from residuals (R, n), unbiased by products across replicates, with its jackknife error."""
    return jackknifed(cross_product, residual)


def at_end(results, name: str, alphas) -> tuple[np.ndarray, np.ndarray]:
    """A bound and its standard error at the end, at each alpha."""
    data = [results.one(part="sweep", alpha=a) for a in alphas]
    return tuple(np.array([float(d[key].values[-1]) for d in data]) for key in (name, f"{name}_se"))


def safe(data, name: str, sign: float = 1.0) -> np.ndarray:
    """A series c standard errors up (or down); those of its mean where it has values of replicates."""
    c = student_factor(data.sizes["replicate"])
    if "replicate" in data[name].dims:
        values = data[name].values
        return values.mean(0) + sign * c * values.std(0, ddof=1) / np.sqrt(len(values))
    return data[name].values + sign * c * data[f"{name}_se"].values


def margins(data, alpha: float) -> dict[str, float]:
    """How many times each statement's bound exceeds what was measured, on the safe side, where it is nearest."""
    numbers, later = symbols(alpha), slice(1, None)
    alpha, lam, low, n, d, G = numbers
    w2 = safe(data, "w2_upper")[later]
    Ac, Bc = theory.kernel_constants(problem(1.0).unit.h.suprema)
    return {
        "Lemma 5.2, loss": np.min(theory.loss_bound(data.time.values, *numbers) / safe(data, "loss")),
        "Lemma 5.3, KL": np.min(theory.kl_bound(*numbers) / safe(data, "kl_upper")[later]),
        "Lemma 5.4, W2": np.min(theory.talagrand(theory.kl_bound(*numbers), printed=True) / w2),
        "Lemma 5.1, entries of H": np.min((Ac * w2**2 + Bc * w2) / safe(data, "ntk_change_max")[later]),
        "Lemma 5.1, smallest eigenvalue": np.min(safe(data, "ntk_eigenvalue_min", -1) / (low / 2)),
    }


def travel_excess(results, alpha: float) -> Estimate:
    """E|Z_t - Z_0|^2 - 2 D (1 - e^(-lam t)) at the end, measured against the reference's own travel."""
    data = results.one(part="sweep", alpha=alpha)
    gap = data.travelled.values[:, -1] - data.reference_travelled.values[:, -1]
    return jackknifed(lambda v: v.mean(), gap)


def leading_floor(alpha: float, lam: float) -> float:
    """n lam^2 |K2^-1 y|^2 / (4 alpha^4): at rest c = -(2 alpha / (n lam)) r is K2^-1 y / alpha to leading order."""
    return N * lam**2 / (4 * alpha**4) * leading()


def decay_rate(data) -> Estimate:
    """The rate of the loss over 2 alpha^2 lambda0^2, from the slope of log L while the slowest mode leads."""
    t = data.time.values
    window = (t > 1.2) & (t < 3.2)

    def fitted(residual: np.ndarray) -> float:
        curve = np.array([cross_product(residual[:, k]) for k in np.flatnonzero(window)])
        return -float(np.polyfit(t[window], np.log(np.maximum(curve, 1e-300)), 1)[0])

    # In units of 1 / (kappa Lambda), 2 alpha^2 lambda0^2 = kappa Lambda is 1.
    return jackknifed(fitted, data.residual.values)

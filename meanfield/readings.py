"""What a Dataset says, in the form in which figures and reports use it: curves, brackets, key numbers.

A bound is read with its error taken to the safe side: upper + c se and lower - c se, c the Student factor
of R - 1 degrees of freedom.  With one replicate there is no error, and the central values are all there is.
"""

from typing import Any, NamedTuple

import numpy as np

from meanfield import theory
from meanfield.canvas import number
from meanfield.estimate import student_factor

Array = np.ndarray


class Bracket(NamedTuple):
    """A lower and an upper bound at the bound times after the first; arrays of shape (B,)."""

    t: Array
    lower: Array
    upper: Array
    safe_lower: Array
    safe_upper: Array
    lower_source: Array
    upper_source: Array
    factor: float

    def message(self, symbol: str) -> str:
        """Return in words how well the last bracket pins its quantity down."""
        if np.any(self.safe_upper < self.safe_lower):
            where = self.t[np.flatnonzero(self.safe_upper < self.safe_lower)[0]]
            return f"The bounds on {symbol} contradict each other at t = {number(where)}"
        end = f"at t = {number(self.t[-1])}"
        if not self.lower[-1] > 0:
            return f"{symbol} is at most {number(self.safe_upper[-1])} {end}, its errors included"
        ratio = self.upper[-1] / self.lower[-1]
        if ratio < 1:
            return f"{symbol} is {number(self.upper[-1])} {end}, to within its standard errors"
        return f"{symbol} is known within a factor {ratio:.2f} {end}"


class CloudPicture(NamedTuple):
    """Two coordinates of the particles at the end, and how the density of both changed on a grid."""

    s: Array
    u: Array
    grid: Array
    change: Array
    peak: float
    before: float
    after: float


def recorded(data: Any, name: str) -> bool:
    """Return whether a variable holds something after time 0 (text counts, NaN does not)."""
    if name not in data:
        return False
    variable = data[name]
    for when in {"time", "bound_time"} & set(variable.dims):
        variable = variable.isel({when: np.flatnonzero(data[when].values > 0)})
    values = variable.values
    return values.size > 0 and (values.dtype.kind not in "fc" or bool(np.isfinite(values).any()))


def factor(data: Any) -> float:
    """Return how many standard errors are taken to the safe side; 0 for a single replicate."""
    replicates = int(data.sizes.get("replicate", data.attrs.get("replicates", 1)))
    return student_factor(replicates) if replicates > 1 else 0.0


def at_bounds(data: Any, name: str) -> Array:
    """Return a variable at the bound times after time 0, averaged over whatever else it depends on."""
    variable = data[name]
    rest = [dim for dim in variable.dims if dim != "bound_time"]
    return (variable.mean(rest) if rest else variable).values[data.bound_time.values > 0]


def bracket(data: Any, name: str) -> Bracket:
    """Return the bracket <name>_lower, <name>_upper of a Dataset ("kl", "w2" or "energy")."""
    c, later = factor(data), data.bound_time.values > 0

    def side(which: str, sign: float) -> tuple[Array, Array, Array]:
        key = f"{name}_{which}"
        value = at_bounds(data, key)
        se = at_bounds(data, f"{key}_se") if f"{key}_se" in data and c else np.zeros_like(value)
        source = f"{key}_source"
        names = data[source].values[later].astype(str) if source in data else np.full(len(value), which)
        return value, value + sign * c * np.nan_to_num(se), names

    lower, safe_lower, lower_source = side("lower", -1.0)
    upper, safe_upper, upper_source = side("upper", 1.0)
    times = data.bound_time.values[later]
    return Bracket(times, lower, upper, safe_lower, safe_upper, lower_source, upper_source, c)


def last(data: Any, name: str, digits: int = 3) -> str:
    """Return the last value of a bound with its safe side in brackets: "0.214 [0.19]"."""
    c, sign = factor(data), 1.0 if name.endswith("upper") else -1.0
    value = at_bounds(data, name)[-1]
    text = number(value, digits)
    if not c or f"{name}_se" not in data:
        return text
    return f"{text} [{number(value + sign * c * at_bounds(data, f'{name}_se')[-1], digits)}]"


def key_numbers(data: Any) -> list[tuple[str, str]]:
    """Return pairs (what, value) of a run; a bound stands with its safe side in brackets."""
    a = data.attrs
    out = [("samples n, input dimension d", f"{a.get('n', '?')}, {a.get('d', '?')}")]
    out.append(("particles m, replicates", f"{number(a.get('m', np.nan))}, {a.get('replicates', '?')}"))
    out.append(("α, λ", f"{number(a.get('alpha', np.nan))}, {number(a.get('lam', np.nan))}"))
    if recorded(data, "loss"):
        first, end = data.loss.values[:, 0].mean(), data.loss.values[:, -1].mean()
        out.append((f"loss at t = {number(data.time.values[-1])}", f"{number(end)} (start {number(first)})"))
    for name, symbol in (("kl", "KL(pₜ ‖ p₀) in nats"), ("w2", "W₂(pₜ, p₀)")):
        sides = [side for side in ("lower", "upper") if recorded(data, f"{name}_{side}")]
        out += [(f"{symbol}, {side} bound", last(data, f"{name}_{side}")) for side in sides]
    if recorded(data, "ntk_eigenvalue_min"):
        mean = float(data.ntk_eigenvalue_min.values.mean(0).min())
        out.append(("smallest NTK eigenvalue", f"{number(mean)} (Λ = {number(Lambda(data))})"))
    return out


def Lambda(data: Any) -> float:
    """Return the smallest eigenvalue of the tangent kernel at p0."""
    if "ntk_lambda" in data.attrs and np.isfinite(data.attrs["ntk_lambda"]):
        return float(data.attrs["ntk_lambda"])
    return float(data.ntk_eigenvalue_min.values[:, 0].mean())


def outside_theorem(data: Any) -> str:
    """Return why the theorem's assumptions fail for this run whatever alpha, or an empty string."""
    a = data.attrs
    if a.get("loss_function", "square") != "square" or a.get("train", "both") != "both":
        return "it is about the square loss with both layers trained"
    if a.get("assumption_4_2_fails") or not np.all(np.isfinite(a.get("suprema", np.nan))):
        return f"Assumption 4.2 fails for {a.get('activation', 'this activation')}"
    if max(a.get("largest_input", 1.0), a.get("largest_label", 1.0)) > 1 + 1e-9:
        return "Assumption 4.1 fails, inputs or labels are larger than 1"
    if not recorded(data, "ntk_eigenvalue_min") and "ntk_lambda" not in a:
        return "Λ was not recorded"
    return "" if Lambda(data) > 0 else "Assumption 4.3 fails, Λ is not positive"


def radius(data: Any) -> float | None:
    """Return the explicit radius R of Lemma 5.1, or None where the theorem's assumptions fail."""
    if outside_theorem(data):
        return None
    a = data.attrs
    return theory.radius(Lambda(data), int(a["n"]), int(a["d"]), a["suprema"])


def apriori_note(data: Any) -> str:
    """Return in one sentence whether the a-priori bound of Theorem 4.4 applies."""
    a, reason = data.attrs, outside_theorem(data)
    if reason or not a["lam"] > 0:
        return f"Theorem 4.4: not applicable ({reason or 'λ = 0'})"
    asked = theory.threshold(Lambda(data), int(a["n"]), int(a["d"]), float(a["lam"]), a["suprema"])
    here = f"α = {number(a['alpha'])}"
    if a["alpha"] >= asked:
        return f"Theorem 4.4 applies: {here} ≥ {number(asked)} (4.1)"
    return f"a-priori bound of Theorem 4.4: not applicable\n(4.1) asks for α ≥ {number(asked)}, here {here}"


def loss_certificate(data: Any) -> Array | None:
    """Return the certificate C2 on the loss at every time, or None where its ingredients are not recorded.

    Takes the smallest eigenvalue c standard errors down and the rms of e as many up
    (`theory.loss_certificate`).
    """
    needed = ("generator_rms", "ntk_eigenvalue_min", "loss")
    square = data.attrs.get("loss_function", "square") == "square" and int(data.attrs.get("centred", 1))
    if not square or not all(recorded(data, name) for name in needed):
        return None
    c = factor(data)

    def safe(name: str, sign: float) -> Array:
        values = data[name].values
        error = values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
        return values.mean(0) + sign * c * error

    a = data.attrs
    root = theory.loss_certificate(
        data.time.values,
        safe("generator_rms", 1.0),
        data.bound_time.values,
        safe("ntk_eigenvalue_min", -1.0),
        alpha=float(a["alpha"]),
        lam=float(a["lam"]),
        n=int(a["n"]),
        L0=float(data.loss.values[:, 0].mean()),
    )
    return root**2


def cloud_picture(start: Array, end: Array, weights: Array | None = None, bins: int = 81) -> CloudPicture:
    """Return the clouds in the coordinates u and s = theta . v, v along the change of E[u theta].

    Parameters
    ----------
    start, end : ndarray, shape (m, D)
        Particles, the output weight u in the last column.
    weights : ndarray, shape (m,), optional
    """
    w = np.full(len(end), 1 / len(end)) if weights is None else np.asarray(weights) / np.sum(weights)
    w0 = w if len(start) == len(end) else np.full(len(start), 1 / len(start))
    turn = (w * end[:, -1]) @ end[:, :-1] - (w0 * start[:, -1]) @ start[:, :-1]
    length = float(np.linalg.norm(turn))
    v = turn / length if length > 0 else np.eye(len(turn))[0]
    s0, s1 = start[:, :-1] @ v, end[:, :-1] @ v
    edges = np.linspace(-3.8, 3.8, bins + 1)
    grid = 0.5 * (edges[1:] + edges[:-1])
    smooth = np.exp(-0.5 * ((grid[:, None] - grid) / 0.33) ** 2)
    smooth /= smooth.sum(1, keepdims=True)

    def density(s: Array, u: Array, mass: Array) -> Array:
        counts = np.histogram2d(s, u, bins=(edges, edges), weights=mass)[0]
        return smooth @ counts @ smooth.T / (edges[1] - edges[0]) ** 2

    before = density(s0, start[:, -1], w0)
    change = density(s1, end[:, -1], w) - before
    few = slice(0, 4000)
    moments = float(w0 @ (start[:, -1] * s0)), float(w @ (end[:, -1] * s1))
    return CloudPicture(s1[few], end[few, -1], grid, change, float(before.max()), *moments)

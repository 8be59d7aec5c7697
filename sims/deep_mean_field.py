"""A deep network in the mean-field scaling: its inner layers collapse to one neuron, those of a residual one do not.

    z^0 = V x + b,   z^{l+1}_i = tanh((1/m) sum_j w^l_ij z^l_j),   f = (1/m) sum_j a_j z^{H-1}_j      (H hidden layers)

with gradient flow of R = E(f - y)^2 / 2 at rates m^2 for w, m for a, V and b, so that every weight moves by O(1). The
gradient m^2 dR/dw^l_ij = E z^l_j delta_i has delta_i = tanh' (1/m) sum_k w_ki delta_k, a mean over many independent k:
it does not depend on i as m grows, nor do the outputs of layer l + 1, unless that is the last, where delta_i holds a_i.
So the limit is a network with one neuron in every inner layer, which is run beside: widths (m, 1, ..., 1, m), w = 1 at
the start, the same V, b and a. In the residual form z^{l+1}_i = z^l_i + (1/(H m)) sum_j w^l_ij tanh(z^l_j) neurons keep
what z^0 gave them. How large m must be for the collapse to be seen after a time t is what is measured.

These networks hold matrices and not particles, and have this loop of their own.
"""

import numpy as np

from meanfield import datasets, noise, parallel
from meanfield.claims import Claim, at_least, at_most, near, order

from ._deep_mean_field_figures import plot as plot
from ._deep_mean_field_reading import EARLY, apart_order, deep, end, first_layer, inner, table

TITLE = "Spread of neurons within layers against width, depth and training time, plain and residual"
STATEMENT = "lecture: inner layers of mean-field networks collapse, residual ones do not"
MINUTES = 3

N, D, ETA = 40, 5, 0.2
RECORDED = (0, 1, 2, 5, 10, 20, 50, 100, 200)  # steps
FORMS = ("plain", "residual")


def points(form: str, depth: int, widths, replicates: int, eta: float = ETA) -> list[dict]:
    return [{"form": form, "depth": depth, "m": m, "replicates": replicates, "eta": eta} for m in widths]


# Depth 4 has one width more, depth 3 a point with half steps.
GRID = [
    *(point for H in (2, 3, 4, 5, 6) for point in points("plain", H, (64, 128, 256, 512), 6)),
    *points("plain", 4, (1024,), 6),
    *(point for H in (2, 3, 4, 5, 6) for point in points("residual", H, (64, 128, 256), 6)),
    *points("plain", 3, (128,), 6, ETA / 2),
]
SMOKE = [
    *(point for H in (3, 4) for point in points("plain", H, (32, 64, 128), 3)),
    *points("residual", 4, (32, 64, 128), 3),
    *points("plain", 3, (128,), 3, ETA / 2),
]
Array = np.ndarray


# --- the network --------------------------------------------------------------------------------------------------


def start(m: int, depth: int, seed: int) -> dict:
    """V ~ N(0, 1); b, w and a ~ N(1, 1), because weights of mean 0 send signals of size m^(-1/2) and nothing moves."""

    def draw(k: int, rows: int, columns: int) -> Array:
        return noise.normals(seed, noise.Stream.INIT, step=k, count=rows, width=columns)

    return {
        "V": draw(0, m, D),
        "b": 1 + draw(1, m, 1),
        "w": [1 + draw(3 + k, m, m) for k in range(depth - 1)],
        "a": 1 + draw(2, m, 1)[:, 0],
    }


def collapsed(weights: dict, inner: int = 1) -> dict:
    """The same first and last layer around layers of equal neurons: w at its mean."""
    m, count = len(weights["a"]), len(weights["w"])
    widths = [m, *[inner] * (count - 1), m]
    return weights | {"w": [np.ones((high, low)) for low, high in zip(widths, widths[1:], strict=False)]}


def forward(weights: dict, x: Array, form: str) -> list[Array]:
    """Outputs of all hidden layers, each of shape (neurons, n)."""
    z = [weights["V"] @ x.T + weights["b"]]
    for w in weights["w"]:
        if form == "plain":
            z.append(np.tanh(w @ z[-1] / w.shape[1]))
        else:
            z.append(z[-1] + w @ np.tanh(z[-1]) / (w.shape[1] * (len(weights["w"]) + 1)))
    return z


def output(weights: dict, z: list[Array]) -> Array:
    return weights["a"] @ z[-1] / len(weights["a"])


def gradient(weights: dict, z: list[Array], x: Array, y: Array, form: str) -> dict:
    """Gradient of E(f - y)^2 / 2 times the rates: m^2 for w (m^2 H if residual), m for the others."""
    H = len(weights["w"]) + 1
    residual = (output(weights, z) - y) / len(y)
    back = weights["a"][:, None] * residual  # dR/dz times the neurons of the layer
    out: dict = {"a": z[-1] @ residual, "w": []}
    for w, low, high in zip(weights["w"][::-1], z[-2::-1], z[:0:-1], strict=True):
        if form == "plain":
            delta = back * (1 - high**2)
            out["w"].insert(0, delta @ low.T)
            back = w.T @ delta / len(w)
        else:
            low = np.tanh(low)
            out["w"].insert(0, back @ low.T)
            back = back + (w.T @ back) * (1 - low**2) / (len(w) * H)
    return out | {"V": back @ x, "b": back.sum(axis=1, keepdims=True)}


def moved(weights: dict, slope: dict, eta: float) -> dict:
    """Weights after a step of length eta against the gradient."""
    w = [w - eta * g for w, g in zip(weights["w"], slope["w"], strict=True)]
    return {"w": w} | {key: weights[key] - eta * slope[key] for key in ("V", "b", "a")}


def flow(weights: dict, x: Array, y: Array, form: str, eta: float, steps):
    """Yield weights and outputs of the layers after the given numbers of steps."""
    for k in range(steps[-1] + 1):
        z = forward(weights, x, form)
        if k in steps:
            yield weights, z
        weights = moved(weights, gradient(weights, z, x, y, form), eta)


# --- building -----------------------------------------------------------------------------------------------------


def build(point: dict) -> dict:
    with parallel.single_threaded_blas():  # once, and not at every small step
        found = [_trained(point, seed) for seed in range(point["replicates"])]
    times = ETA * np.array(RECORDED)
    return {"time": times} | {name: np.array([f[name] for f in found]) for name in found[0]}


def _trained(point: dict, seed: int) -> dict:
    """Losses, the spread of every layer over time, and the network with one neuron in every inner layer beside it."""
    x, _ = datasets.sphere(n=N, d=D, teacher="random", seed=seed)
    y, form = np.maximum(x[:, 0], 0), point["form"]
    steps = [round(k * ETA / point["eta"]) for k in RECORDED]
    first = start(point["m"], point["depth"], seed)
    rows = []
    for weights, z in flow(first, x, y, form, point["eta"], steps):
        change = [new - old for new, old in zip(weights["w"], first["w"], strict=True)]
        rows.append((output(weights, z), [variance(v) for v in z], [square(v) for v in z],
                     [variance(c) for c in change], [square(c) for c in change]))  # fmt: skip
    f, *columns = map(np.array, zip(*rows, strict=True))
    out = dict(zip(("variance", "square", "learned_variance", "learned_square"), columns, strict=True))
    out |= {"loss": ((f - y) ** 2).mean(axis=1), "slope_error": slope_error(first, x, y, form)}
    if form == "plain":
        g = one_neuron(first, x, y, point["eta"], steps)
        out |= {"apart": ((f - g) ** 2).mean(axis=1), "size": (y**2).mean(), "one_loss": ((g - y) ** 2).mean(axis=1)}
        # Layers of m equal neurons are one neuron of mass one.
        equal = one_neuron(first, x, y, point["eta"], steps[:4], len(first["a"]))
        out["split"] = np.abs(equal / g[:4] - 1).max()
    return out


def one_neuron(first: dict, x: Array, y: Array, eta: float, steps, inner: int = 1) -> Array:
    """Outputs over time, (steps, n), of the network whose inner layers are one neuron, or so many equal ones."""
    return np.array([output(weights, z) for weights, z in flow(collapsed(first, inner), x, y, "plain", eta, steps)])


def variance(values: Array) -> float:
    """Variance over the first axis, the neurons, averaged over the others."""
    return float(values.var(axis=0).mean())


def square(values: Array) -> float:
    return float((values**2).mean())


def slope_error(weights: dict, x: Array, y: Array, form: str) -> float:
    """Gradient along itself against the central difference quotient of the risk, relative."""
    slope, m, h = gradient(weights, forward(weights, x, form), x, y, form), len(weights["a"]), 1e-4
    ends = (moved(weights, slope, -h), moved(weights, slope, h))
    risk = [((output(w, forward(w, x, form)) - y) ** 2).mean() / 2 for w in ends]
    rate = m**2 * (1 if form == "plain" else len(weights["w"]) + 1)
    exact = sum((g**2).sum() for g in slope["w"]) / rate + sum((slope[k] ** 2).sum() for k in ("V", "b", "a")) / m
    return float(abs((risk[0] - risk[1]) / (2 * h) / exact - 1))


# --- claims -------------------------------------------------------------------------------------------------------


def claims(results) -> list[Claim]:
    return [*_early(results), *_late(results), *_limit(results), *_others(results), *_checks(results)]


def _early(results) -> list[Claim]:
    out = []
    for name, text in (("learned", "what w_ij learned, relative"), ("variance", "outputs")):
        for H in deep(results):
            what = f"depth {H}, inner layers at t = {EARLY:g}: order in m of the variance of {text}"
            out.append(near(what, order(*inner(results, H, name, EARLY)), -1.0, 0.25, full=True))
    return out


def _late(results) -> list[Claim]:
    out = []
    for H in deep(results)[1:]:
        found = order(*inner(results, H, "variance", end(results), first=2))
        text = f"depth {H}, inner layers but the first at the end: order in m of the variance of outputs"
        out.append(at_most(text, found, -0.75, full=True))
    text = "first inner layer at the end: the same order"
    m, first = first_layer(results, 4)
    out.append(near(f"depth 4, {text}, two largest m", order(m[-2:], first[:, -2:, -1]), -1.0, 0.25, full=True))
    m, first = first_layer(results, 3)
    out.append(at_least(f"depth 3, {text}, not yet -1", order(m, first[:, :, -1]), -0.75, full=True))
    widest = [first_layer(results, H)[1][:, -1] for H in deep(results)]
    growth = min(np.exp(np.log(v[:, -1] / v[:, 0]).mean()) for v in widest)
    text = "first inner layer, largest m: growth of that variance, least depth"
    return [*out, at_least(text, growth, 5.0, full=True)]


def _limit(results) -> list[Claim]:
    apart = [table(results, "plain", H, "apart")[1][:, -1] for H in deep(results)]
    size = [table(results, "plain", H, "size")[1][:, -1] for H in deep(results)]
    far = max(np.sqrt((a.max(axis=1) / s).mean()) for a, s in zip(apart, size, strict=True))
    split = max(float(r.data.split.max()) for r in results.where(form="plain"))
    return [
        near(f"one neuron in every inner layer: order in m of E(f - f_1)^2 at t = {EARLY:g}, mean of depths",
             apart_order(results, EARLY), -2.0, 0.5, full=True),
        at_most("the same: rms f - f_1 over rms y, largest m, worst depth and time", far, 0.05, full=True),
        at_most("layers of m equal neurons against layers of one: outputs, relative", split, 1e-10),
    ]  # fmt: skip


def _others(results) -> list[Claim]:
    plain, residual = (results.where(form=form).values("depth") for form in FORMS)
    last = [table(results, "plain", H, "learned")[1][:, -1, -1, -1].min() for H in plain]
    learned, kept = (
        min(table(results, "residual", H, name)[1][:, -1, -1].min() for H in residual) for name in ("learned", "spread")
    )
    orders = []
    for H in residual:
        m, values = table(results, "residual", H, "spread")
        orders += [order(m, values[:, :, -1, layer]) for layer in range(1, H)]
    return [
        at_least("plain, last layer at the end, largest m: relative variance of what it learned", min(last), 0.2),
        at_least("residual: the same of every layer", learned, 0.2),
        at_least("residual, end, largest m: variance of outputs over their mean square, every layer", kept, 0.4),
        at_least("residual, end: order in m of that share, least of the layers", min(orders), -0.1, full=True),
    ]  # fmt: skip


def _checks(results) -> list[Claim]:
    whole = results.where(eta=ETA)
    losses = [float((r.data.loss[:, -1] / r.data.loss[:, 0]).max()) for r in whole]
    half = results.where(eta=ETA / 2).found[0]
    long = results.where(eta=ETA, form="plain", depth=half.point["depth"], m=half.point["m"]).found[0]
    ratio = half.data.variance.values[:, -1, 1].mean() / long.data.variance.values[:, -1, 1].mean()
    error = max(float(r.data.slope_error.max()) for r in results)
    return [
        at_most("loss at the end over its start, all networks", max(losses), 0.5),
        near("depth 3, first inner layer: end variance with half the step over that with the step", ratio, 1.0, 0.05),
        at_most("gradient against a difference quotient, relative", error, 1e-5),
    ]

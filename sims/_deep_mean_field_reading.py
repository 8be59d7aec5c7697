"""What the deep networks' points say, as arrays: widths, replicates, times, layers."""

import numpy as np

from meanfield.claims import jackknifed, power_law
from meanfield.estimate import Estimate

EARLY = 1.0  # time at which most of the mean of y is fitted
Array = np.ndarray


def table(results, form: str, depth: int, name: str) -> tuple[Array, Array]:
    """Widths (K,) and values (R, K, times, ...) of the usual step; what was learned starts at the second time."""
    found = results.where(form=form, depth=depth, eta=max(results.values("eta")))
    if name in ("spread", "learned"):
        top, bottom = ("variance", "square") if name == "spread" else ("learned_variance", "learned_square")
        first = int(name == "learned")
        values = [r.data[top].values[:, first:] / r.data[bottom].values[:, first:] for r in found]
    else:
        values = [r.data[name].values for r in found]
    return np.array([r.point["m"] for r in found]), np.stack(values, axis=1)


def times(results, name: str = "variance") -> Array:
    t = results.found[0].data.time.values
    return t[1:] if name == "learned" else t


def at(results, t: float, name: str = "variance") -> int:
    return int(np.argmin(abs(times(results, name) - t)))


def inner(results, depth: int, name: str, t: float, first: int = 1) -> tuple[Array, Array]:
    """Widths and (R, K): a number of the plain network at a time, the mean over the inner layers from `first` on.

    Inner layers are 1 to H - 2, all but the first and the last; what layer l learned is the change of w^{l-1}.
    """
    m, values = table(results, "plain", depth, name)
    layers = slice(first - 1, -1) if name == "learned" else slice(first, -1)
    return m, values[:, :, at(results, t, name), layers].mean(axis=-1)


def deep(results) -> list[int]:
    """Depths with inner layers."""
    return [H for H in results.where(form="plain").values("depth") if H > 2]


def end(results) -> float:
    return float(times(results)[-1])


def apart_order(results, t: float) -> Estimate:
    """Order in m of E(f - f_1)^2, f_1 of one neuron in every inner layer; the mean over depths, jackknifed together."""
    found = [table(results, "plain", H, "apart") for H in deep(results)]
    k = at(results, t)
    return jackknifed(
        lambda *v: float(np.mean([power_law(m, a[:, :, k].mean(0))[0] for (m, _), a in zip(found, v, strict=True)])),
        *(values for _, values in found),
    )


def first_layer(results, depth: int) -> tuple[Array, Array]:
    """Widths and the variance of outputs of the first inner layer, (R, K, times)."""
    m, values = table(results, "plain", depth, "variance")
    return m, values[..., 1]

"""What the points of `scaling_comparison` read."""

import numpy as np

from meanfield.claims import jackknifed, order, slope
from meanfield.estimate import Estimate
from meanfield.observables import cross_product
from meanfield.widths import WidthLimit, width_limit

FIRST = 256  # from which width on exponents and limits are fitted


def at_widths(data, name: str, alpha: str, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Widths (K,) from `first` on, and what single networks read (R, K); an rms distance for coupled_distance."""
    widths = [int(m) for m in data["cloud.m"].values if m >= first]
    values = data[name].sel({"network.alpha": alpha, "cloud.m": widths}).transpose("replicate", "cloud.m").values
    return np.array(widths, float), np.sqrt(values) if name == "coupled_distance" else values


def exponent(data, name: str, alpha: str) -> Estimate:
    """The exponent in m of what networks read: its error is over networks, or from the errors of means over them."""
    if "replicate" in data[name].dims:
        m, values = at_widths(data, name, alpha, FIRST)
        return order(m, values) if len(m) > 1 and (values > 0).all() else Estimate(np.nan, np.nan)
    some = data.sel({"network.alpha": alpha}).isel({"cloud.m": data["cloud.m"].values >= FIRST})
    m, values, errors = (some[key].values for key in ("cloud.m", name, f"{name}_se"))
    return slope(m, values, errors) if len(m) > 1 and (values > 0).all() else Estimate(np.nan, np.nan)


def limits(data, name: str) -> WidthLimit | None:
    """The fit of a + b/m to what networks of alpha = 1 read, by seed; None below two widths."""
    m, values = at_widths(data, name, "1", FIRST)
    return width_limit(m, values) if len(m) > 1 else None


def limit_law(data, name: str) -> Estimate:
    """What the limit law reads: unbiased, by products of different replicates."""
    one = data.isel({"network.alpha": 0, "cloud.m": 0})
    if name == "loss":
        return jackknifed(cross_product, one.prediction.transpose("replicate", "sample").values - one.label.values)
    return Estimate(float(one.test_loss_unbiased), float(one.test_loss_unbiased_se))

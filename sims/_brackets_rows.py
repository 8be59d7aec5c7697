"""What was printed of `brackets` when the bounds were designed, and what its points read beside it."""

from typing import NamedTuple

from meanfield.claims import deviation
from meanfield.estimate import Estimate

# (D, alpha, time): exact value, upper and lower bound as printed; None where none was.
W2_SQUARED = {(2, 2.0, 0.5): (0.09307, 0.0976, 0.0931), (2, 2.0, 20.0): (0.09356, 0.103, 0.0945),
              (6, 10.0, 0.05): (0.00744, 0.00764, 0.00741), (11, 2.0, 20.0): (0.1824, 0.360, 0.178),
              (21, 10.0, 0.05): (0.00670, 0.00679, 0.00669), (21, 10.0, 10.0): (0.02002, 0.0392, 0.0198)}  # fmt: skip
KL = {(6, 2.0, 0.5): (0.11916, 0.1196, 0.1193), (11, 2.0, 10.0): (0.1692, 0.178, 0.1701),
      (21, 10.0, 0.05): (0.006693, 0.00670, 0.00673), (21, 10.0, 10.0): (0.01979, 0.0193, 0.0200)}  # fmt: skip
P1_KL = {(1.0, 1.0): (0.269960, 0.2816, 0.2577), (10.0, 20.0): (0.008044, 0.0084, 0.00795)}  # by (alpha, time)
# Without sampling error: log-Sobolev branch, energy, Girsanov; the row's KL.
LOOSE = {1.0: (0.345, 1.90, 0.58), 10.0: (0.01617, 4.45, 1.13)}
TANH = {6: 1.009 / 1.008, 11: 1.292 / 1.272, 21: 0.797 / 0.790}  # W2^2, upper over lower
# By alpha and time: upper over lower, of KL and of W2.
DIGITS = {3.0: {0.58: (2.5, 1.09), 2.0: (2.7, 1.08)},
          20.0: {0.0151: (1.09, 1.07), 0.123: (1.21, 1.11), 2.0: (1.50, 1.29)},
          100.0: {0.0016: (1.07, 1.03), 0.28: (1.20, 1.65), 2.0: (1.41, 2.4)}}  # fmt: skip


class Side(NamedTuple):
    """One bound of one row: the estimate, what it bounds, on which side, and the printed ratio to it (None: none)."""

    row: str
    name: str
    estimate: Estimate
    exact: float
    upper: bool
    printed: float | None
    replicates: int

    @property
    def unsafe(self) -> float:
        """How many standard errors the bound lies on the wrong side of the truth."""
        return (-1 if self.upper else 1) * deviation(*self.estimate[:2], self.exact)

    @property
    def ratio(self) -> Estimate:
        """Upper over exact, or exact over lower, at least 1 for a bound that is one."""
        value, se = self.estimate[:2]
        ratio = value / self.exact if self.upper else self.exact / value
        return Estimate(ratio, ratio * se / value)


def estimates(data) -> dict[str, Estimate]:
    return {name: Estimate(*map(float, v.values)) for name, v in data.data_vars.items() if v.shape == (2,)}


def title(point: dict) -> str:
    size = f"D = {point['D']}, " if "D" in point else "P1, " if point["part"] == "p1" else ""
    return f"{size}α = {point['alpha']:g}, t = {point['end']:g}"


def sides(results) -> list[Side]:
    """Both bounds of every row whose truth is known."""
    out = []
    for point, data in results:
        row, count = title(point), point.get("replicates", 0)
        if point["part"] in ("w2", "kl"):
            table, name = (W2_SQUARED, "W2^2") if point["part"] == "w2" else (KL, "KL")
            exact, found = float(data.exact), estimates(data)
            printed = table[point["D"], point["alpha"], point["end"]]
            out.append(Side(row, name, found["upper"], exact, True, printed[1] / printed[0], count))
            out.append(Side(row, name, found["lower"], exact, False, printed[0] / printed[2], count))
        elif point["part"] == "frozen":
            found, row = estimates(data), f"u alone, {row}"
            for name, low, high in (("KL", float(data.exact), float(data.exact)),
                                    ("W2^2", float(data.w2_low), float(data.w2_high))):  # fmt: skip
                prefix = "W2 " if name == "W2^2" else ""
                out.append(Side(row, name, found[f"{prefix}upper"], low, True, None, count))
                out.append(Side(row, name, found[f"{prefix}lower"], high, False, None, count))
        elif point["part"] == "p1":
            out += _p1_sides(point, data)
    return out


def _p1_sides(point: dict, data) -> list[Side]:
    out = []
    for k, t in enumerate(data.true_time.values):
        printed = P1_KL.get((point["alpha"], float(t)))
        for name in ("kl", "w2"):
            true = float(data[f"true_{name}"][k])
            slack = 2 * float(data.true_w2_error[k]) if name == "w2" else 0.0
            for side in ("upper", "lower"):
                e = Estimate(float(data[f"{name}_{side}"][k + 1]), float(data[f"{name}_{side}_se"][k + 1]))
                ratio = None
                if printed and name == "kl":
                    ratio = printed[1] / printed[0] if side == "upper" else printed[0] / printed[2]
                exact = true - slack if side == "upper" else true + slack
                row = f"P1, α = {point['alpha']:g}, t = {t:g}"
                label = "W2" if name == "w2" else "KL"
                out.append(Side(row, label, e, exact, side == "upper", ratio, point["replicates"]))
    return out

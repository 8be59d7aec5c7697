"""The running account of a cloud: what its steps did to the law, summed step by step.

It carries an upper bound on KL(p_t || q_t) with q_t = N(0, s_t^2 I) the law of the coupled reference (p0 itself for
every scheme with an exact Ornstein-Uhlenbeck part), the expected prediction of (I1), the expected coupled distance
of (I5), and the moments of the reference's increments (C0). A step is a chain of maps, each with its own rule:

    kick     T(z) = z + eps b(z), b = sum_i c_i grad psi_i      K <- K + E[(|Tz|^2 - |z|^2) / (2 s^2) - log det DT]
    channel  z <- c z + sigma xi,  s'^2 = c^2 s^2 + sigma^2   K <- min(a^2 K, K - (a^-2 - 1)/2 s'^2 I_lb), a = c s / s'

The kick is an exact change of variables where T is injective; the channel is an Ornstein-Uhlenbeck semigroup in the
coordinates z / s, where relative entropy contracts by a^2 (log-Sobolev) and falls by the integrated Fisher
information, which is at least e^{2 lam (t_end - t)} times its value at the end. I_lb <= I is Stein's bound there.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

Array = np.ndarray
# Why a KL account is void: a kick was not proved to be one-to-one, or it was seen not to be.
NOT_CERTIFIED = "a kick was not certified to be injective: take smaller steps"
FOLDED = "a kick was not injective, it folded the space of particles (det DT < 0 at some): take smaller steps"

NODES, WEIGHTS = np.polynomial.legendre.leggauss(6)  # of the integral over a channel


@dataclass(frozen=True, eq=False)
class Account:
    """What the steps so far have done, per cloud (all means over its particles).

    Attributes
    ----------
    kl : float
        Upper bound on KL(p_t || N(0, s_t^2 I)) in nats; infinite once a step was not certified.
    mass_outside : float
        Largest Gaussian mass (of |u|) outside the slab where a kick was proved injective.
    work : float
        Integral of E|b|^2 dt, for the Girsanov bound work / (4 lam).
    prediction : ndarray, shape (n,)
        The prediction that (I1), integrated along the steps, expects now.
    prediction_variance : ndarray, shape (n,)
        Variance of the measured prediction about it that the noise of finitely many particles explains.
    prediction_slack : ndarray, shape (n,)
        Estimate of what the integration rule itself may be off by.
    distance : float
        The E|Z - Zbar|^2 that (I5), integrated along the steps, expects now.
    noise : ndarray, shape (5,)
        Sums over increments xi of the reference: count, xi, xi^2, xi^4, xi * Zbar / s.
    reason : str
        Why `kl` is infinite, or empty.
    """

    kl: float = 0.0
    mass_outside: float = 0.0
    work: float = 0.0
    prediction: Array = field(default_factory=lambda: np.zeros(0))
    prediction_variance: Array = field(default_factory=lambda: np.zeros(0))
    prediction_slack: Array = field(default_factory=lambda: np.zeros(0))
    distance: float = 0.0
    noise: Array = field(default_factory=lambda: np.zeros(5))
    reason: str = ""

    def kicked(self, eps: float, sums: "KickSums", first_order: float, variance: float) -> "Account":
        """Return the account after a kick of length `eps` under the reference variance s^2.

        Parameters
        ----------
        eps : float
            Length of the kick.
        sums : KickSums
            Means over the particles before the kick.
        first_order : float
            -c . e_s, the centred mean of z . b / s^2 - div b.
        variance : float
            s^2, the reference's variance.
        """
        gain = eps * first_order + 0.5 * eps * eps * sums.speed / variance + sums.remainder
        kl, reason = self.kl + gain, self.reason
        if not sums.injective:
            kl, reason = math.inf, FOLDED if sums.folds else self.reason or NOT_CERTIFIED
        moved = eps * sums.push + 0.5 * eps * eps * sums.push2
        return replace(
            self,
            kl=max(kl, 0.0),
            reason=reason,
            mass_outside=max(self.mass_outside, sums.mass_outside),
            work=self.work + eps * sums.speed,
            prediction=self.prediction + moved,
            prediction_slack=self.prediction_slack + eps**3 / 6 * np.abs(sums.push3),
            distance=self.distance + 2 * eps * sums.pull + eps * eps * sums.speed,
        )

    def spread(self, channel: "Channel", fisher: float, bends: tuple[float, float] = (0.0, 0.0)) -> "Account":
        """Return the account after the channel.

        Parameters
        ----------
        channel : Channel
            What was done.
        fisher : float
            Lower bound (E A phi)^2 / E|grad phi|^2 on the information at its end.
        bends : tuple of float
            E|grad^2 phi|^2 and E|grad^3 phi|^2 over E|grad phi|^2 (see `dissipation`); zeros are always right.
        """
        contracted = channel.correlation2 * self.kl
        if math.isfinite(self.kl) and fisher > 0:
            contracted = min(contracted, self.kl - dissipation(channel, fisher, bends))
        return replace(self, kl=max(contracted, 0.0), distance=channel.decay**2 * self.distance)

    def replace_means(self, *, moved: Array, slack: Array, variance: Array, noise: Array) -> "Account":
        """Return the account after what the channel did to predictions, with the increments of the reference."""
        return replace(
            self,
            prediction=self.prediction + moved,
            prediction_variance=self.prediction_variance + variance,
            prediction_slack=self.prediction_slack + slack,
            noise=self.noise + noise,
        )


@dataclass(frozen=True)
class KickSums:
    """Means over the particles that a kick reports: see `Account.kicked`.

    `speed` = E|b|^2, `pull` = E (Z - Zbar) . b, `remainder` >= E[eps tr Db - log det(I + eps Db)], `push`, `push2` and
    `push3` (n,) first three derivatives along b of alpha E psi_i; `folds` says whether det DT has both signs.
    """

    speed: float
    pull: float
    remainder: float
    push: Array
    push2: Array
    push3: Array
    injective: bool
    mass_outside: float
    folds: bool = False


@dataclass(frozen=True)
class Channel:
    """The linear Gaussian part of a step, z <- decay z + sigma xi, and the reference variance before it."""

    decay: float
    sigma: float
    variance_before: float

    @property
    def variance_after(self) -> float:
        """The reference's variance after the channel, s'^2 = decay^2 s^2 + sigma^2."""
        return self.decay**2 * self.variance_before + self.sigma**2

    @property
    def correlation2(self) -> float:
        """The squared correlation a^2 of the reference before and after."""
        return self.decay**2 * self.variance_before / self.variance_after

    @property
    def time(self) -> float:
        """The length -log a of the channel in units of its relaxation time."""
        return -0.5 * math.log(self.correlation2)


def dissipation(channel: Channel, fisher: float, bends: tuple[float, float] = (0.0, 0.0)) -> float:
    """Return a lower bound on the relative entropy that the channel takes away, the integral of I over it.

    In y = z / s' the channel is the semigroup P_t, 0 <= t <= -log a. At the time t before its end, Stein's bound with
    the field grad P_t phi has the numerator (E A phi)^2 of the end, and by grad P_t = e^{-t} P_t grad, r = 1 - e^{-2t},

        E|grad P_t phi|^2 <= e^{-2t} E[|grad phi|^2 - r |grad^2 phi|^2 + r^2 |grad^3 phi|^2 / 2],

    since E_s (P_s f)^2, E_s the mean a time s before the end, falls in s at the rate 2 e^{-2s} E_s |P_s grad f|^2: with
    f = grad^2 phi this bounds E_s |P_s grad^2 phi|^2 >= E|grad^2 phi|^2 - (1 - e^{-2s}) E|grad^3 phi|^2 from below, and
    with f = grad phi the integral of that is the line above, exact for fields of degree three. With `bends` zero this
    is I >= e^{2t} I(end), whose integral is (a^-2 - 1) / 2 I(end): loose to first order.
    """
    s2, end = channel.variance_after, 1 - channel.correlation2
    r = 0.5 * end * (1 + NODES)
    second, third = s2 * bends[0], s2 * s2 * bends[1]
    # At most 1 by Bakry and Emery; the floor, on the safe side, is for channels too long for the expansion.
    shape = np.clip(1 - r * second + 0.5 * r * r * third, 0.1, 1.0)
    return float(0.5 * end * np.sum(WEIGHTS * 0.5 * s2 * fisher / ((1 - r) ** 2 * shape)))


def injective_height(
    c: Array, eps: float, x: Array, suprema: Sequence[float], train: str, *, midpoint: bool = False
) -> float:
    """Return U such that the kick of length eps along b = sum_i c_i grad psi_i is injective where |u| < U.

    On the convex slab |u| < U the map id + eps b is injective if eps |Db| < tau = 1 (for the midpoint map
    eps |Db| (1 + eps |Db| / 2) < 1, tau = sqrt(3) - 1). With |X' diag(u h'' c) X| <= |u| A, A = G3 lambda_max(sum
    |c_i| x_i x_i'), and |X' (h' c)| <= B, the norm is at most (|u| A + sqrt(u^2 A^2 + 4 B^2)) / 2, hence
    U = (tau - (eps B)^2 / tau) / (eps A). The midpoint map looks at Db after half a kick too, which moves u by at most
    eps G1 sum |c_i| / 2: its U is less by that.

    Returns
    -------
    float
        U; infinite where the map is a shear (train = "u"), zero where nothing is proved.
    """
    if train == "u" or eps == 0:
        return math.inf
    g1, g2, g3 = suprema[:3]
    size = np.abs(np.asarray(c, dtype=np.float64))
    if not size.any():
        return math.inf
    tau = math.sqrt(3) - 1 if midpoint else 1.0
    a = 0.0 if g3 == 0 else g3 * _largest_weighted(x, size)
    b = 0.0
    if train == "both":
        norms = np.sqrt(np.einsum("ij,ij->i", x, x))
        largest = _largest_singular_value(x.tobytes(), x.shape, x.dtype.str)
        b = g2 * min(float(size @ norms), largest * float(np.linalg.norm(size)))
    room = tau - (eps * b) ** 2 / tau
    if not math.isfinite(a) or room <= 0:
        return 0.0
    if a == 0:
        return math.inf
    reach = 0.5 * eps * g1 * float(size.sum()) if midpoint and train == "both" else 0.0
    return max(room / (eps * a) - reach, 0.0)


def _largest_weighted(x: Array, size: Array) -> float:
    """Return lambda_max of sum size_i x_i x_i', from the smaller of the matrices (d, d) and (n, n) that have it."""
    if x.shape[1] <= len(x):
        return float(np.linalg.eigvalsh(x.T @ (x * size[:, None]))[-1])
    rooted = x * np.sqrt(size)[:, None]
    return float(np.linalg.eigvalsh(rooted @ rooted.T)[-1])


@functools.lru_cache(maxsize=8)
def _largest_singular_value(raw: bytes, shape: tuple[int, int], dtype: str) -> float:
    """Return |X|_2, the same in every step, remembered by the bytes of x."""
    return float(np.linalg.norm(np.frombuffer(raw, dtype).reshape(shape).astype(np.float64), 2))

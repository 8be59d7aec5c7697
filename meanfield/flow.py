"""The dynamics: one pure step from cloud to cloud, for every objective and scheme.

    dz = (-grad dF/dp(z) - lam z) dt + sqrt(2 lam) dW        (equation (3.4) of [CCGZ20]; lam z = -lam grad log p0)

`Flow` says what is minimised, how strong noise and decay are, and how a step is made; `Flow.step` makes one, and
`Flow.propose` chooses its length. `steps` holds the step itself, `schemes` the parts of each scheme.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from meanfield import parallel, steps
from meanfield.account import injective_height
from meanfield.cloud import Cloud, Gaussian
from meanfield.errors import InputError, did_you_mean
from meanfield.minibatch import Minibatch
from meanfield.objectives import Objective
from meanfield.schemes import SCHEMES, Scheme
from meanfield.steps import Dynamics

Array = np.ndarray
AUTO = "auto"
TRAIN = ("both", "u", "theta")
# The step rule of the kernel schemes (see `Flow.propose`): the first step in units of 1 / (kappa lambda_max), growth a
# step, largest rms kick, largest lam * eta, and how many standard deviations of u the kick must be injective on.
FIRST_STEP, GROWTH, KICK, DECAY, SLAB = 0.25, 1.5, 0.05, 0.05, 8.0
# Explicit steps without an account look at the cloud's own kernel once in so many steps.
RECHECK = 64


@dataclass(frozen=True, eq=False)
class Flow:
    """Noisy gradient descent on an objective, with weight decay to a Gaussian prior.

    Parameters
    ----------
    objective : Objective
        What is minimised.
    lam : float
        Strength of noise and decay: Q(p) = F(p) + lam KL(p || p0).
    eta : float, "auto" or callable
        Length of a step in the time of (3.4); "auto" applies the rule of `propose`; a callable takes the step's number.
    scheme : str
        "kernel", "kernel2", "exponential", "euler", "euler_literal", or "auto": what suits the objective.
    prior : Gaussian or None
        p0; None means no decay.
    train : str
        "both", or "u" or "theta" alone, the other layer frozen.
    allow_unstable : bool
        Let explicit steps exceed the stability limit. Bounded activations do not blow up there, they go wrong.
    account : bool
        Keep the KL account and the checks that ride with a step; costs about as much as the step.
    leaf : float or None
        Take the noise from a Brownian tree with leaves of this length, which eta and the times must be multiples of
        (even ones for "kernel2"): runs with different steps then share their paths of noise. See `brownian`.

    Raises
    ------
    InputError
        If a name is unknown or a number makes no sense.
    """

    objective: Objective
    lam: float = 1e-2
    eta: float | str | Callable[[int], float] = AUTO
    scheme: str = AUTO
    prior: Gaussian | None = field(default_factory=Gaussian)
    train: str = "both"
    allow_unstable: bool = False
    account: bool = True
    leaf: float | None = None

    def __post_init__(self) -> None:
        given: object = self.objective
        if not isinstance(given, Objective):
            raise InputError(f"objective must be an Objective such as mf.Risk(x, y), got {type(given).__name__}")
        if not (isinstance(self.lam, int | float) and math.isfinite(self.lam) and self.lam >= 0):
            raise InputError(f"lam must be finite and at least 0, got {self.lam!r}")
        if self.train not in TRAIN:
            near = did_you_mean(self.train, TRAIN)
            raise InputError(f"train must be 'both', 'u' or 'theta', got {self.train!r}.{near}")
        if self.scheme != AUTO and self.scheme not in SCHEMES:
            known = ", ".join(SCHEMES)
            raise InputError(
                f"scheme must be one of auto, {known}, got {self.scheme!r}.{did_you_mean(self.scheme, SCHEMES)}"
            )
        fixed = not callable(self.eta) and self.eta != AUTO
        if fixed and not (isinstance(self.eta, int | float) and math.isfinite(self.eta) and self.eta > 0):
            raise InputError(f"eta must be a positive number, 'auto' or a function of the step, got {self.eta!r}")
        if self.leaf is not None and (self.eta == AUTO or not (math.isfinite(self.leaf) and self.leaf > 0)):
            raise InputError(f"leaf must be a positive number beside an eta given as a number, got {self.leaf!r}")
        if isinstance(self.objective, Minibatch) and not self.method.explicit:
            raise InputError(f"scheme '{self.method.name}' would solve each batch to its end; take 'euler'")

    @cached_property
    def method(self) -> Scheme:
        """The scheme that steps are made by."""
        return SCHEMES[self.objective.preferred_scheme if self.scheme == AUTO else self.scheme]

    @property
    def decay(self) -> float:
        """1 / std^2 of the prior, 0 without one."""
        return 0.0 if self.prior is None else 1 / self.prior.variance

    @cached_property
    def dynamics(self) -> Dynamics:
        """What a step needs beside the cloud."""
        keeps = self.account and self.objective.network is not None
        return Dynamics(self.objective, self.method, float(self.lam), self.decay, self.train, keeps, self.leaf or 0.0)

    def accounts(self, cloud: Cloud) -> bool:
        """Return whether steps keep an account: the objective is a network, the cloud has a reference."""
        return self.dynamics.account and cloud.reference is not None

    def step(self, cloud: Cloud, eta: float | None = None) -> Cloud:
        """Return the cloud one step later; pure, and the same bits for any number of threads.

        Parameters
        ----------
        cloud : Cloud
            The state; it is not changed.
        eta : float, optional
            Length of the step; by default what `propose` says for this cloud.

        Raises
        ------
        InputError
            If the step is explicit and longer than the stability limit.
        DivergedError
            If particles are not finite afterwards.
        """
        return self.home(self._step(cloud, eta, donated=False))

    def advance(self, cloud: Cloud, eta: float | None = None) -> Cloud:
        """Return what `step` returns, bit for bit, and give up the cloud: its arrays may have been written over.

        Steps without an account then need no second cloud, and with a backend that has a device the cloud stays there:
        `home` brings it back.
        """
        return self._step(cloud, eta, donated=True)

    def prepare(self, cloud: Cloud) -> None:
        """Measure what the next step will ask of a cloud; observables that come before it find it measured."""
        risk = self.objective.network
        if risk is None or isinstance(self.objective, Minibatch):
            return
        with parallel.single_threaded_blas():
            if not self.method.explicit:
                self.objective.tangent(cloud, self.train, self.decay)
            elif self.accounts(cloud):
                risk.measure(cloud, self.train, gram=False)

    def home(self, cloud: Cloud) -> Cloud:
        """Return the cloud with numpy arrays, wherever `advance` left it."""
        risk = self.objective.network
        return cloud if risk is None else risk.home(cloud)

    def _step(self, cloud: Cloud, eta: float | None, donated: bool) -> Cloud:
        eta = self.propose([cloud]) if eta is None else float(eta)
        if not (math.isfinite(eta) and eta > 0):
            raise InputError(f"a step must have a positive, finite length, got eta = {eta!r} at step {cloud.step}")
        if self.method.explicit and not self.allow_unstable and not self._known_stable(cloud, eta):
            self.check_stable(cloud, eta)
        return steps.step(self.dynamics._replace(account=self.accounts(cloud)), cloud, eta, donated=donated)

    def stability_limit(self, cloud: Cloud) -> float:
        """Return the longest stable explicit step, 2 / (kappa lambda_max(H) + lam / std^2); infinite if nothing limits.

        For the square loss kappa lambda_max(H) = 2 alpha^2 lambda_max(H) / n. The kernel schemes have no limit.
        """
        return self._limit(self.objective.stiffness(cloud, self.train), cloud)

    def _limit(self, stiffness: float, cloud: Cloud) -> float:
        rate = stiffness + self.lam * self.decay
        # The literal scheme divides its drift by m.
        return (cloud.m if self.method.literal else 1) * 2 / rate if rate > 0 else math.inf

    def _known_stable(self, cloud: Cloud, eta: float) -> bool:
        """Return whether the kernel at the start shows that a step is stable.

        Asked only where no account is kept, which forms the cloud's own kernel anyway, and not at every 64th step.
        """
        if cloud.step % RECHECK == 0 or self.accounts(cloud):
            return False
        stiffness = self.objective.stiffness_start(cloud, self.train)
        return stiffness is not None and eta <= self._limit(stiffness, cloud)

    def check_stable(self, cloud: Cloud, eta: float) -> None:
        """Refuse an explicit step longer than the stability limit."""
        limit = self.stability_limit(cloud)
        if eta > limit:
            cure = "scheme='kernel', which has no limit, " if self.objective.tangent(cloud, self.train) else ""
            raise InputError(
                f"eta = {eta:.6g} is above the stability limit {limit:.6g} of the explicit scheme '{self.method.name}' "
                f"(2 / (kappa lambda_max(H) + lam)), where bounded activations go silently wrong; take {cure}"
                f"eta below {limit:.3g}, or allow_unstable=True to see it happen"
            )

    def check_tangent(self, cloud: Cloud) -> None:
        """Refuse a kernel scheme for an objective that has no tangent kernel."""
        if not self.method.explicit and self.objective.tangent(cloud, self.train) is None:
            raise InputError(
                f"scheme '{self.method.name}' needs an objective with a tangent (a network's risk); take 'exponential'"
            )

    def propose(self, clouds: Sequence[Cloud]) -> float:
        """Return the length of the next step for replicates that step together.

        Explicit schemes take half the stability limit. The kernel schemes start at 0.25 / (kappa lambda_max(H)), grow
        by 1.5 a step, and keep the rms kick eta sqrt(E|b_J|^2) at most 0.05 std, lam eta / std^2 at most 0.05 (beyond
        it the KL account grows loose, see docs/mathematics.md), and every kick injective for |u| up to 8 standard
        deviations (or beyond the farthest particle).
        """
        if callable(self.eta):
            return float(self.eta(clouds[0].step))
        if self.eta != AUTO:
            return float(self.eta)
        eta = self._propose(clouds)
        return eta if clouds[0].share is None else clouds[0].share.agreed(eta)

    def _propose(self, clouds: Sequence[Cloud]) -> float:
        if self.method.explicit:
            with parallel.single_threaded_blas():
                limit = min(self.stability_limit(cloud) for cloud in clouds)
            if not math.isfinite(limit):
                raise InputError("eta='auto' cannot tell a step: nothing limits it here; give eta as a number")
            return 0.5 * limit
        with parallel.single_threaded_blas():
            return min(self._propose_kernel(cloud) for cloud in clouds)

    def _propose_kernel(self, cloud: Cloud) -> float:
        self.check_tangent(cloud)
        eta = GROWTH * cloud.eta
        if not cloud.eta:
            rate = self.objective.stiffness(cloud, self.train)
            eta = FIRST_STEP / rate if rate else math.inf
        if self.lam * self.decay:
            eta = min(eta, DECAY / (self.lam * self.decay))
        if not math.isfinite(eta):
            raise InputError("eta='auto' cannot tell a step: nothing drives this flow; give eta as a number")
        while not self._small_enough(cloud, eta):
            eta *= 0.8
        return eta

    def _small_enough(self, cloud: Cloud, eta: float) -> bool:
        """Return whether a kernel step keeps the rms kick small and, where it is accounted for, injective."""
        objective = self.objective
        residual = steps.frozen_kernel(self.dynamics, cloud, cloud, eta)
        _, gram, _ = objective.tangent(cloud, self.train, self.decay)  # type: ignore[misc]
        kappa = objective.kappa  # type: ignore[attr-defined]
        # E|b_J|^2 = (4 alpha^2 / n^2) J' H J
        speed = math.sqrt(max(2 * kappa / len(residual) * float(residual @ gram @ residual), 0.0))
        if eta * speed > KICK * (self.prior.std if self.prior else 1.0):
            return False
        risk = objective.network
        if risk is None or not self.accounts(cloud) or steps.unaccountable(self.dynamics):
            return True
        height = injective_height(
            risk.coefficients(residual), 0.5 * eta, risk.inputs, risk.unit.h.suprema, self.train,
            midpoint=self.method.midpoint,
        )  # fmt: skip
        return height > max(SLAB * math.sqrt(cloud.reference_variance), 1.5 * cloud.farthest())

r"""The limit equation (3.4) of [CCGZ20] solved without particles, for one input: independent solutions to compare with.

    dp/dt = div(p grad V) + lam div(p grad log(p / p0)),   V = dL/dp = (2 alpha / n) sum_i r_i psi_i

`spectral`   Hermite polynomials, both layers trained: seven digits and more where h is analytic      (`hermite`)
`volumes`    finite volumes: positive, of mass one, an energy that falls; any h                       (`finite_volumes`)
`frozen`     the same with fixed output weights: laws of theta alone
`proximal`   minimising movements in one dimension, by quantiles                                      (`quantiles`)

`wasserstein` is W2(p_t, p0) by the optimal map on the cells (`monge`); `identities` holds a solution against (I1) to
(I4); `Solution.data` has the names of a run's records.

    risk = mf.Risk([[0.4], [1.0]], [0.5, 0.8], unit=mf.Unit("erf"), alpha=1.0)
    solution = mf.fokker_planck.spectral(risk, lam=0.2, times=[0.5, 1.0])
    solution.kl, solution.error["kl"]
"""

import warnings
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from meanfield import parallel
from meanfield.errors import DivergedError, InputError
from meanfield.finite_volumes import Volumes, lines, plane
from meanfield.hermite import Hermite
from meanfield.monge import line_distance, plane_distance
from meanfield.ntk import largest_eigenvalue
from meanfield.quantiles import Movement as Movement
from meanfield.quantiles import proximal as proximal
from meanfield.risk import Risk
from meanfield.solution import Solution as Solution
from meanfield.solution import check_problem, checked_times, solve, whole

Array = np.ndarray
# The tail of an expansion, in the norm of L2(p0), that is worth a warning, and that makes it worthless.
DOUBTFUL_TAIL, WORTHLESS_TAIL = 1e-3, 5e-2
# Mass in the outermost cells that is worth a warning.
DOUBTFUL_EDGE = 1e-6
# Half the side of the largest box: masses at its corners, about e^-225, are far from underflow.
LARGEST_BOX = 15.0
# The coarser solution of an error estimate: its share of modes or of cells, and how much looser its time steps are
# (2^3 for a scheme of second order: steps twice as long).
COARSER_MODES, COARSER_CELLS, LOOSER = 0.75, 0.5, 8.0
# Steps of the differences of (I1) to (I4), as a share of the fastest relaxation time.
WINDOW = 4e-3
# Sizes of terms below which gaps of identities are not relative: rounding, where nothing moves.
ROUNDING = 1e-9


def spectral(
    risk: Risk,
    lam: float,
    times: Any,
    *,
    modes: int | tuple[int, int] = (128, 40),
    tolerance: float = 1e-10,
    train: str = "both",
    estimate: bool = True,
) -> Solution:
    """Solve the limit equation by Hermite polynomials.

    Parameters
    ----------
    risk : Risk
        One input, no bias, the square loss; `centred` and `backend` play no part.
    lam : float
        Strength of noise and decay.
    times : sequence of float
        Ascending times at which the law is read.
    modes : int or (int, int)
        Polynomials in theta and in u.
    tolerance : float
        Relative error of a time step in the norm of L2(p0).
    train : str
        "both", "u" or "theta".
    estimate : bool
        Whether to solve again with three quarters of the modes and longer time steps, and to report what that changes
        (`Solution.error`).

    Returns
    -------
    Solution

    Raises
    ------
    InputError
        For another problem, or an activation with a kink.
    DivergedError
        If the expansion fails: p / p0 is not square integrable under p0 (a variance above 2), or the modes are too few.

    Warns
    -----
    UserWarning
        If the outermost modes hold more than 1e-3 in the norm of L2(p0).

    Notes
    -----
    O(N^2 M) a right-hand side, N and M the modes in theta and u; half a second at (128, 40). Source: the weak form of
    (3.4) of [CCGZ20]; time steps of [HairerWanner96].
    """
    check_problem(risk, lam, train)
    pair = whole("modes", modes, 8, "modes=(128, 40)")
    when = checked_times(times)
    solution = solve(Hermite(risk, float(lam), pair, tolerance, train), when)
    _check_tail(solution, pair)
    if estimate:
        fewer = (int(COARSER_MODES * pair[0]), int(COARSER_MODES * pair[1]))
        coarse = solve(Hermite(risk, float(lam), fewer, LOOSER * tolerance, train), when)
        solution = replace(solution, coarser=coarse)
    return solution


def volumes(
    risk: Risk,
    lam: float,
    times: Any,
    *,
    cells: int | tuple[int, int] = (160, 160),
    box: float | tuple[float, float] = (7.0, 7.0),
    tolerance: float = 1e-5,
    train: str = "both",
    estimate: bool = True,
) -> Solution:
    """Solve the limit equation by Scharfetter-Gummel finite volumes [ScharfetterGummel69].

    Parameters
    ----------
    risk, lam, times, train
        As for `spectral`; here h may have kinks.
    cells : int or (int, int)
        Cells along theta and along u.
    box : float or (float, float)
        Half the sides of the box.
    tolerance : float
        Largest error of a time step in total variation.
    estimate : bool
        Whether to solve again with half the cells and longer time steps, and to report what that changes
        (`Solution.error`): three times the error where the order is two, the error itself where drift makes it one.
        Cells wider than 0.3 on the coarser grid are too wide for that, and the estimate may then be too small.

    Returns
    -------
    Solution

    Raises
    ------
    InputError
        For another problem.

    Warns
    -----
    UserWarning
        If the outermost cells hold more than 1e-6 of the mass.

    Notes
    -----
    Positive, of mass one to rounding; Q falls in every step (`Solution.path_energies`). The work of a step grows like
    its length over the square of a cell; steps are limited by accuracy alone.
    """
    check_problem(risk, lam, train)
    pair, half = whole("cells", cells, 8, "cells=(160, 160)"), _box(box)

    def model(count: tuple[int, int], precision: float) -> Volumes:
        return Volumes(risk, float(lam), plane(count, half), precision, train)

    coarser = model(_halved(pair), LOOSER * tolerance) if estimate else None
    return _by_volumes(model(pair, tolerance), coarser, times)


def frozen(
    risk: Risk,
    lam: float,
    times: Any,
    *,
    u: Any = 1.0,
    share: Any = None,
    cells: int = 400,
    box: float = 7.0,
    tolerance: float = 1e-6,
    estimate: bool = True,
) -> Solution:
    """Solve for the law of theta with output weights u that stay as they are.

    The potential is V(theta) = (2 alpha / n) sum_i r_i u h(theta x_i), one line of cells for each value of u; f is the
    sum over them. p0 is N(0, 1) in theta, with the given shares of u, so f may differ from 0 at the start.

    Parameters
    ----------
    risk, lam, times
        As for `volumes`.
    u : float or sequence of float
        Values of the output weight, all different: 1.0, or (-1.0, 1.0).
    share : sequence of float, optional
        Mass of each value; equal if left out.
    cells, box, tolerance, estimate
        As for `volumes`, along theta.

    Returns
    -------
    Solution
        `density(theta, u)` is that in theta of what has the value u.

    Raises
    ------
    InputError
        For another problem, or values and shares that make no sense.
    """
    check_problem(risk, lam, "theta")
    count, half = whole("cells", cells, 8, "cells=400")[0], _box(box)[0]
    values = np.atleast_1d(np.asarray(u, dtype=np.float64))
    mass = np.ones(values.shape) if share is None else np.atleast_1d(np.asarray(share, dtype=np.float64))
    if values.ndim != 1 or not np.isfinite(values).all() or len(set(values.tolist())) != len(values):
        raise InputError(f"u is a number or a list of different numbers, as u=(-1.0, 1.0); got {u!r}.")
    if mass.shape != values.shape or not (np.isfinite(mass).all() and (mass > 0).all()):
        raise InputError(f"share has a positive number for each of the {len(values)} values of u; got {share!r}.")

    def model(number: int, precision: float) -> Volumes:
        return Volumes(risk, float(lam), lines(number, half, values, mass), precision, "theta")

    coarser = model(_halved((count, count))[0], LOOSER * tolerance) if estimate else None
    return _by_volumes(model(count, tolerance), coarser, times)


def _by_volumes(model: Volumes, coarser: Volumes | None, times: Any) -> Solution:
    when = checked_times(times)
    solution = solve(model, when)
    edge = float(solution.series.tail.max())
    if edge > DOUBTFUL_EDGE:
        warnings.warn(f"the outermost cells hold a mass of {edge:.1g}: give a wider box.", UserWarning, stacklevel=3)
    return solution if coarser is None else replace(solution, coarser=solve(coarser, when))


def _check_tail(solution: Solution, modes: tuple[int, int]) -> None:
    tail = float(solution.series.tail.max())
    advice = f"give more modes than {modes}, or take fokker_planck.volumes(risk, lam, times)."
    if tail > WORTHLESS_TAIL:
        raise DivergedError(f"the outermost modes of p / p0 hold {tail:.2g} in L2(p0): {advice}")
    if tail > DOUBTFUL_TAIL:
        warnings.warn(f"the outermost modes of p / p0 hold {tail:.2g} in L2(p0): {advice}", UserWarning, stacklevel=3)


def _box(box: Any) -> tuple[float, float]:
    pair = tuple(box) if np.ndim(box) else (box, box)
    if len(pair) != 2 or not all(0 < edge <= LARGEST_BOX for edge in pair):
        raise InputError(
            f"box is half the side of the box, at most {LARGEST_BOX:g}, or a pair, as box=(7.0, 7.0); got {box!r}."
        )
    return float(pair[0]), float(pair[1])


def _halved(cells: tuple[int, int]) -> tuple[int, int]:
    return int(COARSER_CELLS * cells[0]), int(COARSER_CELLS * cells[1])


# --- the distance


class Distance(NamedTuple):
    """W2 at the times of a solution and its estimated numerical error, shapes (T,)."""

    value: Array
    error: Array


def wasserstein(solution: Solution) -> Distance:
    """Return W2(p_t, p0) of a solution by finite volumes, by the optimal map on its cells.

    Parameters
    ----------
    solution : Solution
        Of `volumes` (the Monge-Ampere equation by Newton's method [LoeperRapetti05]), or of `frozen` with one value of
        u (quantiles).

    Returns
    -------
    Distance
        `value`, shape (T,), and `error`, the change from the coarser solution: an estimate of the numerical error,
        which is of second order in the cells; NaN if there is no coarser solution.

    Raises
    ------
    InputError
        For other solutions.
    DivergedError
        If the map is not found.

    Notes
    -----
    About six sparse factorisations a time: a second at 80 x 80 cells, eight at 160 x 160.
    """
    value = _distances(solution)
    error = np.full_like(value, np.nan) if solution.coarser is None else np.abs(value - _distances(solution.coarser))
    return Distance(value, error)


def _distances(solution: Solution) -> Array:
    model = solution.model
    if not isinstance(model, Volumes):
        raise InputError("the optimal map needs a law on cells: give a solution of fokker_planck.volumes or frozen.")
    cells, found, phi = model.cells, [], None
    if not cells.widths[1] and len(cells.u) > 1:
        raise InputError("W2 with several frozen values of u is not solved for: give fokker_planck.frozen one value.")
    for p in solution.states:
        if not cells.widths[1]:
            found.append(line_distance(p[:, 0], cells.start[:, 0], cells.widths[0]))
        else:
            value, phi = plane_distance(cells, p, phi)
            found.append(value)
    return np.array(found)


# --- identities


class Identity(NamedTuple):
    """One identity at the times of a solution: a difference quotient in time, what it should be, and how far apart.

    `rate` and `formula` have shape (T, ...). `gap`, shape (T,), is the largest difference over the size of the terms:
    the sum of their absolute values for (I1), B + 2 lam |S| + lam^2 I for (I2) and (I4), that over lam for (I3).
    """

    rate: Array
    formula: Array
    gap: Array


def identities(solution: Solution) -> dict[str, Identity]:
    """Hold a solution against (I1) to (I4) at its times.

    (I1) df/dt = -kappa H r + alpha lam e, (I2) dL/dt = -B + lam S, (I3) dKL/dt = -lam I + S and
    (I4) dQ/dt = -(B - 2 lam S + lam^2 I). The left sides are forward differences of fourth order of the solver's own
    motion from the state at each time, over a short window; the right sides are read of the state. The spectral solver
    closes them to rounding and its tail, finite volumes to the square of a cell.

    Returns
    -------
    dict
        "I1" to "I4" to `Identity`.
    """
    with parallel.single_threaded_blas():
        windows = [_rates(solution, k) for k in range(len(solution.times))]
    f, loss, kl = (np.array(part) for part in zip(*windows, strict=True))
    lam, risk, r = solution.lam, solution.risk, solution.residual
    pull = -risk.kappa * np.einsum("tij,tj->ti", solution.series.gram, r)
    push = risk.alpha * lam * solution.series.generator
    B, S, fisher = solution.drift_square, solution.noise_work, solution.fisher
    size = B + 2 * lam * np.abs(S) + lam**2 * fisher
    return {
        "I1": _identity(f, pull + push, np.abs(pull) + np.abs(push)),
        "I2": _identity(loss, -B + lam * S, size),
        "I3": _identity(kl, S - lam * fisher, size / lam),
        "I4": _identity(loss + lam * kl, -solution.dissipation, size),
    }


def _identity(rate: Array, formula: Array, size: Array) -> Identity:
    axes = tuple(range(1, rate.ndim))
    return Identity(rate, formula, np.abs(rate - formula).max(axis=axes) / np.maximum(size.max(axis=axes), ROUNDING))


def _rates(solution: Solution, k: int) -> tuple[Array, float, float]:
    """Return df/dt, dL/dt and dKL/dt at the k-th time: (-25, 48, -36, 16, -3) / 12 over five states."""
    model, state = solution.model, solution.states[k]
    fastest = solution.lam + solution.risk.kappa * largest_eigenvalue(solution.series.gram[k])
    h = WINDOW / (fastest + float(np.sqrt(max(solution.drift_square[k], 0.0))))
    readings = [model.read(state)]
    for _ in range(4):
        state = model.advance(state, h, model.sharpest).state
        readings.append(model.read(state))
    weights = np.array([-25.0, 48.0, -36.0, 16.0, -3.0]) / (12 * h)
    f = np.array([reading.prediction for reading in readings])
    loss = ((f - solution.risk.y) ** 2).mean(axis=1)
    return weights @ f, float(weights @ loss), float(weights @ np.array([reading.kl for reading in readings]))

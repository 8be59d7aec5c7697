r"""W2(p, p0) of a law on cells, exactly up to the grid: the Monge-Ampere equation by Newton's method [LoeperRapetti05].

The optimal map from p to p0 is T(z) = z + grad phi(z), |z|^2 / 2 + phi convex [Brenier91], W2^2 = E_p |grad phi|^2 and

    log(p / p0) + z . grad phi + |grad phi|^2 / 2 - log det(I + D^2 phi) = 0.

Central differences at the centres of the cells, grad phi = 0 across the edge of the box (where no mass is): second
order. The linearised equation is elliptic as long as I + D^2 phi > 0, which damping keeps. On a line the map is known
by quantiles.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from meanfield.errors import DivergedError
from meanfield.finite_volumes import Cells

if TYPE_CHECKING:
    from scipy.sparse import csc_matrix

Array = np.ndarray
# Newton stops where the largest residual of the equation has this size; a move is halved at most so often.
ACCURACY, MOST_MOVES, MOST_HALVINGS = 1e-7, 60, 20
# Mass of both laws outside the cells whose log(p / p0) bounds that of the others: far out it would rule the damping.
LEFT_OUT = 1e-9


def line_distance(p: Array, q: Array, width: float) -> float:
    """Return W2 of two laws on the same line of cells, uniform inside each, by their quantiles; exact, O(N log N)."""
    edges = width * np.arange(len(p) + 1)
    steps = [np.append(0.0, np.cumsum(mass)) / mass.sum() for mass in (p, q)]
    share = np.unique(np.concatenate(steps))
    gap = np.interp(share, steps[0], edges) - np.interp(share, steps[1], edges)
    square = (gap[1:] ** 2 + gap[1:] * gap[:-1] + gap[:-1] ** 2) / 3
    return float(np.sqrt((np.diff(share) * square).sum()))


class Slopes(NamedTuple):
    """First and second derivatives of phi at the centres, flat."""

    theta: Array
    u: Array
    theta_theta: Array
    theta_u: Array
    u_u: Array

    @property
    def determinant(self) -> Array:
        """det(I + D^2 phi)."""
        return (1 + self.theta_theta) * (1 + self.u_u) - self.theta_u**2

    @property
    def convex(self) -> bool:
        """Whether I + D^2 phi is positive everywhere."""
        return bool(self.determinant.min() > 0 and self.theta_theta.min() > -1)


class Grid:
    """The differences of a grid of cells, as sparse matrices over flat arrays."""

    def __init__(self, cells: Cells) -> None:
        from scipy.sparse import identity, kron

        self.shape = cells.start.shape
        self.theta, self.u = (part.ravel() for part in np.meshgrid(cells.theta, cells.u, indexing="ij"))
        first, second = zip(
            *(_differences(n, width) for n, width in zip(self.shape, cells.widths, strict=True)), strict=True
        )
        still = [identity(n) for n in self.shape]
        self.matrices = [
            kron(first[0], still[1], "csr"), kron(still[0], first[1], "csr"), kron(second[0], still[1], "csr"),
            kron(first[0], first[1], "csr"), kron(still[0], second[1], "csr"),
        ]  # fmt: skip
        self.centre = self.theta.size // 2 + self.shape[1] // 2
        self.pin = np.zeros(self.theta.size)
        self.pin[self.centre] = 1.0

    def slopes(self, phi: Array) -> Slopes:
        """Return the derivatives of phi."""
        return Slopes(*(matrix @ phi for matrix in self.matrices))

    def residual(self, log_ratio: Array, slopes: Slopes) -> Array:
        """Return the left side of the equation."""
        along = self.theta * slopes.theta + self.u * slopes.u + 0.5 * (slopes.theta**2 + slopes.u**2)
        return log_ratio + along - np.log(slopes.determinant)

    def linearised(self, slopes: Slopes) -> "csc_matrix":
        """Return the derivative of the residual, pinned at the centre since it does not see constants."""
        from scipy.sparse import diags

        weights = (
            self.theta + slopes.theta, self.u + slopes.u, -(1 + slopes.u_u) / slopes.determinant,
            2 * slopes.theta_u / slopes.determinant, -(1 + slopes.theta_theta) / slopes.determinant,
        )  # fmt: skip
        terms = [diags(weight) @ matrix for weight, matrix in zip(weights, self.matrices, strict=True)]
        return (sum(terms[1:], terms[0]) + diags(self.pin)).tocsc()


def _differences(count: int, width: float) -> tuple[Any, Any]:
    """Return the first and second difference on a line of cells, mirrored at its ends."""
    from scipy.sparse import diags

    ones, ends = np.ones(count - 1), np.zeros(count)
    ends[0], ends[-1] = -1.0, 1.0
    first = diags([-ones, ends, ones], [-1, 0, 1]) / (2 * width)
    second = diags([ones, -2.0 + np.abs(ends), ones], [-1, 0, 1]) / width**2
    return first, second


def plane_distance(cells: Cells, p: Array, phi: Array | None = None) -> tuple[float, Array]:
    """Return W2(p, p0) and the potential phi, flat; `phi` is where Newton's method starts.

    Raises
    ------
    DivergedError
        If it finds no solution: a law far from p0, or a grid too coarse for it.

    Notes
    -----
    A sparse factorisation a move, about six moves: a second at 80 x 80 cells, eight at 160 x 160.
    """
    grid = Grid(cells)
    log_ratio = _log_ratio(p.ravel(), cells.start.ravel())
    phi = np.zeros(p.size) if phi is None else phi
    slopes = grid.slopes(phi)
    for _ in range(MOST_MOVES):
        residual = grid.residual(log_ratio, slopes)
        move, offset = _newton(grid, slopes, residual)
        size = float(np.abs(residual + offset).max())
        if size <= ACCURACY:
            return float(np.sqrt(p.ravel() @ (slopes.theta**2 + slopes.u**2))), phi
        phi, slopes = _damped(grid, log_ratio, phi, move, offset, size)
    raise DivergedError(f"the optimal map was not found in {MOST_MOVES} moves; give more cells.")


def _log_ratio(p: Array, p0: Array) -> Array:
    """Return log(p / p0), outside the cells of nearly all mass no larger and no smaller than inside."""
    both, ratio = p + p0, np.log(p / p0)
    order = np.argsort(both)
    kept = ratio[order[np.cumsum(both[order]) > LEFT_OUT]]
    return np.clip(ratio, kept.min(), kept.max())


def _newton(grid: Grid, slopes: Slopes, residual: Array) -> tuple[Array, float]:
    """Return the move and the constant of the linearised equation, residual + constant + derivative . move = 0.

    The grid's equation is solvable up to a constant, which vanishes with the square of a cell.
    """
    from scipy.sparse.linalg import splu

    factors = splu(grid.linearised(slopes), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.1)
    solved = factors.solve(np.column_stack([-residual, np.ones_like(residual)]))
    offset = float(solved[grid.centre, 0] / solved[grid.centre, 1])
    return solved[:, 0] - offset * solved[:, 1], offset


def _damped(grid: Grid, log_ratio: Array, phi: Array, move: Array, offset: float, size: float) -> tuple[Array, Slopes]:
    share = 1.0
    for _ in range(MOST_HALVINGS):
        slopes = grid.slopes(phi + share * move)
        if slopes.convex:
            left = np.abs(grid.residual(log_ratio, slopes) + offset).max()
            if left <= max((1 - 0.3 * share) * size, ACCURACY):
                return phi + share * move, slopes
        share *= 0.5
    raise DivergedError("the optimal map was not found: no move makes its equation better. Give more cells.")

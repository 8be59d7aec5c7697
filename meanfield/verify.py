"""Which statement holds on a run: theorem by theorem, hypothesis, measured, bound, margin, verdict.

Each check is one function of the records that returns `Verdict`s named after the statement it judges; `CHECKS` lists
them. To add one, write it in `statements` (a statement of a paper), `certificates` (a check of the program) or
`balances` (an identity in time) and name it here. `coupling` holds the checks of the reference, `minimiser` what is
said of min Q.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from meanfield import balances, certificates, coupling, minimiser, statements
from meanfield.cloud import Cloud
from meanfield.simulate import load
from meanfield.verdicts import Verdict, Verification

CHECKS: tuple[Callable[[Any, list[Cloud]], list[Verdict]], ...] = (
    statements.theorem,
    statements.exit_time,
    statements.lemma_5_1,
    minimiser.energy,
    minimiser.theorem_4_5,
    statements.c1,
    certificates.gram_matrix,
    statements.c2,
    coupling.c0,
    coupling.c0_reference,
    certificates.c3,
    balances.i2,
    balances.i3,
    balances.i4,
    certificates.i4,
    coupling.i5,
    certificates.c4,
    certificates.injective,
    minimiser.c5,
    minimiser.relaxation,
    certificates.records_agree,
)


def verify(run: Any) -> Verification:
    """Return the verdict of every statement on a run (a `Run`, its directory, or a Dataset of records alone).

    Raises
    ------
    InputError
        If the records lack what every check needs.
    """
    run = load(run) if isinstance(run, str | Path) else run
    data = getattr(run, "data", run)
    clouds = list(getattr(run, "clouds", []))
    verdicts: list[Verdict] = []
    for check in CHECKS:
        verdicts += check(data, clouds)
    return Verification(tuple(verdicts))

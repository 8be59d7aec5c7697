"""Wide two-layer neural networks as particle clouds.

One step moves every cloud: z <- z + eta (-grad dF/dp(z) - lam z) + sqrt(2 lam eta) xi.  What differs is the
objective F (`Risk`, `Minibatch`, `Pairwise`, `Potential`, `Linearised`), the scheme of the `Flow` and what is recorded.
Start with `datasets`, `Risk`, `Flow`, `simulate`, `verify`.  Names are loaded when they are first used, so
that ``import meanfield`` costs next to nothing.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module that defines it.  A name that is absent here is looked for among _MODULES.
_HOME = {
    "Risk": "risk",
    "Minibatch": "minibatch",
    "Potential": "objectives",
    "Pairwise": "population",
    "Linearised": "linearised",
    "Unit": "units",
    "Activation": "units",
    "Flow": "flow",
    "Record": "planning",
    "Run": "results",
    "simulate": "simulate",
    "sweep": "sweep",
    "Cloud": "cloud",
    "gaussian_cloud": "cloud",
    "verify": "verify",
}
_MODULES = (
    "closures",
    "complexity",
    "config",
    "datasets",
    "distances",
    "ensemble",
    "entropy",
    "fokker_planck",
    "gibbs",
    "intervals",
    "lockstep",
    "noise",
    "ntk",
    "observables",
    "plots",
    "population",
    "teacher",
    "theory",
    "transport",
    "units",
    "widths",
)

__all__ = ["__version__", *sorted(_HOME), *_MODULES]

if TYPE_CHECKING:  # what editors and type checkers see; a test holds it equal to the tables above
    from . import (
        closures,
        complexity,
        config,
        datasets,
        distances,
        ensemble,
        entropy,
        fokker_planck,
        gibbs,
        intervals,
        lockstep,
        noise,
        ntk,
        observables,
        plots,
        population,
        teacher,
        theory,
        transport,
        units,
        widths,
    )
    from .cloud import Cloud, gaussian_cloud
    from .flow import Flow
    from .linearised import Linearised
    from .minibatch import Minibatch
    from .objectives import Potential
    from .planning import Record
    from .population import Pairwise
    from .results import Run
    from .risk import Risk
    from .simulate import simulate
    from .sweep import sweep
    from .units import Activation, Unit
    from .verify import verify


class _Package(types.ModuleType):
    """The package, in which a function wins over the submodule of the same name.

    Python sets ``meanfield.simulate`` to the submodule whenever somebody imports it; here that assignment
    stores the function instead.  ``from meanfield.simulate import ...`` works all the same.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, types.ModuleType) and _HOME.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))

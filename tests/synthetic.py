"""A Dataset that follows the schema of a run, made of formulas: for figures and reports, where nothing need run."""

import numpy as np
import xarray

TANH = [1.0, 1.0, 0.7698, 1.0, 2.0]
LAMBDA = 0.0143


def _bounds(times):
    """Central values of the brackets as a lazy run has them, growing with time."""
    w2 = 0.45 * (1 - np.exp(-6 * times)) ** 0.5 * (1 + 0.1 * times)
    kl = 0.3 * (1 - np.exp(-4 * times)) * (1 + 0.15 * times)
    return {
        "w2_lower": (w2 * np.linspace(0.99, 0.8, len(times)), "L1"),
        "w2_upper": (w2 * np.linspace(1.01, 1.05, len(times)), "U1"),
        "kl_lower": (kl * np.linspace(0.97, 0.75, len(times)), "Donsker-Varadhan"),
        "kl_upper": (kl * np.linspace(1.02, 1.1, len(times)), "account"),
        "energy_lower": (0.3 * np.exp(-3 * times), "dual"),
        "energy_upper": (0.4 * np.exp(-3 * times) + 0.01, "Q"),
    }


def run_dataset(replicates=4, K=60, B=9, n=40, D=11, lam=0.05, alpha=20.0, T=2.0, classes=True):
    """Return a Dataset with every variable of the schema that figures use."""
    rng = np.random.default_rng(5)
    time = np.concatenate(([0.0], np.geomspace(2e-3, T, K - 1)))
    index = np.unique(np.linspace(0, K - 1, B).astype(int))
    bound_time = time[index]
    R, B = replicates, len(index)

    def wobble(values, size):
        return values * (1 + size * rng.normal(size=(R, 1)) * np.minimum(1, 50 * values / values.max()))

    decay = 0.9 * np.exp(-4 * time) + 0.08 * np.exp(-0.8 * time) + 0.02
    label = np.where(np.arange(n) % 3 > 0, 1.0, -1.0) if classes else rng.uniform(-1, 1, n)
    learned = (1 - np.sqrt(decay))[:, None] * label + 0.4 * (1 - np.sqrt(decay))[:, None] * rng.normal(size=n)
    travelled = 2 * D * -np.expm1(-lam * time) + 0.1 * (1 - np.exp(-5 * time))
    data = {
        "loss": (("replicate", "time"), wobble(decay, 0.03)),
        "loss_unbiased": ("time", decay - 0.004 * (1 - decay)),
        "prediction": (
            ("replicate", "time", "sample"),
            learned + 0.02 * rng.normal(size=(R, 1, n)) * (time > 0)[:, None],
        ),
        "label": ("sample", label),
        "generator_rms": (("replicate", "time"), wobble(0.9 * (1 - np.exp(-4 * time)) / alpha, 0.02)),
        "travelled": (("replicate", "time"), wobble(travelled, 0.004)),
        "drift_rms": (("replicate", "time"), wobble(3 * np.exp(-4 * time) + 0.05, 0.01)),
        "ntk_eigenvalue_min": (
            ("replicate", "bound_time"),
            LAMBDA * (1 - 0.12 * (1 - np.exp(-3 * bound_time)) * (1 + 0.3 * rng.normal(size=(R, 1)))),
        ),
        "kl_estimate": ("bound_time", 0.24 * (1 - np.exp(-4 * bound_time))),
        "w2_plugin": ("bound_time", np.full(B, 2.46) + 0.01 * rng.normal(size=B)),
        "w2_plugin_null": ("bound_time", np.full(B, 2.44)),
    }
    for name, (value, source) in _bounds(bound_time).items():
        sources = np.array([source] * B, dtype=object)
        if name == "w2_upper" and B > 2:
            sources[-2:] = "U3"
        data |= {
            name: ("bound_time", value),
            f"{name}_se": ("bound_time", 0.012 * value if R > 1 else np.full(B, np.nan)),
            f"{name}_source": ("bound_time", sources),
        }
    attrs = dict(title="synthetic <run> & test", status="finished", n=n, d=D - 1, D=D, m=1000, replicates=R)
    attrs |= dict(alpha=alpha, lam=lam, activation="tanh", scheme="kernel", centred=1, suprema=TANH, bias=0)
    attrs |= dict(ntk_lambda=LAMBDA, loss_function="square", train="both", assumption_4_2_fails="")
    attrs |= dict(largest_input=1.0, largest_label=1.0)
    coords = {"time": time, "bound_time": bound_time, "replicate": np.arange(R)}
    return xarray.Dataset(data, coords, attrs)


def clouds(m=4000, D=11):
    """Return particles at the start and at the end, the end tilted as learning tilts them, and no weights."""
    rng = np.random.default_rng(1)
    start = rng.normal(size=(m, D))
    end = start.copy()
    end[:, 0] += 0.35 * np.tanh(start[:, -1])
    end[:, -1] += 0.35 * np.tanh(start[:, 0])
    return start, end, None


def held_out(n=60):
    """Return labels and predictions of data that were not trained on."""
    rng = np.random.default_rng(2)
    label = np.where(rng.uniform(size=n) > 0.5, 1.0, -1.0)
    return label, 0.7 * label + 0.5 * rng.normal(size=n)

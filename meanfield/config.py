"""What a run is asked to be: the TOML configuration, checked before anything is computed.

Each section is a frozen record whose fields carry their own rule, so that a key is added in one line: name,
type, default, the values that make sense and the words that say so.  `load` reads a file, `parse` a mapping,
`dumps` writes the resolved text, `digest` names everything that determines the numbers.  Activations, data
sources and observables are checked by the modules that hold their tables.  Read next: `simulate`.
"""

import dataclasses
import hashlib
import json
import math
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meanfield.errors import InputError, did_you_mean, shown
from meanfield.fields import Section, above, choice, entry, is_deep

# Of a configuration: bytes of the file, tables in tables, values of a swept key, dyadic times of bounds.
LARGEST, DEEPEST, MOST_VALUES, MOST_TIMES = 1 << 20, 20, 10_000, 1000
SCHEMES = ("auto", "kernel", "kernel2", "exponential", "euler", "euler_literal")


def _are_times(value: Any) -> bool:
    return isinstance(value, tuple) and all(time >= 0 for time in value)


@dataclass(frozen=True)
class DataConfig(Section):
    """``[data]``: where (x, y) come from; None leaves a value to the source (see `datasets`)."""

    section = "data"

    source: str = entry("digits")
    path: str | None = entry(None, "the path of a file", lambda value: value != "" and "\0" not in value)
    classes: tuple[int, ...] | None = entry(
        None, "two different labels, as [3, 8]", lambda value: len(value) == 2 == len(set(value))
    )
    n: int | None = above(1, None, or_equal=True)
    n_test: int | None = above(0, None, or_equal=True)
    d: int | None = above(1, None, or_equal=True)
    seed: int = entry(0, "an integer from 0 to 2^64 - 1", lambda value: 0 <= value < 2**64)
    teacher: str | None = entry(None)
    lags: int | None = above(1, None, or_equal=True)
    noise: float | None = above(0, None, or_equal=True)
    target: str | None = entry(None)
    columns: tuple[str, ...] | None = entry(
        None, "different column names", lambda value: 0 < len(value) == len(set(value))
    )
    scale: bool | None = entry(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path is not None:  # absolute, so that the resolved text means the same from every folder
            object.__setattr__(self, "path", os.path.abspath(os.path.expanduser(self.path)))


@dataclass(frozen=True)
class NetworkConfig(Section):
    """``[network]``: the unit, the loss and the scale alpha; `centred` is the limit law, else a network."""

    section = "network"

    activation: str = entry("tanh")
    bias: bool = entry(False)
    loss: str = choice("square", "logistic")
    alpha: float | str = entry(
        1.0, 'a number above 0, "1", "sqrt(m)" or "m^0.3"', lambda value: resolve_alpha(value, 2) > 0
    )
    centred: bool = entry(True)


@dataclass(frozen=True)
class CloudConfig(Section):
    """``[cloud]``: how many particles, how many independent replicates, and where they start.

    `on_disk` keeps them in files of the run directory, for clouds larger than memory; then there is no KL account and
    no bound, and the other numbers are those of a flow without account.
    """

    section = "cloud"

    m: int = entry(1024, "an integer from 1 to 2^32", lambda value: 1 <= value <= 2**32)
    seed: int = entry(0, "an integer from 0 to 2^64 - 1", lambda value: 0 <= value < 2**64)
    replicates: int = entry(4, "an integer from 1 to 2^24", lambda value: 1 <= value <= 2**24)
    dtype: str = choice("float64", "float32")
    initial: str = choice("gaussian")
    on_disk: bool = entry(False)


@dataclass(frozen=True)
class FlowConfig(Section):
    """``[flow]``: the dynamics; `time` is the time of equation (3.4), `batch` = 0 takes all samples."""

    section = "flow"

    lam: float = above(0, 0.01, or_equal=True)
    eta: float | str = entry(
        "auto",
        '"auto" or a number above 0',
        lambda value: value == "auto" if isinstance(value, str) else value > 0,
    )
    scheme: str = choice(*SCHEMES)
    time: float | None = above(0, None)
    steps: int | None = above(1, None, or_equal=True)
    batch: int = above(0, 0, or_equal=True)
    train: str = choice("both", "u", "theta")
    allow_unstable: bool = entry(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.time is not None and self.steps is not None:
            raise InputError(
                f"flow.time = {self.time:g} and flow.steps = {self.steps} both came: wanted one of them. "
                "Take one away (on the command line: --set flow.steps=)."
            )


@dataclass(frozen=True)
class RecordConfig(Section):
    """``[record]``: what is saved and when; no `observables` means the usual ones."""

    section = "record"

    observables: tuple[str, ...] = entry(())
    every: int = above(1, 1, or_equal=True)
    bounds_every: int | str | tuple[float, ...] = entry(
        "auto",
        f'"auto", a number of dyadic times from 1 to {MOST_TIMES}, or a list of times',
        lambda value: 1 <= value <= MOST_TIMES if isinstance(value, int) else value == "auto" or _are_times(value),
    )
    snapshots: tuple[float, ...] = entry((), "a list of times of at least 0", _are_times)


@dataclass(frozen=True)
class OutputConfig(Section):
    """``[output]``: how results are kept; nothing here changes a number."""

    section = "output"

    checkpoint_seconds: float = above(0, 30.0, or_equal=True)
    memory_mb: int = above(1, 512, or_equal=True)
    title: str = entry("", "a text of one line", str.isprintable)


SECTIONS: dict[str, type[Section]] = {
    record.section: record
    for record in (DataConfig, NetworkConfig, CloudConfig, FlowConfig, RecordConfig, OutputConfig)
}


@dataclass(frozen=True)
class RunConfig:
    """A whole configuration; `sweep` maps dotted keys (``"flow.lam"``) to lists of values."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    cloud: CloudConfig = dataclasses.field(default_factory=CloudConfig)
    flow: FlowConfig = dataclasses.field(default_factory=FlowConfig)
    record: RecordConfig = dataclasses.field(default_factory=RecordConfig)
    output: OutputConfig = dataclasses.field(default_factory=OutputConfig)
    sweep: Mapping[str, list[Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        n, batch, time = self.data.n, self.flow.batch, self.flow.time
        if n is not None and batch > n:
            raise InputError(
                f"flow.batch = {batch} came with data.n = {n}: wanted a batch of at most n. "
                f"Type --set flow.batch={n}, or 0 for no batches."
            )
        for name in ("snapshots", "bounds_every"):
            times = getattr(self.record, name)
            if time is not None and isinstance(times, tuple) and max(times, default=0.0) > time:
                raise InputError(
                    f"record.{name} asks for time {max(times):g} but flow.time is {time:g}: wanted times up "
                    "to the end. Leave out the later ones, or make flow.time longer."
                )
        resolve_alpha(self.network.alpha, self.cloud.m)


def load(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> RunConfig:
    """Read a configuration file and apply overrides such as ``"flow.lam=0.1"``.

    A relative ``data.path`` is taken from the folder of the file; one given as an override, from the present
    folder.  An override without a value, ``"flow.steps="``, takes the key away.

    Raises
    ------
    InputError
        If the file cannot be read, is not TOML, or holds an unknown key or an impossible value.
    """
    mapping = _read(Path(path))
    data = mapping.get("data")
    if isinstance(data, dict) and isinstance(data.get("path"), str) and data["path"]:
        data["path"] = os.path.join(Path(path).parent, os.path.expanduser(data["path"]))
    for text in overrides:
        _override(mapping, text)
    return parse(mapping)


def parse(mapping: Mapping[str, Any]) -> RunConfig:
    """Return the checked configuration for nested mappings, as TOML gives them.

    Raises
    ------
    InputError
        With one sentence: what came, what was wanted, what to type.
    """
    for name, table in mapping.items():
        if name not in (*SECTIONS, "sweep") or not isinstance(table, Mapping):
            raise InputError(_unknown_section(name))
    first: Mapping[str, Any] = {name: table for name, table in mapping.items() if name != "sweep"}
    axes = _flatten(mapping.get("sweep", {}))
    for key, values in axes.items():
        if not isinstance(values, list) or not 0 < len(values) <= MOST_VALUES:
            raise InputError(
                f"sweep.{key} = {shown(values)} came: wanted a list of up to {MOST_VALUES} values, as [0.1, 0.2]."
            )
        section, _, name = key.partition(".")
        if section not in SECTIONS:
            raise InputError(_unknown_section(section))
        if name not in first.get(section, {}):
            first = _with(first, key, values[0])
    config = dataclasses.replace(_parse_one(first), sweep=axes)
    for key, values in axes.items():
        for value in values:
            _parse_one(_with(first, key, value))
    return config


def at(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Return the checked configuration with other values at dotted keys, as ``{"flow.lam": 0.1}``, and no sweep."""
    mapping = to_dict(dataclasses.replace(config, sweep={}))
    for key, value in values.items():
        mapping = _with(mapping, key, value)
    return parse(mapping)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return nested plain mappings without the keys that are None; `parse` takes them back."""
    tree: dict[str, Any] = {}
    for name in SECTIONS:
        values = dataclasses.asdict(getattr(config, name))
        tree[name] = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in values.items()
            if value is not None
        }
    if config.sweep:
        tree["sweep"] = dict(config.sweep)
    return tree


def dumps(config: RunConfig) -> str:
    """Return the resolved configuration as TOML text: enough to repeat the run."""
    import tomli_w

    return tomli_w.dumps(to_dict(config))


def digest(config: RunConfig) -> str:
    """Return the SHA-256, in hexadecimal, of all that determines the numbers: everything but ``[output]``."""
    return hashlib.sha256(json.dumps(_numbers_of(config), sort_keys=True).encode()).hexdigest()


def differences(a: RunConfig, b: RunConfig) -> list[str]:
    """Return one ``"key: a -> b"`` for every key that determines numbers and differs."""
    flat_a, flat_b = _flatten(_numbers_of(a)), _flatten(_numbers_of(b))
    return [
        f"{key}: {flat_a.get(key, 'not set')} -> {flat_b.get(key, 'not set')}"
        for key in sorted(flat_a.keys() | flat_b.keys())
        if flat_a.get(key) != flat_b.get(key)
    ]


def resolve_alpha(alpha: float | str, m: int) -> float:
    """Return the number that `alpha` means for m particles: 20.0, "1", "sqrt(m)", "m" or "m^0.3".

    Raises
    ------
    InputError
        If it is none of these, or not a finite number above 0.
    """
    text = str(alpha).replace(" ", "")
    power = re.fullmatch(r"m(?:\^(.+))?", text)
    try:
        if text == "sqrt(m)":
            value = math.sqrt(m)
        elif power:
            value = float(m) ** float(power[1] or 1)
        else:
            value = float(text)
    except (ValueError, OverflowError):
        value = math.nan
    if not 1e-30 <= value <= 1e30:
        raise InputError(
            f'network.alpha = {shown(alpha)} is not possible: wanted a number from 1e-30 to 1e30, "1", "sqrt(m)" or '
            '"m^0.3". Type for example --set network.alpha=20.'
        )
    return value


def _read(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:  # which may be a pipe, and may have no end
            raw = file.read(LARGEST + 1)
        if len(raw) > LARGEST:
            raise InputError(f"the configuration file '{path}' has more than {LARGEST:,} bytes: wanted a smaller one.")
        tree = tomllib.loads(raw.decode("utf-8").replace("\r\n", "\n"))
        if is_deep(tree, DEEPEST):
            raise InputError(f"'{path}' has tables in tables in tables: wanted lines as lam = 0.01 below [flow].")
        return tree
    except FileNotFoundError:
        raise InputError(f"there is no configuration file '{path}': wanted the path of a TOML file.") from None
    except OSError as error:
        raise InputError(f"the configuration file '{path}' cannot be read: {error.strerror}.") from None
    except InputError:
        raise
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, integers of thousands of digits, nesting
        raise InputError(f"'{path}' is not TOML: {error}. Wanted lines as lam = 0.01 below [flow].") from None


def _override(mapping: dict[str, Any], text: str) -> None:
    path, equals, value = text.partition("=")
    section, _, name = path.strip().partition(".")
    if not equals or not section or not name:
        raise InputError(f"--set {text} came: wanted section.key=value, for example --set flow.lam=0.1.")
    table = mapping.setdefault(section, {})
    if not isinstance(table, dict):
        raise InputError(_unknown_section(section))
    if value.strip():
        table[name] = _toml_value(value.strip(), text)
    else:
        table.pop(name, None)


def _toml_value(value: str, text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {value}")
    except (ValueError, RecursionError):
        parsed = {}
    if parsed.keys() == {"value"}:
        return parsed["value"]
    if value[0] in "[{\"'" or "\n" in value:
        raise InputError(f"--set {text} came: the value is not TOML; wanted for example [0.1, 0.2] or tanh.")
    return value


def _parse_one(mapping: Mapping[str, Any]) -> RunConfig:
    for name, table in mapping.items():
        for key in table:
            if key not in SECTIONS[name].keys():
                raise InputError(_unknown_key(name, key))
    config = RunConfig(**{name: SECTIONS[name](**table) for name, table in mapping.items()})  # type: ignore
    if config.flow.time is None and config.flow.steps is None:
        raise InputError("how long to run did not come: wanted flow.time or flow.steps. Type --set flow.time=2.")
    return config


def _unknown_section(name: str) -> str:
    if name in (*SECTIONS, "sweep"):
        return f"'{name}' came as one value: wanted a section [{name}] with keys below it."
    hint = _owner(name) or did_you_mean(name, [*SECTIONS, "sweep"])
    return f"unknown section '{name}': wanted one of {', '.join(SECTIONS)}, sweep.{hint}"


def _unknown_key(section: str, key: str) -> str:
    names = SECTIONS[section].keys()
    hint = _owner(key) or did_you_mean(key, names)
    return f"unknown key '{section}.{key}': wanted one of {', '.join(names)}.{hint}"


def _owner(key: str) -> str:
    owners = [f"[{name}]" for name, record in SECTIONS.items() if key in record.keys()]
    return f" '{key}' belongs under {' or '.join(owners)}." if owners else ""


def _with(mapping: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    section, _, name = key.partition(".")
    return {**mapping, section: {**mapping.get(section, {}), name: value}}


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _numbers_of(config: RunConfig) -> dict[str, Any]:
    tree = to_dict(config)
    tree.pop("output")
    tree["network"]["alpha"] = resolve_alpha(config.network.alpha, config.cloud.m)
    return tree

"""What a run is asked to be: the TOML configuration, checked before anything is computed.

The sections are records of `sections`. `load` reads a file, `parse` a mapping, `dumps` writes the resolved text,
`digest` names everything that determines the numbers. Read next: `simulate`.
"""

import dataclasses
import hashlib
import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meanfield.errors import InputError, did_you_mean, shown
from meanfield.fields import is_deep
from meanfield.sections import SECTIONS as SECTIONS
from meanfield.sections import CloudConfig as CloudConfig
from meanfield.sections import DataConfig as DataConfig
from meanfield.sections import FlowConfig as FlowConfig
from meanfield.sections import NetworkConfig as NetworkConfig
from meanfield.sections import OutputConfig as OutputConfig
from meanfield.sections import RecordConfig as RecordConfig
from meanfield.sections import resolve_alpha as resolve_alpha

# Of a configuration: bytes of the file, tables in tables, values of a swept key.
LARGEST, DEEPEST, MOST_VALUES = 1 << 20, 20, 10_000
# Keys that a run fills in as it begins: a configuration that leaves them open is no other one.
RESOLVED = {"data.sha256": None, "cloud.backend": "auto"}


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
    for key, left_open in RESOLVED.items():
        if left_open in (flat_a.get(key), flat_b.get(key)):
            flat_a.pop(key, None)
            flat_b.pop(key, None)
    return [
        f"{key}: {flat_a.get(key, 'not set')} -> {flat_b.get(key, 'not set')}"
        for key in sorted(flat_a.keys() | flat_b.keys())
        if flat_a.get(key) != flat_b.get(key)
    ]


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

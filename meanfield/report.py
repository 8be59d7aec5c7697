"""One self-contained page for a run: key numbers, verdicts, figures with captions, configuration, versions.

    write(directory, data, config_text=..., metadata=..., verdicts=...)

writes figures/*.png and *.pdf and report.html, in which the figures are embedded, so that the file can be sent
alone.  Nothing is fetched and no script runs; whatever came from outside (title, configuration, messages) is
escaped.  A number beside a bound in brackets is the bound with its error taken to the safe side.
"""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meanfield import plots, readings, store
from meanfield.canvas import number
from meanfield.errors import InputError

# What the page cites; docs/references.bib holds the full entries under the same keys.
REFERENCES = {
    "CCGZ20": "Z. Chen, Y. Cao, Q. Gu, T. Zhang. A generalized neural tangent kernel analysis for two-layer "
    "neural networks. NeurIPS 33, 2020. Equation, lemma and theorem numbers are theirs.",
    "DonskerVaradhan75": "M. D. Donsker, S. R. S. Varadhan. Asymptotic evaluation of certain Markov process "
    "expectations for large time, I. Comm. Pure Appl. Math. 28, 1975.",
    "Gelbrich90": "M. Gelbrich. On a formula for the L2 Wasserstein metric between measures on Euclidean and "
    "Hilbert spaces. Math. Nachr. 147, 1990.",
    "KozachenkoLeonenko87": "L. F. Kozachenko, N. N. Leonenko. Sample estimate of the entropy of a random "
    "vector. Probl. Inf. Transm. 23, 1987.",
}

EQUATION = "dz = − (2α/n) Σᵢ rᵢ ∇ψ(z, xᵢ) dt − λ z dt + √(2λ) dW,   r = f − y,   f(x) = α E ψ(z, x)"
WORDS = {"holds": "hold"}
SIGNS = {"holds": "✓", "violated": "✗", "inconclusive": "?", "not applicable": "–", "error": "!"}

STYLE = """
:root { --ink: #1d2129; --soft: #5a6270; --page: #ffffff; --line: #dfe3e8; --shade: #f6f7f9; --link: #0b5c9c;
  --good: #17703a; --bad: #b3261e; --doubt: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e9ec; --soft: #a3abb8; --page: #15181d; --line: #343a44;
  --shade: #1e232a; --link: #7fbcf0; --good: #6fcf97; --bad: #ff8a80; --doubt: #f2c66d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.2rem 1.4rem 4rem; max-width: 72rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .8rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
p { margin: .6rem 0; max-width: 52rem; }
a { color: var(--link); text-decoration: none; }
.soft, figcaption, .note { color: var(--soft); }
.equation { font: italic 1.08rem/1.6 Georgia, "Times New Roman", serif; max-width: none; white-space: pre-wrap; }
.facts { display: flex; flex-wrap: wrap; gap: .7rem; margin: 1.4rem 0; }
.facts div { flex: 1 1 12rem; padding: .7rem .9rem; background: var(--shade); border-radius: 6px; }
.facts b { display: block; font-size: 1.2rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
.facts span { font-size: .8rem; color: var(--soft); }
.alarm { padding: .7rem 1rem; border-left: 4px solid var(--bad); background: var(--shade); max-width: none; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 600; }
th, td { padding: .45rem .7rem .45rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.n { text-align: right; white-space: nowrap; }
.v { white-space: nowrap; font-weight: 600; }
.holds { color: var(--good); } .violated, .error { color: var(--bad); } .inconclusive { color: var(--doubt); }
.not { color: var(--soft); font-weight: 400; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); gap: 1.8rem; }
figure { margin: 0; break-inside: avoid; }
figure img { width: 100%; height: auto; display: block; background: #fff; border-radius: 6px; padding: .4rem;
  border: 1px solid var(--line); }
figcaption { font-size: .83rem; line-height: 1.45; margin-top: .5rem; }
.columns { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 2rem; }
@media (max-width: 50rem) { .columns { grid-template-columns: minmax(0, 1fr); } }
pre { margin: 0; padding: .9rem 1rem; background: var(--shade); border-radius: 6px; overflow-x: auto;
  font: .8rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media print { :root { --ink: #000; --soft: #444; --page: #fff; --line: #ccc; --shade: #f4f4f4; --good: #17703a;
  --bad: #b3261e; --doubt: #8a5a00; --link: #000; } html { font-size: 11px; }
  body { font-size: 1rem; padding: 0; max-width: none; }
  pre { white-space: pre-wrap; } tr { break-inside: avoid; } h2 { break-after: avoid; }
  .figures { grid-template-columns: 1fr 1fr; gap: 1.4rem; } .columns { grid-template-columns: 3fr 2fr; } }
"""


def write(
    directory: str | Path,
    data: Any,
    *,
    config_text: str,
    metadata: Mapping[str, Any],
    verdicts: Sequence[Mapping[str, Any]],
    clouds: Any = None,
    test: Any = None,
) -> Path:
    """Write the figures and report.html into a run directory and return the path of the page.

    Parameters
    ----------
    directory : path
        Figures go to its folder `figures`.
    data : xarray.Dataset
        The records of the run.
    config_text : str
        The resolved configuration, printed as it is.
    metadata : mapping
        Status, message, versions, machine, timings (seconds), absent (variable -> reason).
    verdicts : sequence of mappings
        Keys statement, description, verdict, measured, bound, margin, time, note.
    clouds : (start, end, weights or None), optional
        Particles of shape (m, D) for the picture of the cloud.
    test : (labels, predictions), optional

    Raises
    ------
    InputError
        If the directory cannot be written to.
    """
    directory = Path(directory)
    try:
        pictures, left_out = plots.save(data, directory / "figures", clouds=clouds, test=test)
    except OSError as error:
        raise InputError(f"cannot write figures to {directory / 'figures'}: {error.strerror}") from error
    sections = [
        _head(data, metadata, verdicts),
        _verdict_table(verdicts),
        _figures(pictures, left_out),
        _setup(config_text, metadata),
        _references(pictures),
    ]
    title = _text(data.attrs.get("title", "A run of meanfield"))
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )
    target = directory / "report.html"
    store.write_bytes(target, page.encode())
    return target


def _text(value: Any) -> str:
    return html.escape(str(value))


def _number(value: Any) -> str:
    if value is None or value == "":
        return ""
    return number(value) if isinstance(value, int | float) else _text(value)


def _cite(text: str) -> str:
    """Escape a caption and turn its [keys] into links to the references."""
    linked = "|".join(REFERENCES)
    return re.sub(rf"\[({linked})\]", r'<a href="#\1">[\1]</a>', _text(text))


# --- head ----------------------------------------------------------------------------------------


def _head(data: Any, metadata: Mapping[str, Any], verdicts: Sequence[Mapping[str, Any]]) -> str:
    a = data.attrs
    title = _text(a.get("title", "A run of meanfield"))
    status = f"{metadata.get('status', a.get('status', 'unknown'))}"
    message = f": {metadata['message']}" if metadata.get("message") else ""
    out = [
        f"<header><h1>{title}</h1>",
        f'<p class="soft">{_text(_setting(a))}</p>',
        f'<p class="equation">{EQUATION}</p></header>',
    ]
    if status != "finished":
        out.append(f'<p class="alarm"><b>This run is not finished.</b> {_text(status + message)}</p>')
    wrong = [v["statement"] for v in verdicts if v["verdict"] in ("violated", "error")]
    if wrong:
        names = ", ".join(dict.fromkeys(wrong))
        out.append(
            f'<p class="alarm"><b>Violated:</b> {_text(names)}. Read those lines before using any number below.</p>'
        )
    out.append(f"<p>{_text(summary(data, verdicts))}</p>")
    facts = "".join(f"<div><b>{_text(v)}</b><span>{_text(k)}</span></div>" for k, v in _facts(data))
    return "\n".join([*out, f'<section class="facts">{facts}</section>' if facts else ""])


def _setting(a: Mapping[str, Any]) -> str:
    kind = "the limit law of a wide network" if int(a.get("centred", 1)) else "a network of finite width"
    pieces = [
        f"Noisy gradient descent with weight decay on {kind}",
        f"{a.get('activation', '?')} activation",
        f"n = {a.get('n', '?')} samples in dimension {a.get('d', '?')}",
        f"α = {_number(a.get('alpha'))}, λ = {_number(a.get('lam'))}",
        f"{_number(a.get('m'))} particles, {a.get('replicates', '?')} replicates",
    ]
    return " · ".join(pieces)


def summary(data: Any, verdicts: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the run in one paragraph of plain text; each bound with its safe side in brackets."""
    out = []
    c = readings.factor(data)
    if readings.recorded(data, "loss"):
        ends = data.loss.values.mean(0)
        when = number(data.time.values[-1])
        out.append(f"By time {when} of equation (3.4) the loss goes from {number(ends[0])} to {number(ends[-1])}.")
    brackets = []
    for name, symbol, unit in (("w2", "W₂(pₜ, p₀)", ""), ("kl", "KL(pₜ ‖ p₀)", " nats")):
        if all(readings.recorded(data, f"{name}_{side}") for side in ("lower", "upper")):
            low, high = (readings.last(data, f"{name}_{side}") for side in ("lower", "upper"))
            brackets.append(f"{symbol} is between {low} and {high}{unit}")
    if brackets:
        error = f"{c:.1f} standard errors over replicates" if c else ""
        out.append("Then " + " and ".join(brackets) + ("; in brackets, bounds moved " if c else "") + error)
        out[-1] += " to the safe side." if c else "."
    if readings.recorded(data, "travelled"):
        far = float(data.travelled.values[:, -1].mean()) ** 0.5
        out.append(f"A single particle has travelled {number(far)} (root mean square).")
    if readings.recorded(data, "ntk_eigenvalue_min"):
        lowest, Lambda = float(data.ntk_eigenvalue_min.values.mean(0).min()), readings.Lambda(data)
        out.append(f"The smallest NTK eigenvalue stays at or above {number(lowest)} (Λ = {number(Lambda)} at p₀).")
    if verdicts:
        counts = [(sum(v["verdict"] == kind for v in verdicts), kind) for kind in SIGNS]
        said = ", ".join(f"{count} {WORDS.get(kind, kind)}" for count, kind in counts if count)
        out.append(f"Statements checked: {said}.")
    return " ".join(out)


def _facts(data: Any) -> list[tuple[str, str]]:
    out = []
    if readings.recorded(data, "loss"):
        out.append(("loss at the end", number(data.loss.values[:, -1].mean())))
    for name, what in (("w2", "W₂ to the start"), ("kl", "KL to the start, nats")):
        if all(readings.recorded(data, f"{name}_{side}") for side in ("lower", "upper")):
            low, high = (readings.at_bounds(data, f"{name}_{side}")[-1] for side in ("lower", "upper"))
            out.append((what, f"{number(low)} – {number(high)}"))
    rounding = float(data.attrs.get("ntk_rounding", 0.0))
    if readings.recorded(data, "ntk_eigenvalue_min") and readings.Lambda(data) > rounding:
        share = float(data.ntk_eigenvalue_min.values.mean(0).min()) / readings.Lambda(data)
        out.append(("of Λ kept by the NTK", f"{int(100 * share)} %"))
    return out


# --- body ----------------------------------------------------------------------------------------


def _verdict_table(verdicts: Sequence[Mapping[str, Any]]) -> str:
    if not verdicts:
        return "<h2>Statements</h2><p>Nothing was checked.</p>"
    heads = ("Statement", "Verdict", "Measured", "Bound", "Margin", "Time")
    top = "".join(f"<th{' class=n' if k > 1 else ''}>{name}</th>" for k, name in enumerate(heads))
    rows = "\n".join(_row(v) for v in verdicts)
    text = (
        "Each line names the statement it judges. The margin is what is left between measured value and bound, "
        "errors taken to the safe side, at the time where it is smallest."
    )
    table = f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table></div>'
    return f"<h2>Statements</h2><p>{text}</p>{table}"


def _row(v: Mapping[str, Any]) -> str:
    verdict = str(v["verdict"])
    name = _text(verdict.split()[0])
    detail = _cite(str(v.get("description", "")))
    note = f'<br><span class="note">{_text(v["note"])}</span>' if v.get("note") else ""
    cells = "".join(f'<td class="n">{_number(v.get(k))}</td>' for k in ("measured", "bound", "margin", "time"))
    return (
        f"<tr><td><b>{_text(v['statement'])}</b><br>{detail}{note}</td>"
        f'<td class="v {name}">{SIGNS.get(verdict, "")} {_text(verdict)}</td>{cells}</tr>'
    )


def _figures(pictures: Mapping[str, bytes], left_out: Sequence[str]) -> str:
    items = []
    for name, picture in pictures.items():
        source = "data:image/png;base64," + base64.b64encode(picture).decode()
        caption = plots.FIGURES[name].caption
        items.append(
            f'<figure id="figure-{_text(name)}"><img alt="{_text(caption.splitlines()[0])}" src="{source}">'
            f"<figcaption>{_cite(caption)}</figcaption></figure>"
        )
    missing = "".join(f'<p class="note">{_text(sentence)}</p>' for sentence in left_out)
    return f'<h2>Figures</h2><div class="figures">{"".join(items)}</div>{missing}'


def _setup(config_text: str, metadata: Mapping[str, Any]) -> str:
    tables = [
        _notes("Data", metadata.get("data", {}).get("notes", [])),
        _pairs("Timings, seconds", metadata.get("timings", {})),
        _pairs("Versions", metadata.get("versions", {})),
        _pairs("Machine", metadata.get("machine", {})),
        _pairs("Not recorded, and why", metadata.get("absent", {})),
    ]
    left = f"<div><h2>Configuration</h2><pre>{_text(config_text.strip())}</pre></div>"
    return f'<div class="columns">{left}<div>{"".join(tables)}</div></div>'


def _notes(title: str, sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    return f"<h2>{title}</h2>" + "".join(f'<p class="note">{_text(sentence)}</p>' for sentence in sentences)


def _pairs(title: str, values: Mapping[str, Any]) -> str:
    if not values:
        return ""
    rows = "".join(
        f"<tr><td>{_text(str(key).replace('_', ' '))}</td><td>{_number(value)}</td></tr>"
        for key, value in values.items()
    )
    return f"<h2>{title}</h2><table><tbody>{rows}</tbody></table>"


def _references(pictures: Mapping[str, bytes]) -> str:
    text = " ".join(plots.FIGURES[name].caption for name in pictures)
    used = [key for key in REFERENCES if f"[{key}]" in text or key == "CCGZ20"]
    items = "".join(f'<p id="{key}"><b>[{key}]</b> {_text(REFERENCES[key])}</p>' for key in used)
    return f'<h2>References</h2><div class="soft">{items}</div>'

"""The page of a run: self-contained, escaped, complete, and honest about what is missing."""

import re
import warnings
from html.parser import HTMLParser
from pathlib import Path

import pytest
import tomli_w
from synthetic import clouds, held_out, run_dataset

from meanfield import cli, plots, report
from meanfield.errors import InputError

VERDICTS = [
    dict(
        statement="Theorem 4.4, hypothesis (4.1)",
        description="alpha is at least <the threshold>",
        verdict="not applicable",
        measured=20.0,
        bound=9.6e10,
        margin=-9.6e10,
        time=None,
        note="alpha & co",
    ),
    dict(statement="C2", description="", verdict="holds", measured=0.4, bound=0.8, margin=0.4, time=2.0),
]
METADATA = dict(
    status="finished",
    message="",
    versions={"numpy": "2.0"},
    timings={"steps": 31.25},
    machine={"threads": 2},
    absent={"energy_lower": "no dual"},
    data={"notes": ["x was divided by 57.1"]},
)
CONFIG = "[cloud]\nm = 1000  # <script>alert(1)</script>\n"
VOID = {"meta", "img", "br", "link", "hr"}


class Page(HTMLParser):
    """Collects tags and checks that they are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    material = dict(clouds=clouds(m=500), test=held_out())
    path = report.write(directory, run_dataset(), config_text=CONFIG, metadata=METADATA, verdicts=VERDICTS, **material)
    return directory, path, path.read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_alone(written):
    _, path, text = written
    page = Page(text)
    assert path.name == "report.html"
    assert not [tag for tag, _ in page.seen if tag in ("script", "link", "iframe")]
    sources = [attrs["src"] for tag, attrs in page.seen if tag == "img"]
    assert len(sources) == 7 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)


def test_what_came_from_outside_is_escaped(written):
    text = written[2]
    assert "<script" not in text and "&lt;script&gt;" in text
    assert "synthetic &lt;run&gt; &amp; test" in text and "&lt;the threshold&gt;" in text


def test_everything_is_on_the_page(written):
    text = written[2]
    for words in ("not applicable", "9.6×10¹⁰", "alpha &amp; co", "31.2", "no dual", "divided by 57.1", "[CCGZ20]"):
        assert words in text, words
    assert "3.3 standard errors" in text and "1 hold, 1 not applicable" in text


def test_figures_are_written_beside_it(written):
    names = {path.name for path in (written[0] / "figures").iterdir()}
    assert {"loss.png", "loss.pdf", "kl.png", "w2.pdf", "cloud.png"} <= names and len(names) == 14


def test_citations_lead_somewhere(written):
    text = written[2]
    for key in set(re.findall(r'href="#(\w+)"', text)):
        assert f'id="{key}"' in text
    entries = (Path(__file__).parents[1] / "docs" / "references.bib").read_text(encoding="utf-8")
    assert set(report.REFERENCES) <= set(re.findall(r"@\w+\{(\w+),", entries))


def test_a_poor_run_still_has_a_page(tmp_path):
    data = run_dataset(replicates=1)[["loss"]]
    data.attrs.pop("title")
    bad = [dict(statement="C4", description="brackets cross", verdict="violated", measured=1, bound=0.5)]
    status = dict(status="diverged", message="a number was not finite")
    path = report.write(tmp_path, data, config_text="", metadata=status, verdicts=bad)
    text = path.read_text(encoding="utf-8")
    Page(text)
    assert "not finished" in text and "a number was not finite" in text
    assert "Violated:" in text and text.count("is left out") == 6


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
    data = run_dataset().isel(time=[0], bound_time=[0])
    path = report.write(tmp_path, data, config_text="", metadata={"status": "interrupted"}, verdicts=[])
    Page(path.read_text(encoding="utf-8"))


def test_an_unwritable_directory_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        report.write(tmp_path / "file", run_dataset()[["loss"]], config_text="", metadata={}, verdicts=[])


# --- texts that are out to do harm


EVIL = ["<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "</pre></style><svg onload=alert(1)>",
        "&#60;script&#62;", "javascript:alert(1)", "$x", "$\\frac{", "\x00\x1b[31m", "𝔊\u202e"]  # fmt: skip


def hostile_everywhere(text: str) -> dict:
    """All that a report takes from outside, with a text in the place of every text."""
    verdict = dict(
        statement=text,
        description=text,
        verdict="holds " + text,
        measured=text,
        bound=text,
        margin=1.0,
        time=None,
        note=text,
    )
    metadata = {
        "status": text,
        "message": text,
        "data": {"notes": [text], "names": [text]},
        "errors": {text: {"first": text}},
    }
    metadata |= {name: {text: text} for name in ("versions", "timings", "machine", "absent")}
    return dict(config_text=text, metadata=metadata, verdicts=[verdict, {**verdict, "verdict": "violated"}])


@pytest.mark.parametrize("text", EVIL)
def test_a_report_escapes_every_text_that_came_from_outside(text, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(plots, "save", lambda *arguments, **more: ({}, [text]))
    data = run_dataset()
    data.attrs |= {
        name: text for name in ("title", "activation", "scheme", "status", "n", "d", "m", "replicates", "alpha", "lam")
    }
    pages = []
    for material in (hostile_everywhere(text), hostile_everywhere("harmless")):
        pages.append(report.write(tmp_path, data, **material).read_text(encoding="utf-8"))
        data = data.assign_attrs({name: "harmless" for name, value in data.attrs.items() if value == text})
        monkeypatch.setattr(plots, "save", lambda *arguments, **more: ({}, ["harmless"]))
    hostile, harmless = (Page(page).seen for page in pages)
    shape = [(tag, [key for key in attrs if key != "class"]) for tag, attrs in harmless]
    assert [(tag, [key for key in attrs if key != "class"]) for tag, attrs in hostile] == shape
    assert not [tag for tag, _ in hostile if tag in ("script", "svg", "iframe")]
    assert not [key for _, attrs in hostile for key in attrs if key.startswith("on")]


def test_titles_are_no_formulas(tmp_path) -> None:
    """Matplotlib reads what stands between dollars."""
    data = run_dataset()[["loss"]].assign_attrs(title="$\\frac{ costs $5")
    figure = plots.summary(data)
    figure.savefig(tmp_path / "a.png")


def test_hostile_names_of_columns_reach_the_report_as_text(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(plots, "save", lambda *arguments, **more: ({}, []))
    names = ["<script>alert(1)</script>", "\x1b[31m", "y"]
    rows = [[k * 0.1, (k % 3) * 0.2, (-1) ** k] for k in range(6)]
    (tmp_path / "data.csv").write_text("\n".join(",".join(map(str, row)) for row in [names, *rows]))
    tree = {
        "data": {"source": "csv", "path": str(tmp_path / "data.csv"), "target": "y"},
        "cloud": {"m": 8, "replicates": 1},
    }
    tree |= {
        "flow": {"steps": 1, "eta": 0.01, "scheme": "euler"},
        "record": {"observables": ["loss"], "bounds_every": 1},
    }
    tree["output"] = {"title": "</title><script>alert(2)</script>"}
    (tmp_path / "run.toml").write_text(tomli_w.dumps(tree))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert cli.main(["run", str(tmp_path / "run.toml"), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page and "&lt;script&gt;alert(2)" in page

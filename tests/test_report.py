"""The page of a run: self-contained, escaped, complete, and honest about what is missing."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic import clouds, held_out, run_dataset

from meanfield import report
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

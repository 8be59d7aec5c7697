"""The progress line: silent where nobody watches, rate limited, and never in the way of the run."""

import io

import pytest

from meanfield import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Gone(Terminal):
    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.clock, "monotonic", lambda: now[0])
    return now


def test_silent_unless_a_terminal_watches(capsys: pytest.CaptureFixture[str]) -> None:
    plain = io.StringIO()
    for line in (progress.meter(1.0, stream=plain), progress.meter(1.0, quiet=True, stream=Terminal()),
                 progress.meter(1.0)):  # fmt: skip
        line.update(0.5, 10, 0.1)
        line.close()
    assert plain.getvalue() == "" and capsys.readouterr().err == ""


def test_says_share_rate_loss_and_time_left(clock: list[float]) -> None:
    stream = Terminal()
    line = progress.meter(2.0, stream=stream)
    line.update(0.5, 100, 1.0)  # a run that goes on from a checkpoint
    clock[0] += 10.0
    line.update(1.0, 150, 0.25)
    assert stream.getvalue().endswith(" 50%  5 steps/s  loss 0.25  20 s left")


def test_writes_at_most_five_times_a_second_and_the_last_state(clock: list[float]) -> None:
    stream = Terminal()
    line = progress.meter(1.0, stream=stream)
    for k in range(1001):
        line.update(k / 1000, k, 1.0)
        clock[0] += 0.001
    line.close()
    line.close()
    text = stream.getvalue()
    assert 5 <= text.count("\r") <= 8
    assert text.count("\n") == 1 and "100%" in text.split("\r")[-1]


def test_survives_a_terminal_that_goes_away_and_odd_numbers(clock: list[float]) -> None:
    for stream, total in ((Gone(), 1.0), (Terminal(), float("inf")), (Terminal(), 0.0)):
        line = progress.meter(total, stream=stream)
        for time in (0.0, 0.0, 0.5, 2.0):
            line.update(time, 3, float("nan"))
            clock[0] += 1.0
        line.close()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (-1, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (float("inf"), "?")],
)
def test_durations(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text

"""The deadlines of a body that is being received, with a simulated clock."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from segment.web import pace
from segment.web.pace import CROWDED_RATE, Pace, TooSlow


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which the test advances."""
    now = [1000.0]
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def arrives(tested: Pace, rate: float, seconds: float, clock: list[float]) -> float:
    """Let bytes arrive at this rate; returns after how many seconds they were too slow, or `seconds`."""
    begin = clock[0]
    while clock[0] < begin + seconds:
        clock[0] += 0.25
        tested.add(int(rate / 4))
        try:
            tested.check()
        except TooSlow:
            return clock[0] - begin
    return seconds


@pytest.mark.parametrize(
    ("rate", "crowded", "seconds"),
    [
        (1 << 10, False, 5),
        (32 << 10, False, 60),
        (32 << 10, True, 2),
        (CROWDED_RATE, True, 200),
        (125_000, False, 200),
    ],
)
def test_how_long_a_body_may_take(rate: int, crowded: bool, seconds: float, clock: list[float]) -> None:
    """A photo of 12 MB takes 96 s on a link of 1 Mbit/s."""
    assert arrives(Pace(60, lambda: crowded), rate, 200, clock) == seconds


def test_a_body_without_more_time(clock: list[float]) -> None:
    assert arrives(Pace(60, lambda: False, late_rate=float("inf")), 10**6, 200, clock) == 60


def test_a_pause_does_not_count(clock: list[float]) -> None:
    tested = Pace(60, lambda: True)
    arrives(tested, 125_000, 10, clock)
    clock[0] += 100
    tested.pause(100)
    assert arrives(tested, 125_000, 100, clock) == 100

"""The order in which bodies take memory: many clients with large photos and links of different speeds, simulated.

The clock is simulated, too, so the results do not depend on the machine.
"""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from segment import arrival, memory
from segment.errors import Busy
from segment.memory import Budget, Reservation
from tests.compiled import compiled_once  # noqa: F401

MB = 1_000_000
MBIT = MB // 8
BEGIN = 1000.0
STEP = 0.25
BUFFER = 64 << 10
"""Bytes that the kernel holds of a client that waits."""
WAIT_SECONDS = 30
RUN_SECONDS = 0.25
"""Time in which the network processes a photo; one photo at a time."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which the test advances."""
    now = [BEGIN]
    fake = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(memory, "time", fake)
    monkeypatch.setattr(arrival, "time", fake)
    return now


@dataclass
class Client:
    """Sends a photo of `size` bytes over a link of `rate` bytes per second until it is segmented.

    `again`: it sends the next one then. `start`: when it begins, in seconds after the simulation.
    """

    size: int
    rate: float
    again: bool = False
    start: float = 0.0
    attempts: int = 0
    wasted: int = 0
    done: float | None = None
    held: Reservation | None = None
    arrived: float = 0.0  # bytes that have arrived, also those for which there is no memory yet
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def connect(self, budget: Budget) -> None:
        self.held = self.stack.enter_context(budget.reserve())
        self.held.announced = self.size
        self.arrived = 0.0
        self.attempts += 1

    def send(self, now: float) -> None:
        """Send for STEP seconds, as much as there is memory for. `now`: the time of the clock."""
        assert self.held
        waits = self.held.waits_since is not None
        more = BUFFER if waits else self.rate * STEP
        self.arrived = max(self.arrived, min(self.held.bytes + more, self.arrived + self.rate * STEP, self.size))
        try:
            while self.held.bytes < int(self.arrived):
                if not self.held.try_grow(min(int(self.arrived) - self.held.bytes, BUFFER)):
                    if now - (self.held.waits_since or now) > WAIT_SECONDS:
                        raise Busy("", self.held.retry_seconds())
                    break
        except Busy as error:
            self.close()
            self.start = now - BEGIN + error.retry_after

    def close(self) -> None:
        assert self.held
        self.wasted += self.held.bytes
        self.stack.close()
        self.held = None


def simulate(clients: list[Client], capacity: int, clock: list[float], seconds: float) -> float:
    """Let the clients send until all photos are segmented; returns how many seconds it took."""
    budget, free_at = Budget(capacity), 0.0
    received = list[Client]()
    while clock[0] < BEGIN + seconds and not all(client.done for client in clients if not client.again):
        now = clock[0]
        for client in clients:
            if client.held and client not in received:
                client.send(now)
                if client.held and client.held.bytes == client.size:
                    received.append(client)
            elif not client.held and not client.done and now - BEGIN >= client.start:
                client.connect(budget)
        if received and now >= free_at:
            client, free_at = received.pop(0), now + RUN_SECONDS
            client.stack.close()
            client.held, client.done = None, None if client.again else now - BEGIN
        clock[0] += STEP
    return clock[0] - BEGIN


def crowd(count: int, smallest: int, largest: int, seed: int = 1) -> list[Client]:
    """Clients with photos of these sizes, and links of 1 to 50 Mbit/s."""
    dice = random.Random(seed)
    return [
        Client(dice.randrange(smallest, largest), dice.choice([1, 2, 5, 10, 20, 50]) * MBIT, start=dice.uniform(0, 2))
        for _ in range(count)
    ]


SMALL, LARGE = 95 * MB // 10, 32 * MB
"""The memory for uploads of an instance of 256 or 512 MiB with a model of COCO's classes."""


def check(clients: list[Client], capacity: int, seconds: float, clock: list[float]) -> None:
    """Assert that each photo is segmented within `seconds`, and that little is sent in vain."""
    took = simulate(clients, capacity, clock, seconds)
    clients = [client for client in clients if not client.again]
    done = sorted(client.done for client in clients if client.done)
    sent, wasted = sum(client.size for client in clients), sum(client.wasted for client in clients)
    attempts = sum(client.attempts for client in clients) / len(clients)
    print(
        f"{len(done)} of {len(clients)} in {took:.0f} s, median {done[len(done) // 2]:.0f} s, {attempts:.1f} attempts, "
        f"{wasted / sent:.0%} sent in vain"
    )
    assert len(done) == len(clients)
    assert wasted < 0.25 * sent


@pytest.mark.parametrize(("capacity", "largest", "seconds"), [(SMALL, 9 * MB, 800), (LARGE, 12 * MB, 500)])
def test_every_photo_is_segmented(capacity: int, largest: int, seconds: float, clock: list[float]) -> None:
    """56 photos at once. If each took what is free, 12 would be in the smaller instance after 25 minutes."""
    check(crowd(56, 3 * MB, largest), capacity, seconds, clock)


@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize(("size", "rate"), [(9 * MB, 70_000), (3 * MB, 20 * MBIT)], ids=["slow", "busy"])
def test_others_that_always_send(size: int, rate: int, seed: int, clock: list[float]) -> None:
    """20 clients that are as slow as allowed, or that send more than can be processed, do not keep ten others out."""
    others = [Client(size, rate, again=True) for _ in range(20 if rate < MBIT else 8)]
    check(others + crowd(10, 3 * MB, 9 * MB, seed), SMALL, 600, clock)


def test_small_photos_are_not_held_up_by_large_ones(clock: list[float]) -> None:
    """28 large photos take six minutes. A small one takes a few seconds, 1.2 of which for sending it."""
    starts = [5.0 + 5 * number for number in range(10)]
    small = [Client(300_000, 2 * MBIT, start=start) for start in starts]
    simulate(crowd(28, 3 * MB, 9 * MB) + small, SMALL, clock, 400)
    took = sorted((client.done or 400) - start for client, start in zip(small, starts, strict=True))
    assert took[len(took) // 2] < 5
    assert took[-1] < 20


def test_an_announcement_alone_keeps_nobody_out(clock: list[float]) -> None:
    budget = Budget(SMALL)
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(budget.reserve()).announced = 9 * MB
        with budget.reserve() as other:
            other.announced = 9 * MB
            assert other.try_grow(9 * MB)

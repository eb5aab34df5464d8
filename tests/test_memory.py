"""The memory budget: requests run if they fit, wait if they do not fit now, and are refused if they never can."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segment.errors import Busy, Cancelled, TooLarge
from segment.memory import MARGIN_BYTES, MARGIN_SHARE, Budget, capacity

MIB = 1 << 20


@contextlib.contextmanager
def held(budget: Budget, own: int, network: int = 0) -> Iterator[Callable[[], None]]:
    """Hold a reservation in another thread until the yielded function is called."""
    inside, done = threading.Event(), threading.Event()

    def run() -> None:
        with budget.reserve(own, network):
            inside.set()
            done.wait(60)

    thread = threading.Thread(target=run)
    thread.start()
    assert inside.wait(60)

    def end() -> None:
        done.set()
        thread.join()

    try:
        yield end
    finally:
        end()


def waiting(budget: Budget, own: int, order: list[str], name: str) -> threading.Thread:
    """Start a thread that waits for a reservation, then appends `name` to `order`."""

    def run() -> None:
        with budget.reserve(own, 0):
            order.append(name)
            time.sleep(0.005)

    before = len(budget._waiting)
    thread = threading.Thread(target=run)
    thread.start()
    while len(budget._waiting) == before:
        time.sleep(0.001)
    return thread


def test_capacity_keeps_a_margin() -> None:
    assert capacity(512 * MIB, 200 * MIB) == (512 - 200) * MIB - MARGIN_BYTES - int(MARGIN_SHARE * 512 * MIB)


def test_capacity_is_never_negative() -> None:
    assert capacity(100 * MIB, 200 * MIB) == 0


def test_a_request_larger_than_the_capacity_is_refused_with_both_sizes() -> None:
    budget = Budget(100 * MIB)
    with (
        pytest.raises(TooLarge, match="needs 101 MiB of memory; this instance has 100 MiB"),
        budget.reserve(61 * MIB, 40 * MIB),
    ):
        pass
    assert budget.fits(60 * MIB, 40 * MIB)


def test_requests_that_fit_run_at_the_same_time() -> None:
    budget = Budget(100, queue=0)
    with held(budget, 50), budget.reserve(50, 0):
        pass


def test_runs_of_the_network_share_its_memory() -> None:
    """Only one runs at a time, so only the memory of the largest is reserved."""
    budget = Budget(100, queue=0)
    with held(budget, 20, 60), budget.reserve(20, 60):
        pass
    with held(budget, 20, 50), pytest.raises(Busy), budget.reserve(20, 61):
        pass


def test_runs_of_several_streams_add_up() -> None:
    """Any stream may execute any run, so each counts as the largest; a third run waits for one of two streams."""
    budget = Budget(100, queue=0, streams=2)
    with held(budget, 10, 40), budget.reserve(10, 40), budget.reserve(0, 40):
        pass
    with held(budget, 10, 20), pytest.raises(Busy), budget.reserve(10, 41):
        pass
    with budget.reserve(10, 90):  # alone, a request may be as large as with one stream
        pass


def test_buffers_of_each_stream_are_reclaimed() -> None:
    reclaimed = list[bool]()
    budget = Budget(100, reclaim=lambda: reclaimed.append(True), streams=2)
    for _ in range(2):  # another stream may execute the second run
        with budget.reserve(10, 30):
            pass
    with budget.reserve(40, 0):
        pass
    assert not reclaimed
    with budget.reserve(41, 0):
        pass
    assert len(reclaimed) == 1
    with budget.reserve(40, 60):  # only one stream keeps buffers after this
        pass
    with budget.reserve(40, 0):
        pass
    assert len(reclaimed) == 1


def test_what_the_network_keeps_between_runs_is_reserved() -> None:
    budget = Budget(100, queue=0, fixed=30)
    assert budget.fits(70, 0)
    assert not budget.fits(71, 20)
    with held(budget, 40), budget.reserve(30, 0):
        pass
    with held(budget, 40), pytest.raises(Busy), budget.reserve(31, 0):
        pass


def test_a_request_that_does_not_fit_waits() -> None:
    budget, order = Budget(100), list[str]()
    with held(budget, 60) as end:
        thread = waiting(budget, 60, order, "second")
        time.sleep(0.05)
        assert not order
        end()
        thread.join()
    assert order == ["second"]


def test_first_come_first_served() -> None:
    """A small request does not overtake a waiting large one, which could otherwise wait for ever."""
    budget, order = Budget(100), list[str]()
    with held(budget, 60) as end:
        threads = [waiting(budget, own, order, name) for name, own in (("large", 90), ("small", 10), ("last", 95))]
        time.sleep(0.05)
        assert not order
        end()
        for thread in threads:
            thread.join()
    assert order == ["large", "small", "last"]


def test_a_full_queue_returns_retry_after() -> None:
    budget, order = Budget(100, queue=1), list[str]()
    with held(budget, 60) as end:
        thread = waiting(budget, 60, order, "first in the queue")
        for own in (60, 10):  # 10 would fit, but must not overtake the waiting request
            with (
                pytest.raises(Busy, match=r"Too many requests wait for memory \(1\)") as refusal,
                budget.reserve(own, 0),
            ):
                pass
            assert refusal.value.retry_after >= 1
        end()
        thread.join()
    assert order == ["first in the queue"]


def test_waiting_is_limited() -> None:
    budget = Budget(100, wait_seconds=0.1)
    with held(budget, 60):
        start = time.monotonic()
        with pytest.raises(Busy, match=r"after 0\.1 s"), budget.reserve(60, 0):
            pass
        assert 0.1 <= time.monotonic() - start < 2
    with budget.reserve(100, 0):  # the request that timed out has left the queue
        pass


def test_a_failure_releases_the_reservation() -> None:
    budget = Budget(100, queue=0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), budget.reserve(60, 40):
            raise ZeroDivisionError
    with budget.reserve(60, 40):
        pass


def test_kept_memory_is_reclaimed_when_the_room_is_needed() -> None:
    reclaimed = list[bool]()
    budget = Budget(100, reclaim=lambda: reclaimed.append(True))
    with budget.reserve(10, 60):
        pass
    with budget.reserve(40, 0):  # fits beside the 60 that the network keeps
        pass
    assert not reclaimed
    with budget.reserve(50, 0):
        pass
    assert len(reclaimed) == 1
    with budget.reserve(50, 0):  # the network keeps no memory any more
        pass
    assert len(reclaimed) == 1


def test_kept_memory_is_reclaimed_when_a_reservation_grows_into_it() -> None:
    reclaimed = list[bool]()
    budget = Budget(100, reclaim=lambda: reclaimed.append(True))
    with budget.reserve(10, 60):
        pass
    with budget.reserve(30) as growing:
        growing.grow(10)
        assert not reclaimed, "40 bytes and buffers of 60 fit"
        growing.grow(10)
        assert len(reclaimed) == 1
        growing.grow(10)
        assert len(reclaimed) == 1


def test_waiting_is_limited_while_memory_is_reclaimed() -> None:
    """Reclaiming waits for a run of the network to end; requests that wait for memory still time out meanwhile."""
    started, go_on = threading.Event(), threading.Event()

    def reclaim() -> None:
        started.set()
        go_on.wait(60)

    budget = Budget(100, wait_seconds=0.2, reclaim=reclaim)
    with budget.reserve(10, 60):
        pass
    thread = threading.Thread(target=lambda: contextlib.ExitStack().enter_context(budget.reserve(50, 0)))
    thread.start()
    assert started.wait(60)
    start = time.monotonic()
    with pytest.raises(Busy), budget.reserve(1, 0):  # the memory is not free until reclaiming has ended
        pass
    assert time.monotonic() - start < 2
    assert thread.is_alive(), "it waited until reclaiming had ended"
    go_on.set()
    thread.join(60)
    with budget.reserve(1, 0):
        pass


def test_a_reservation_grows_with_the_received_bytes() -> None:
    budget = Budget(100, wait_seconds=0.1)
    with budget.reserve() as first, budget.reserve() as second:
        first.grow(60)
        second.grow(40)
        with pytest.raises(TooLarge, match="this instance has"):
            first.grow(41)
        assert first.bytes == 60
    with budget.reserve(100):
        pass


def test_growing_waits_for_free_memory() -> None:
    budget = Budget(100)
    with budget.reserve() as growing:
        growing.grow(50)
        with held(budget, 50) as end:
            assert not growing.try_grow(10)
            threading.Timer(0.05, end).start()
            growing.grow(10)
        assert growing.bytes == 60


def test_freed_memory_is_for_the_first_in_the_order_even_if_it_has_none_yet() -> None:
    budget = Budget(100 * MIB)
    with budget.reserve() as slow, budget.reserve(40 * MIB), budget.reserve() as photo, contextlib.ExitStack() as stack:
        ending = stack.enter_context(budget.reserve())
        slow.grow(50 * MIB)
        ending.grow(10 * MIB)
        slow.since -= 100  # 0.5 MiB/s
        slow.announced, photo.announced = 100 * MIB, 4 * MIB
        assert not photo.try_grow(2 * MIB)
        stack.close()
        assert not slow.try_grow(10 * MIB)
        assert photo.try_grow(2 * MIB)


def test_a_deadlock_between_growing_reservations_is_resolved() -> None:
    """Two partly received photos fill the budget: the one that would be complete last is refused."""
    budget = Budget(100 * MIB, wait_seconds=20)
    with contextlib.ExitStack() as last, budget.reserve() as first:
        second = last.enter_context(budget.reserve())
        with budget.reserve() as newcomer:
            first.grow(50 * MIB)
            second.grow(50 * MIB)
            first.announced, second.announced, newcomer.announced = 60 * MIB, 100 * MIB, 40 * MIB
            assert not newcomer.try_grow(MIB)
            assert not first.try_grow(MIB)
            with pytest.raises(Busy, match="rest of this photo") as refused:
                second.try_grow(MIB)
            assert refused.value.retry_after == 5 + 3
            assert budget.longest_wait() > 0
            last.close()
            first.grow(10 * MIB)
            newcomer.grow(40 * MIB)
            assert budget.longest_wait() == 0


def test_how_long_a_request_has_waited() -> None:
    budget = Budget(100)
    assert budget.longest_wait() == 0

    def reserve() -> None:
        with budget.reserve(60):
            pass

    waiting = threading.Thread(target=reserve)
    with held(budget, 60):
        waiting.start()
        until = time.monotonic() + 10
        while budget.longest_wait() < 0.05 and time.monotonic() < until:
            time.sleep(0.01)
        assert 0.05 <= budget.longest_wait() < 10
    waiting.join(10)
    assert budget.longest_wait() == 0


def test_a_disconnected_client_does_not_wait() -> None:
    budget = Budget(100, wait_seconds=60)
    start = time.monotonic()
    with held(budget, 60), pytest.raises(Cancelled), budget.reserve(60, 0, cancelled=lambda: True):
        pass
    assert time.monotonic() - start < 5
    with budget.reserve(100, 0):
        pass


@given(
    st.lists(st.tuples(st.integers(0, 120), st.integers(0, 60)), min_size=1, max_size=12),
    st.integers(1, 3),
    st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_reservations_never_exceed_the_capacity(wishes: list[tuple[int, int]], streams: int, seed: int) -> None:
    """For any concurrent requests, and whichever stream executes a run, the memory held never exceeds the capacity.

    A stream keeps the buffers of its largest run until they are reclaimed, when no run takes place.
    """
    idle, buffers, own, highest, ended = list(range(streams)), [0] * streams, list[int](), [0], list[str]()
    changed, dice = threading.Condition(), random.Random(seed)

    def reclaim() -> None:
        with changed:
            assert changed.wait_for(lambda: len(idle) == streams, 20)
            buffers[:] = [0] * streams

    budget = Budget(100, queue=len(wishes), wait_seconds=20, reclaim=reclaim, streams=streams)

    def run(network: int, pause: float) -> None:
        with changed:
            assert changed.wait_for(lambda: idle, 20)
            stream = idle.pop(dice.randrange(len(idle)))
            buffers[stream] = max(buffers[stream], network)
            highest[0] = max(highest[0], sum(own) + sum(buffers))
        time.sleep(pause)
        with changed:
            idle.append(stream)
            changed.notify_all()

    def request(wish: tuple[int, int], pause: float) -> None:
        try:
            with budget.reserve(*wish):
                with changed:
                    own.append(wish[0])
                    highest[0] = max(highest[0], sum(own) + sum(buffers))
                run(wish[1], pause)
                with changed:
                    own.remove(wish[0])
                ended.append("ran")
        except TooLarge:
            assert sum(wish) > 100
            ended.append("refused")

    threads = [threading.Thread(target=request, args=(wish, dice.random() / 500)) for wish in wishes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(ended) == len(wishes)
    assert highest[0] <= 100

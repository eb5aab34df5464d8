"""Tests of `segment backfill --redrive`, which delivers dead letters again."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from PIL import Image

from devtools.events import push_message
from devtools.gcs import Cloud, Fault
from devtools.pubsub import Server
from segment.__main__ import main
from segment.bucket import redrive
from tests.compiled import compiled_once  # noqa: F401
from training.shapes import scene

SETTINGS = {
    "SEGMENT_RENDER_FACTOR": "6",
    "SEGMENT_STORAGE_SECONDS": "1",
    "SEGMENT_INPUT_BUCKET": "photos",
    "SEGMENT_OUTPUT_BUCKET": "results",
}


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(redrive, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(redrive, "PAUSES", (0.01,))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as server:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.host)
        yield server


def photo(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(scene(seed, (96, 64))[0]).save(buffer, "PNG")
    return buffer.getvalue()


def put(cloud: Cloud, server: Server, *names: str) -> None:
    """Put photos into the bucket and their events into the dead-letter subscription."""
    for seed, name in enumerate(names):
        server.publish(push_message(cloud.put("photos", name, photo(seed)))["message"])


def run(*arguments: str) -> int:
    return main(["backfill", "--redrive", "projects/p/subscriptions/dead", *arguments])


def test_dead_letters_are_delivered_and_removed(cloud: Cloud, server: Server) -> None:
    put(cloud, server, *(f"{n}.png" for n in range(20)))
    assert run() == 0
    assert not server.messages
    assert len(cloud.objects("results")) == 40
    assert set(server.deadlines) == {redrive.LEASE_SECONDS}
    writes = len(cloud.writes)
    put(cloud, server)
    assert run() == 0
    assert len(cloud.writes) == writes


def test_acknowledged_events_are_removed(cloud: Cloud, server: Server) -> None:
    """A photo that cannot be segmented, a deleted one, one with results, and a message that is no event."""
    server.publish(push_message(cloud.put("photos", "text.jpg", b"no photo"))["message"])
    server.publish(push_message(cloud.put("photos", "gone.jpg", photo(1)))["message"])
    cloud.delete("photos", "gone.jpg")
    server.publish({"data": "bm8gSlNPTg==", "attributes": {"eventType": "OBJECT_FINALIZE"}})
    server.publish({"attributes": {}})
    put(cloud, server, "twice.png")
    server.publish(server.messages[-1])
    assert run() == 0
    assert not server.messages
    assert sorted(name.partition("/")[0] for name in cloud.objects("results")) == ["text.jpg", "twice.png", "twice.png"]


def test_events_that_fail_again_are_kept(cloud: Cloud, server: Server) -> None:
    put(cloud, server, "a.png", "b.png")
    cloud.faults.add(Fault(503, path="photos/o/a.png"))
    assert run() == 1
    (kept,) = server.messages
    assert kept["attributes"]["objectId"] == "a.png"
    cloud.faults.clear()
    server.expire()
    assert run() == 0
    assert not server.messages
    assert len(cloud.objects("results")) == 4


def test_failed_call_is_retried(cloud: Cloud, server: Server) -> None:
    put(cloud, server, "a.png")
    server.failures += [503]
    assert run() == 0
    assert not server.messages


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--redrive", "dead"], "The subscription is 'dead'; it must be projects/PROJECT/subscriptions/NAME"),
        (["--redrive", "projects/p/subscriptions/x"], "404 Resource not found"),
        (["--redrive", "projects/p/subscriptions/dead", "gs://photos"], "omit the source"),
        ([], "There is no source"),
    ],
)
def test_refused_call_is_explained(
    cloud: Cloud, server: Server, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["backfill", *arguments]) == 1
    assert said in capsys.readouterr().err

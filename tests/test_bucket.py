"""The handler of bucket events, in the real framework process with the real storage client, under storage faults."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import requests
from cloudevents.http import CloudEvent
from PIL import Image
from werkzeug.exceptions import HTTPException

from devtools.events import eventarc, post_event, pubsub, push_message
from devtools.gcs import Cloud, Fault, Object
from devtools.server import CACHE, FRAMEWORK, ROOT, Server, free_port, serve, start
from segment.bucket import events
from segment.bucket.events import check, handle, parse, why_ignored
from segment.bucket.results import ERROR_NAME
from segment.bucket.store import Object as Item
from segment.bucket.store import google
from segment.errors import Busy, ModelError, SettingsError
from segment.formats import FORMATS, File
from segment.options import Options
from segment.service import Service
from segment.settings import Settings
from tests import worst
from training.shapes import scene

SETTINGS = {"SEGMENT_OUTPUT_BUCKET": "results", "SEGMENT_RENDER_FACTOR": "6", "SEGMENT_STORAGE_SECONDS": "6"}
MIB = 1 << 20


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    with Cloud(seed=11) as cloud:
        cloud.create_bucket("photos")
        cloud.create_bucket("results")
        yield cloud


@pytest.fixture(scope="module")
def handler(cloud: Cloud) -> Iterator[Server]:
    limits = {"SEGMENT_MAX_UPLOAD": "1Mi", "SEGMENT_MEMORY": "512Mi"}
    with serve("segment_object", STORAGE_EMULATOR_HOST=cloud.url, **limits, **SETTINGS) as server:
        yield server


@pytest.fixture(scope="module")
def impatient(cloud: Cloud) -> Iterator[Server]:
    """A handler that retries the calls of Cloud Storage for a short time only."""
    settings = SETTINGS | {"STORAGE_EMULATOR_HOST": cloud.url, "SEGMENT_STORAGE_SECONDS": "1"}
    with serve("segment_object", **settings) as server:
        yield server


@pytest.fixture(scope="module")
def hurried(cloud: Cloud) -> Iterator[Server]:
    """A handler that may retry each call for 120 s, but has 2 s for all calls of a delivery."""
    limits = {"SEGMENT_STORAGE_SECONDS": "120", "SEGMENT_DELIVERY_SECONDS": "2"}
    with serve("segment_object", STORAGE_EMULATOR_HOST=cloud.url, **SETTINGS | limits) as server:
        assert requests.get(server.url + "/ready", timeout=60).ok
        eventarc(server.url, cloud.put("photos", "first.jpg", photo(1)))  # imports the client; may be too late
        yield server


@pytest.fixture(autouse=True)
def no_obstacles(cloud: Cloud) -> Iterator[None]:
    yield
    cloud.faults.clear()
    cloud.create_only.clear()


@cache
def photo(seed: int, width: int = 96, height: int = 64, format: str = "JPEG") -> bytes:
    """A scene of shapes as an image file."""
    buffer = io.BytesIO()
    Image.fromarray(scene(seed, (width, height))[0]).save(buffer, format)
    return buffer.getvalue()


@cache
def service() -> Service:
    """A service in this process, with the handler's settings."""
    return Service(Settings.from_environment(SETTINGS | {"SEGMENT_THREADS": "1", "SEGMENT_CACHE": str(CACHE)}))


@cache
def expected(content: bytes) -> dict[str, File]:
    """The expected results of a photo, by file name."""
    settings = service().settings
    result = service().segment(content, Options.defaults(settings), ("png", "json"))
    return {file.name: file for file in result.files}


def folder(item: Object) -> str:
    return f"{item.name}/{item.generation}/"


def results(cloud: Cloud, item: Object) -> dict[str, Object]:
    """An object's results by file name."""
    return {name.removeprefix(folder(item)): found for name, found in cloud.objects("results", folder(item)).items()}


def assert_complete(cloud: Cloud, item: Object) -> None:
    """The object has exactly the expected results, each written once."""
    found = results(cloud, item)
    assert {name: result.content for name, result in found.items()} == {
        name: file.body for name, file in expected(item.content).items()
    }
    writes = Counter(write.name for write in cloud.writes if write.name.startswith(folder(item)))
    assert set(writes.values()) == {1}, "each result is written once"


def last_entry(handler: Server) -> dict[str, Any]:
    """The last line of the log."""
    entry: dict[str, Any] = json.loads(handler.log().splitlines()[-1])
    return entry


# Results


@pytest.mark.parametrize("deliver", [eventarc, pubsub])
def test_new_object_becomes_a_picture_and_data(cloud: Cloud, handler: Server, deliver: Any) -> None:
    item = cloud.put("photos", f"holiday/ünï {deliver.__name__}.jpg", photo(1, 320, 240), "image/jpeg")
    assert deliver(handler.url, item).ok
    assert_complete(cloud, item)
    found = results(cloud, item)
    assert [found[name].content_type for name in ("overlay.png", "detections.json")] == [
        "image/png",
        "application/json",
    ]
    for result in found.values():
        assert result.metadata["segment-source"] == f"gs://photos/{item.name}"
        assert result.metadata["segment-generation"] == str(item.generation)
        assert result.metadata["segment-model"] == "shapes"
        assert json.loads(result.metadata["segment-settings"])["render_factor"] == 6
    document = json.loads(found["detections.json"].content)
    assert document["image"]["width"] == 320
    entry = last_entry(handler)
    assert entry["severity"] == "INFO"
    assert entry["object"] == f"gs://photos/{item.name}"
    assert entry["generation"] == str(item.generation)
    assert entry["instances"] == len(document["annotations"])
    assert entry["milliseconds"] > 0
    assert entry["peak_memory"] > 10 * MIB


def test_log_carries_the_trace(cloud: Cloud, handler: Server) -> None:
    item = cloud.put("photos", "traced.jpg", photo(2))
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    assert requests.post(handler.url, json=push_message(item), headers=headers, timeout=60).ok
    assert last_entry(handler)["logging.googleapis.com/trace"].endswith(trace)


def test_result_equals_the_http_response(cloud: Cloud, handler: Server) -> None:
    jpeg = cloud.put("photos", "same.jpg", photo(3, 400, 300))
    png = cloud.put("photos", "same.png", photo(3, 400, 300, "PNG"))
    assert eventarc(handler.url, jpeg).ok
    assert eventarc(handler.url, png).ok
    with serve("segment_http", **SETTINGS) as server:

        def answer(item: Object, format: str) -> bytes:
            return requests.post(f"{server.url}/segment?format={format}", item.content, timeout=60).content

        assert answer(png, "png") == results(cloud, png)["overlay.png"].content
        assert answer(png, "json") == results(cloud, png)["detections.json"].content
        assert answer(jpeg, "png") == results(cloud, jpeg)["overlay.png"].content


def test_every_format_has_its_file_name() -> None:
    result = service().segment(photo(1), Options.defaults(service().settings), tuple(FORMATS))
    assert [file.name for file in result.files] == [info.file_name for info in FORMATS.values()]


# Exactly once


def test_second_delivery_reads_and_writes_nothing(cloud: Cloud, handler: Server) -> None:
    item = cloud.put("photos", "twice.jpg", photo(4))
    assert eventarc(handler.url, item).ok
    before = len(cloud.requests)
    assert pubsub(handler.url, item).ok
    assert [method for method, _ in cloud.requests[before:]] == ["GET"], "only a listing of the existing results"
    assert_complete(cloud, item)


@pytest.mark.parametrize("lost", ["overlay.png", "detections.json"])
def test_incomplete_results_are_completed(cloud: Cloud, handler: Server, lost: str) -> None:
    item = cloud.put("photos", f"without {lost}.jpg", photo(5))
    assert eventarc(handler.url, item).ok
    before = results(cloud, item)
    cloud.delete("results", folder(item) + lost)
    assert eventarc(handler.url, item).ok
    after = results(cloud, item)
    assert after[lost].content == before[lost].content
    assert {name for name in after if after[name].generation == before[name].generation} == set(before) - {lost}


def test_four_deliveries_at_once_do_the_work_once(cloud: Cloud, handler: Server) -> None:
    item = cloud.put("photos", "four.jpg", photo(12, 2000, 1500))
    before = len(cloud.requests)
    with ThreadPoolExecutor(4) as four:
        assert all(answer.ok for answer in four.map(eventarc, [handler.url] * 4, [item] * 4))
    assert sum("alt=media" in target for _, target in cloud.requests[before:]) == 1
    assert_complete(cloud, item)


def test_overwritten_object_is_ignored(cloud: Cloud, handler: Server) -> None:
    old = cloud.put("photos", "overwritten.jpg", photo(6))
    new = cloud.put("photos", "overwritten.jpg", photo(7))
    assert eventarc(handler.url, new).ok
    assert eventarc(handler.url, old).ok
    assert last_entry(handler)["severity"] == "INFO"
    assert_complete(cloud, new)
    assert not results(cloud, old)


def test_deleted_object_is_no_error(cloud: Cloud, handler: Server) -> None:
    item = cloud.put("photos", "deleted.jpg", photo(6))
    cloud.delete("photos", "deleted.jpg")
    assert pubsub(handler.url, item).ok
    assert last_entry(handler)["severity"] == "INFO"
    assert not results(cloud, item)


def test_concurrent_deliveries_give_each_object_one_result(cloud: Cloud, handler: Server, impatient: Server) -> None:
    """200 deliveries of 50 objects to two instances, shuffled, four at a time; one storage request in five fails.

    As in Terraform's deployment, the instances may create objects, but not replace or delete them.
    """
    dice = random.Random(5)
    items = [cloud.put("photos", f"storm/{n}.jpg", photo(100 + n)) for n in range(50)]
    deliveries = items * 4
    dice.shuffle(deliveries)
    for effect, when in _STORM:
        cloud.faults.add(Fault(effect, when, probability=0.2 / len(_STORM), seconds=0.3))  # type: ignore[arg-type]

    def deliver(item: Object) -> bool:
        return dice.choice((eventarc, pubsub))(dice.choice((handler, impatient)).url, item).ok

    cloud.create_only.add("results")
    rounds = 0
    with ThreadPoolExecutor(4) as four:
        while deliveries:
            answers = list(four.map(deliver, deliveries))
            deliveries = [item for item, acknowledged in zip(deliveries, answers, strict=True) if not acknowledged]
            rounds += 1
            assert rounds < 20
    assert all(fault.hits for fault in cloud.faults)
    for item in items:
        assert_complete(cloud, item)


_STORM = [
    (429, "before"),
    (503, "before"),
    (503, "after"),
    (412, "before"),
    ("cut", "before"),
    ("cut", "half"),
    ("cut", "after"),
    ("stall", "half"),
]


def test_many_at_once_keep_to_the_memory_limit(cloud: Cloud) -> None:
    """Downloaded photos and unwritten results count towards the memory budget, so eight at once do not exceed it.

    The peak is the resident memory, which includes library pages that the kernel could reclaim.
    """
    settings = SETTINGS | {"SEGMENT_MEMORY": "320Mi", "MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "131072"}
    noise = random.Random(1).randbytes(1500 * 2000 * 3)
    buffer = io.BytesIO()
    Image.frombytes("RGB", (1500, 2000), noise).save(buffer, "JPEG", quality=95)
    items = [cloud.put("photos", f"heavy/{n}.jpg", buffer.getvalue()) for n in range(10)]
    with (
        serve("segment_object", STORAGE_EMULATOR_HOST=cloud.url, **settings) as handler,
        ThreadPoolExecutor(8) as eight,
    ):
        assert all(answer.ok for answer in eight.map(pubsub, [handler.url] * len(items), items))
        assert last_entry(handler)["peak_memory"] < 320 * MIB


# Killed workers


def test_delivery_after_a_kill_at_any_point_completes_the_results(cloud: Cloud, tmp_path: Path) -> None:
    """The worker is killed after each storage request of a delivery, during uploads, and while the pipeline runs."""
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        pytest.skip("needs /proc/PID/task/PID/children to find the worker")
    settings = SETTINGS | {"STORAGE_EMULATOR_HOST": cloud.url, "SEGMENT_CACHE": str(tmp_path)}
    with serve("segment_object", FRAMEWORK, **settings) as handler:
        before = len(cloud.requests)
        assert eventarc(handler.url, cloud.put("photos", "killed/never.jpg", photo(8))).ok
        steps = [method for method, _ in cloud.requests[before:]]
        assert steps == ["GET", "GET", "POST", "POST"], "a list, a download, two uploads"
        for step, method in enumerate(steps):
            # A request that was not carried out leaves the same state as the end of the previous one.
            for when in ("half", "after") if method == "POST" else ("after",):
                item = cloud.put("photos", f"killed/{step} {when}.jpg", photo(8))
                kill_at(cloud, handler, item, Fault("hold", when, skip=step))
                assert deliver_until_acknowledged(handler, item)
                assert_complete(cloud, item)
        item = cloud.put("photos", "killed/computing.jpg", photo(8, 3000, 2000))
        kill_at(cloud, handler, item, Fault("hold", "after", path=_DOWNLOAD), delay=0.03)
        assert deliver_until_acknowledged(handler, item)
        assert_complete(cloud, item)


def kill_at(cloud: Cloud, handler: Server, item: Object, hold: Fault, delay: float | None = None) -> None:
    """Deliver, and kill the worker when `hold` is reached or, if given, `delay` seconds after its release."""
    cloud.faults.add(hold)
    (worker,) = children(handler.process.pid)

    def deliver() -> None:
        with contextlib.suppress(requests.RequestException):
            eventarc(handler.url, item)

    delivery = threading.Thread(target=deliver)
    delivery.start()
    while not hold.reached.wait(0.1):
        assert delivery.is_alive()
    if delay is not None:
        hold.release()
        time.sleep(delay)
    os.kill(worker, signal.SIGKILL)
    delivery.join(60)
    assert not delivery.is_alive()
    cloud.faults.clear()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def deliver_until_acknowledged(handler: Server, item: Object) -> bool:
    for _ in range(600):
        with contextlib.suppress(requests.ConnectionError):
            return eventarc(handler.url, item).ok
        time.sleep(0.1)
    return False


# Permanent failures


def test_object_that_is_too_large_is_not_read(cloud: Cloud, handler: Server) -> None:
    item = cloud.put("photos", "large.jpg", photo(1) + bytes(MIB))
    before = len(cloud.requests)
    assert eventarc(handler.url, item).ok
    assert not any("alt=media" in target for _, target in cloud.requests[before:])
    assert error(cloud, item)["title"] == "Too large"


def test_object_that_unpacks_too_large_is_refused(cloud: Cloud, handler: Server) -> None:
    item = cloud.put("photos", "bomb.jpg", gzip.compress(bytes(64 * MIB)), content_encoding="gzip")
    assert len(item.content) < MIB
    assert eventarc(handler.url, item).ok
    assert error(cloud, item)["title"] == "Too large"


def test_packed_object_is_unpacked(cloud: Cloud, handler: Server) -> None:
    item = cloud.put("photos", "packed.jpg", gzip.compress(photo(9)), content_encoding="gzip")
    assert eventarc(handler.url, item).ok
    assert {name: found.content for name, found in results(cloud, item).items()} == {
        name: file.body for name, file in expected(photo(9)).items()
    }


def test_error_says_what_was_wrong(cloud: Cloud, handler: Server) -> None:
    item = cloud.put("photos", "notes.txt", b"Dear diary, today I took no photo.", "text/plain")
    assert pubsub(handler.url, item).ok
    problem = error(cloud, item)
    assert problem["title"] == "Unsupported image"
    assert (problem["source"], problem["generation"]) == ("gs://photos/notes.txt", str(item.generation))
    found = results(cloud, item)[ERROR_NAME]
    assert (found.content_type, found.metadata["segment-source"]) == (
        "application/problem+json",
        "gs://photos/notes.txt",
    )
    entry = last_entry(handler)
    assert (entry["severity"], entry["object"]) == ("WARNING", "gs://photos/notes.txt")
    assert pubsub(handler.url, item).ok
    assert sum(write.name.startswith("notes.txt/") for write in cloud.writes) == 1


def test_event_of_a_name_too_long_for_results_is_acknowledged(cloud: Cloud, handler: Server) -> None:
    item = cloud.put("photos", "n" * 1020, photo(1))
    assert eventarc(handler.url, item).ok
    assert last_entry(handler)["severity"] == "ERROR"


def test_name_too_long_for_results_gets_an_error(cloud: Cloud, handler: Server) -> None:
    item = cloud.put("photos", "n" * 994, photo(1))
    assert eventarc(handler.url, item).ok
    refused, length = error(cloud, item), len(f"{item.name}/{item.generation}/detections.json")
    assert refused["title"] == "Name too long"
    assert refused["detail"] == (
        f"The name of its result detections.json would have {length:,} bytes; the maximum is 1,024. "
        f"Shorten the photo's name by {length - 1024} bytes."
    )


def test_object_wrongly_marked_as_gzip_is_refused(cloud: Cloud, handler: Server) -> None:
    item = cloud.put("photos", "no gzip.jpg", photo(1), content_encoding="gzip")
    assert eventarc(handler.url, item).ok
    assert error(cloud, item)["title"] == "Corrupt image"


@pytest.mark.parametrize("status", [400, 403])
def test_object_that_may_not_be_read_gets_an_error(cloud: Cloud, handler: Server, status: int) -> None:
    item = cloud.put("photos", f"secret {status}.jpg", photo(11))
    fault = cloud.faults.add(Fault(status, path="alt=media"))
    assert eventarc(handler.url, item).ok
    assert fault.hits == 1
    assert str(status) in error(cloud, item)["detail"]
    cloud.faults.clear()
    assert eventarc(handler.url, item).ok
    assert set(results(cloud, item)) == {"overlay.png", "detections.json"}


@pytest.mark.parametrize("path", ["^/storage/v1/b/results/o\\?", "^/upload/"])
def test_denied_writes_are_logged_as_an_error(cloud: Cloud, handler: Server, path: str) -> None:
    item = cloud.put("photos", f"no entry {len(path)}.jpg", photo(11))
    cloud.faults.add(Fault(403, path=path))
    assert eventarc(handler.url, item).ok
    assert (last_entry(handler)["severity"], "403" in last_entry(handler)["message"]) == ("ERROR", True)


def test_missing_buckets_are_logged_at_once(cloud: Cloud, handler: Server) -> None:
    resource = cloud.put("photos", "moved.jpg", photo(1)).resource() | {"bucket": "nowhere"}
    assert post_event(handler.url, resource, "objects/moved.jpg").ok
    assert "does not exist" in last_entry(handler)["message"]
    with serve(
        "segment_object", STORAGE_EMULATOR_HOST=cloud.url, **SETTINGS | {"SEGMENT_OUTPUT_BUCKET": "none"}
    ) as lost:
        assert eventarc(lost.url, cloud.put("photos", "lost.jpg", photo(1))).ok
        assert last_entry(lost)["severity"] == "ERROR"


def test_hostile_files_get_an_error_and_are_acknowledged(cloud: Cloud, handler: Server) -> None:
    items = [cloud.put("photos", f"worst/{name}", content) for name, content in worst.files()]
    with ThreadPoolExecutor(4) as four:
        assert all(answer.ok for answer in four.map(pubsub, [handler.url] * len(items), items))
    refused = [item for item in items if ERROR_NAME in results(cloud, item)]
    for item in refused:
        assert error(cloud, item)["detail"].endswith(".")
        assert "Traceback" not in error(cloud, item)["detail"]
    for item in items:  # damaged, but still readable
        if item not in refused:
            assert set(results(cloud, item)) == {"overlay.png", "detections.json"}
    assert len(refused) >= 500


def error(cloud: Cloud, item: Object) -> dict[str, str]:
    """The content of error.json, which is the object's only result."""
    (found,) = results(cloud, item).items()
    assert found[0] == ERROR_NAME
    problem: dict[str, str] = json.loads(found[1].content)
    return problem


# Temporary failures

_LIST, _DOWNLOAD, _UPLOAD = "^/storage/.*/o\\?", "alt=media", "^/upload/"


@pytest.mark.parametrize(
    ("effect", "path"),
    [
        (429, _LIST),
        ("stall", _LIST),
        (503, _DOWNLOAD),
        ("cut", _DOWNLOAD),
        (503, _UPLOAD),
        ("cut", _UPLOAD),
    ],
)
def test_unresponsive_storage_causes_a_redelivery(
    cloud: Cloud, handler: Server, impatient: Server, effect: Any, path: str
) -> None:
    item = cloud.put("photos", f"later {effect} {len(path)}.jpg", photo(10))
    fault = cloud.faults.add(Fault(effect, "half" if effect == "cut" else "before", path=path, seconds=120))
    start = time.monotonic()
    answer = eventarc(impatient.url, item)
    assert (answer.status_code, fault.hits > 0) == (503, True)
    assert time.monotonic() - start < 10
    assert last_entry(impatient)["severity"] == "WARNING"
    cloud.faults.clear()
    assert eventarc(handler.url, item).ok
    assert_complete(cloud, item)


def test_time_limits_add_up_to_less_than_the_deadline() -> None:
    """The worst case of a delivery is below the time limits of the request and of the acknowledgement.

    Waiting and storage calls share SEGMENT_DELIVERY_SECONDS. After that, the current stage of the pipeline finishes,
    and there is at most one call per result, one to check the run of an existing result, and one for an error.json.
    """
    variables = (ROOT / "terraform" / "variables.tf").read_text()

    def default(name: str) -> float:
        found = re.search(rf'variable "{name}" {{.*?default += (\d+)\n', variables, re.DOTALL)
        assert found
        return float(found[1])

    settings = Settings()
    last_calls = (len(settings.output_formats) + 2) * google.LAST_SECONDS
    stage = 3.0
    worst_case = settings.delivery_seconds + last_calls + stage
    assert worst_case < default("timeout_seconds") <= default("ack_deadline_seconds")


@pytest.mark.parametrize("path", [_LIST, _DOWNLOAD, _UPLOAD])
def test_delivery_keeps_to_its_time_limit(cloud: Cloud, hurried: Server, path: str) -> None:
    cloud.faults.add(Fault("stall", path=path, seconds=1))
    start = time.monotonic()
    assert eventarc(hurried.url, cloud.put("photos", f"slow {len(path)}.jpg", photo(1))).status_code == 503
    assert time.monotonic() - start < 2 + 3 * google.LAST_SECONDS


def test_spurious_precondition_failure_is_retried(cloud: Cloud, handler: Server) -> None:
    item = cloud.put("photos", "412.jpg", photo(10))
    cloud.faults.add(Fault(412, path="^/upload/", times=1))
    assert eventarc(handler.url, item).status_code == 503
    assert eventarc(handler.url, item).ok
    assert_complete(cloud, item)


def test_write_whose_answer_was_lost_counts(cloud: Cloud, handler: Server) -> None:
    item = cloud.put("photos", "lost answer.jpg", photo(10))
    fault = cloud.faults.add(Fault("cut", "after", path="^/upload/", times=2))
    assert eventarc(handler.url, item).ok
    assert fault.hits == 2
    assert_complete(cloud, item)


def test_damaged_download_is_not_segmented(cloud: Cloud, handler: Server) -> None:
    item = cloud.put("photos", "damaged.jpg", photo(10))
    resource = item.resource() | {"crc32c": "AAAAAA=="}
    assert post_event(handler.url, resource, "objects/damaged.jpg").status_code == 503
    assert not results(cloud, item)


@pytest.mark.parametrize(
    ("failure", "status"),
    [(Busy("No memory."), 503), (ModelError("No model."), 503), (ZeroDivisionError("A bug."), 500)],
)
def test_temporary_errors_are_raised(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, failure: Exception, status: int
) -> None:
    class Failing(Service):
        def segment(self, *_: object, **__: object) -> Any:
            raise failure

    google.client.cache_clear()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", cloud.url)
    item = cloud.put("photos", "busy.jpg", photo(1))
    attributes = {"type": events.FINALIZED, "source": "//storage.googleapis.com/projects/_/buckets/photos"}
    with pytest.raises(HTTPException) as raised:
        handle(Failing(service().settings), CloudEvent(attributes, item.resource()))
    assert raised.value.code == status
    assert not results(cloud, item)
    google.client.cache_clear()


# Invalid and irrelevant events

_RESOURCE = {"bucket": "photos", "name": "a.jpg", "generation": "1", "size": "3"}


def _message(data: Any, attributes: Any) -> dict[str, Any]:
    return {"message": {"messageId": "1", "data": data, "attributes": attributes}, "subscription": "s"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"null",
        b"[1, 2]",
        b"not json",
        b"\xff\xfe",
        b'{"message": {}}',
        b'{"message": {"messageId": "1"}, "subscription": "s"}',
        b'{"message": {"messageId": "1", "data": "aGk="}, "subscription": "s"}',
        json.dumps(_message("?", {"eventType": "OBJECT_FINALIZE"})).encode(),
        json.dumps(_message("e30=", {"eventType": "OBJECT_FINALIZE"})).encode(),
        json.dumps(_message(5, 7)).encode(),
        b'{"context": {"eventType": "none"}, "data": {}}',
        b'{"specversion": "1.0", "id": "1", "source": "s", "type": "t", "data": {}}',
        b"[" * 100_000,
    ],
)
def test_request_without_an_event_is_logged_and_acknowledged(handler: Server, body: bytes) -> None:
    answer = requests.post(handler.url, body, headers={"Content-Type": "application/json"}, timeout=60)
    assert answer.ok
    assert last_entry(handler)["severity"] == "ERROR"


def test_event_of_another_content_type_is_logged_and_acknowledged(cloud: Cloud, handler: Server) -> None:
    """Pub/Sub would deliver a request that is refused with 415 again and again."""
    body = json.dumps(push_message(cloud.put("photos", "plain.jpg", photo(1)))).encode()
    assert requests.post(handler.url, body, headers={"Content-Type": "text/plain"}, timeout=60).ok
    assert last_entry(handler)["severity"] == "ERROR"


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "text",
        {},
        _RESOURCE | {"bucket": ""},
        _RESOURCE | {"bucket": "../photos"},
        _RESOURCE | {"name": None},
        _RESOURCE | {"name": 5},
        _RESOURCE | {"name": "\ud800.jpg"},
        _RESOURCE | {"generation": "latest"},
        _RESOURCE | {"generation": -1},
        _RESOURCE | {"size": "big"},
    ],
)
def test_event_without_an_object_is_logged_and_acknowledged(handler: Server, data: Any) -> None:
    assert post_event(handler.url, data, "objects/a.jpg").ok
    assert last_entry(handler)["severity"] == "ERROR"


@pytest.mark.parametrize("kind", ["deleted", "archived", "metadataUpdated"])
def test_other_types_of_events_are_acknowledged(handler: Server, kind: str) -> None:
    assert post_event(handler.url, _RESOURCE, "objects/a.jpg", kind).ok
    assert last_entry(handler)["severity"] == "INFO"


@pytest.mark.parametrize("kind", ["OBJECT_DELETE", "OBJECT_METADATA_UPDATE", "OBJECT_ARCHIVE"])
def test_other_types_of_messages_are_acknowledged(cloud: Cloud, handler: Server, kind: str) -> None:
    item = cloud.put("photos", "other.jpg", photo(1))
    assert pubsub(handler.url, item, kind).ok
    assert last_entry(handler)["severity"] == "INFO"
    assert not results(cloud, item)


def test_both_event_formats_name_the_same_object() -> None:
    item = Object("photos", "a/b.jpg", 17, b"abc", "image/jpeg", "", {"taken-by": "me"}, "", "")
    attributes = {"source": "//storage.googleapis.com/projects/_/buckets/photos", "type": events.FINALIZED}
    from_eventarc = parse(CloudEvent(attributes, item.resource()))
    from_pubsub = parse(CloudEvent(attributes | {"type": events.PUBLISHED}, push_message(item)))
    assert from_eventarc == from_pubsub == ("photos", Item("a/b.jpg", 17, 3, item.crc32c, {"taken-by": "me"}))


# Own results are ignored


def test_results_in_the_photos_bucket_are_not_read_again(cloud: Cloud) -> None:
    """One bucket holds photos and results, and its notification sends an event for every object."""
    settings = SETTINGS | {"SEGMENT_OUTPUT_BUCKET": "photos", "SEGMENT_OUTPUT_PREFIX": "out/"}
    with serve("segment_object", STORAGE_EMULATOR_HOST=cloud.url, **settings) as handler:
        item = cloud.put("photos", "shared/a.jpg", photo(1))
        assert eventarc(handler.url, item).ok
        written = cloud.objects("photos", "out/")
        assert sorted(written) == [f"out/shared/a.jpg/{item.generation}/{name}" for name in sorted(expected(photo(1)))]
        copied = cloud.put("photos", "copied.png", photo(1), metadata=next(iter(written.values())).metadata)
        unmarked = cloud.put("photos", "out/unmarked.png", photo(1))
        for result in [*written.values(), copied, unmarked]:
            assert pubsub(handler.url, result).ok
            assert "ignored" in last_entry(handler)["message"]
            assert last_entry(handler)["severity"] == ("WARNING" if result is unmarked else "INFO")
        assert len(cloud.objects("photos", "out/")) == len(written) + 1


@pytest.mark.parametrize(
    ("settings", "name", "ignored"),
    [
        ({}, "a.jpg", False),
        ({}, "folder/", True),
        ({"input_bucket": "photos"}, "a.jpg", False),
        ({"input_bucket": "other"}, "a.jpg", True),
        ({"input_prefix": "in/"}, "in/a.jpg", False),
        ({"input_prefix": "in/"}, "a.jpg", True),
        ({"output_bucket": "photos", "output_prefix": "out/"}, "out/a.jpg", True),
        ({"output_bucket": "photos", "output_prefix": "out/"}, "in/out/a.jpg", False),
        ({"output_bucket": "photos"}, "a.jpg", True),
        ({"output_bucket": "results", "output_prefix": "out/"}, "out/a.jpg", False),
    ],
)
def test_events_of_other_buckets_and_prefixes_are_ignored(settings: dict[str, str], name: str, ignored: bool) -> None:
    given = Settings(**({"output_bucket": "results"} | settings))  # type: ignore[arg-type]
    assert bool(why_ignored(given, "photos", Item(name, 1))) is ignored


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"input_bucket": "pics", "output_bucket": "results"}, ""),
        ({"output_bucket": "results"}, ""),
        ({}, "OUTPUT_BUCKET is not set"),
        ({"output_bucket": "gs://results"}, "without gs:"),
        ({"input_bucket": "pics", "output_bucket": "pics"}, "same bucket"),
        ({"input_bucket": "pics", "output_bucket": "pics", "output_prefix": "out/"}, "same bucket"),
        ({"input_bucket": "pics", "output_bucket": "pics", "input_prefix": "in/"}, "same bucket"),
        (
            {"input_bucket": "pics", "output_bucket": "pics", "input_prefix": "in/", "output_prefix": "in/out/"},
            "same bucket",
        ),
        ({"input_bucket": "pics", "output_bucket": "pics", "input_prefix": "in/", "output_prefix": "out/"}, ""),
    ],
)
def test_same_place_is_refused(settings: dict[str, str], refused: str) -> None:
    given = Settings(**settings)  # type: ignore[arg-type]
    if refused:
        with pytest.raises(SettingsError, match=refused):
            check(given)
    else:
        check(given)


def test_start_is_refused_in_one_line() -> None:
    settings = {"SEGMENT_INPUT_BUCKET": "pics", "SEGMENT_OUTPUT_BUCKET": "pics"}
    process = start("segment_object", free_port(), settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output, _ = process.communicate(timeout=600)
    assert process.returncode != 0
    assert b"in the same bucket" in output
    assert b"Traceback" not in output

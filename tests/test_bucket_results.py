"""All results of a photo come from one run, also after a crash between writes and with other settings or models."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from devtools import gcs
from devtools.gcs import Cloud, Fault
from devtools.server import CACHE
from segment import container
from segment.bucket.objects import segment_object
from segment.bucket.results import Results, Run
from segment.bucket.store import Object, Store, open_store
from segment.errors import StorageError, StorageRefused
from segment.model import EMBEDDED
from segment.options import Options
from segment.service import Service
from segment.settings import Settings
from tests.compiled import compiled_once  # noqa: F401
from training.shapes import scene

FIRST = {
    "SEGMENT_CACHE": str(CACHE),
    "SEGMENT_THREADS": "1",
    "SEGMENT_RENDER_FACTOR": "6",
    "SEGMENT_STORAGE_SECONDS": "1",
    "SEGMENT_MIN_SCORE": "0.4",
}


@pytest.fixture(scope="module", autouse=True)
def unload() -> Iterator[None]:
    """Free the models of these tests."""
    yield
    service.cache_clear()


@cache
def photo() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(scene(3, (320, 240))[0]).save(buffer, "JPEG")
    return buffer.getvalue()


@cache
def service(**changed: str) -> Service:
    return Service(Settings.from_environment(FIRST | {f"SEGMENT_{k.upper()}": v for k, v in changed.items()}))


def expected(by: Service) -> dict[str, bytes]:
    """The service's results for the photo if none exist."""
    result = by.segment(photo(), Options.defaults(by.settings), by.settings.output_formats)
    return {file.name: file.body for file in result.files}


def deliver(cloud: Cloud, by: Service, options: Options | None = None, found: gcs.Object | None = None) -> str:
    """Process the photo, or one generation of it, with this service and return the outcome."""
    if found is None:
        (found,) = cloud.objects("photos").values()
    item = Object(found.name, found.generation, len(found.content))
    source, destination = (open_store(f"gs://{name}", by.settings.storage_seconds) for name in ("photos", "results"))
    return segment_object(by, source.store, item, destination, options=options).kind


def there(cloud: Cloud) -> dict[str, bytes]:
    return {name.rpartition("/")[2]: found.content for name, found in cloud.objects("results").items()}


def crash_after_one_write(cloud: Cloud, by: Service) -> None:
    fault = cloud.faults.add(Fault(503, path="^/upload/", skip=1))
    with pytest.raises(StorageError):
        deliver(cloud, by)
    assert fault.hits
    cloud.faults.clear()
    assert len(there(cloud)) == 1


OTHER: list[dict[str, str]] = [
    {"render_factor": "12"},
    {"render_factor": "auto"},
    {"detail": "2"},
    {"fit": "square", "min_score": "0.9"},
    {"max_detections": "200"},
    {"output_formats": "json,png"},
]


@pytest.mark.parametrize("other", OTHER, ids=str)
def test_missing_results_are_made_with_the_settings_of_the_existing(cloud: Cloud, other: dict[str, str]) -> None:
    cloud.put("photos", "a.jpg", photo())
    crash_after_one_write(cloud, service())
    assert deliver(cloud, service(**other)) == "segmented"
    assert there(cloud) == expected(service())
    assert len({Run.from_metadata(found.metadata) for found in cloud.objects("results").values()}) == 1
    assert len(cloud.writes) == 3, "one write for the photo and one for each of its two results"


@pytest.mark.parametrize("other", OTHER, ids=str)
def test_added_format_is_made_with_the_settings_of_the_existing(cloud: Cloud, other: dict[str, str]) -> None:
    cloud.put("photos", "a.jpg", photo())
    deliver(cloud, service())
    assert deliver(cloud, service(**other | {"output_formats": "png,json,ids"})) == "segmented"
    assert there(cloud) == expected(service(output_formats="png,json,ids"))


def test_options_without_a_setting_are_recorded(cloud: Cloud) -> None:
    cloud.put("photos", "a.jpg", photo())
    options = Options.parse({"classes": "circle,star", "segmentation": "polygons"}, service().settings)
    assert deliver(cloud, service(output_formats="json"), options) == "segmented"
    assert deliver(cloud, service()) == "segmented"
    result = service().segment(photo(), options, ("png", "json"))
    assert there(cloud) == {file.name: file.body for file in result.files}


def test_complete_results_are_not_modified(cloud: Cloud) -> None:
    cloud.put("photos", "a.jpg", photo())
    deliver(cloud, service())
    before = len(cloud.requests)
    assert deliver(cloud, service(render_factor="12")) == "done before"
    assert len(cloud.requests) == before + 1


@pytest.fixture
def renamed(tmp_path: Path) -> Service:
    """A service with another model."""
    shutil.copy(EMBEDDED, tmp_path / "other.onnx")
    return service(model=str(tmp_path / "other.onnx"), render_factor="12")


def test_results_of_another_model_are_all_replaced(cloud: Cloud, renamed: Service) -> None:
    cloud.put("photos", "a.jpg", photo())
    crash_after_one_write(cloud, service())
    assert deliver(cloud, renamed) == "segmented"
    assert there(cloud) == expected(renamed)


def test_results_that_cannot_be_completed_or_replaced_are_kept(cloud: Cloud, renamed: Service) -> None:
    cloud.put("photos", "a.jpg", photo())
    crash_after_one_write(cloud, service())
    before = there(cloud)
    cloud.faults.add(Fault(403, method="DELETE"))
    with pytest.raises(StorageRefused, match="made with another model"):
        deliver(cloud, renamed)
    assert there(cloud) == before


def test_results_with_more_detections_than_planned_are_not_resumed(cloud: Cloud) -> None:
    cloud.put("photos", "a.jpg", photo())
    crash_after_one_write(cloud, service(max_detections="50"))
    assert deliver(cloud, service(max_detections="5")) == "segmented"
    assert there(cloud) == expected(service(max_detections="5"))


def test_inconsistent_results_are_replaced_when_a_format_is_added(cloud: Cloud) -> None:
    item = cloud.put("photos", "a.jpg", photo())
    for number, name in enumerate(("overlay.png", "detections.json")):
        about = {"segment-source": "gs://photos/a.jpg", "segment-settings": str(number)}
        cloud.put("results", f"a.jpg/{item.generation}/{name}", b"old", metadata=about)
    assert deliver(cloud, service()) == "segmented"
    assert there(cloud) == expected(service())


@pytest.mark.parametrize("formats", ["png,json", "webp,json"])
def test_concurrent_services_leave_results_of_one_run(cloud: Cloud, formats: str) -> None:
    """The second service finds no results; before it writes its own, the first service writes one file.

    Both may only create objects, so a set with files of both could not be mended.
    """
    cloud.put("photos", "a.jpg", photo())
    first, second = service(), service(render_factor="12", output_formats=formats)
    crash_after_one_write(cloud, first)
    ((name, written),) = cloud.objects("results").items()
    cloud.delete("results", name)
    late = [written]

    class Interrupted(Service):
        def segment(self, *arguments: Any, **rest: Any) -> Any:
            result = second.segment(*arguments, **rest)
            if late:
                cloud.put("results", name, late.pop().content, metadata=written.metadata)
            return result

    cloud.create_only.add("results")
    assert deliver(cloud, Interrupted(second.settings)) == "segmented"
    assert there(cloud) == expected(service(output_formats=formats))


@pytest.mark.parametrize(("versioned", "kind"), [(False, "gone"), (True, "segmented")])
def test_overwritten_generation_has_results_if_it_can_still_be_read(cloud: Cloud, versioned: bool, kind: str) -> None:
    if versioned:
        cloud.versioned.add("photos")
    old = cloud.put("photos", "a.jpg", photo())
    new = cloud.put("photos", "a.jpg", photo())
    assert [deliver(cloud, service(), found=found) for found in (new, old)] == ["segmented", kind]
    folders = {name.rpartition("/")[0] for name in cloud.objects("results")}
    assert folders == {f"a.jpg/{found.generation}" for found in ((new, old) if versioned else (new,))}


# Folders, which store no metadata


def in_folders(tmp_path: Path, by: Service) -> tuple[str, dict[str, bytes]]:
    source: Store = open_store(str(tmp_path / "photos"), 1).store
    (item,) = source.objects()
    kind = segment_object(by, source, item, open_store(str(tmp_path / "results"), 1)).kind
    found = [path for path in (tmp_path / "results").rglob("*") if path.is_file()]
    return kind, {path.name: path.read_bytes() for path in found}


def test_incomplete_results_in_a_folder_are_all_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(photo())
    assert in_folders(tmp_path, service()) == ("segmented", expected(service()))
    next((tmp_path / "results").rglob("overlay.png")).unlink()
    other = service(render_factor="12")
    assert in_folders(tmp_path, other) == ("segmented", expected(other))
    assert in_folders(tmp_path, service()) == ("done before", expected(other))


# Refused photos


@pytest.mark.parametrize("where", ["bucket", "folder"])
def test_refused_photo_is_retried_only_after_a_limit_changed(cloud: Cloud, tmp_path: Path, where: str) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(photo())
    cloud.put("photos", "a.jpg", photo())

    def turn(by: Service) -> tuple[str, dict[str, bytes]]:
        return in_folders(tmp_path, by) if where == "folder" else (deliver(cloud, by), there(cloud))

    small = service(max_upload="1Ki")
    kind, found = turn(small)
    assert (kind, set(found), json.loads(found["error.json"])["title"]) == ("refused", {"error.json"}, "Too large")
    assert turn(small) == ("done before", found)
    kind, found = turn(service(max_upload="2Ki"))
    assert (kind, "2,048" in json.loads(found["error.json"])["detail"]) == ("refused", True)
    assert turn(service()) == ("segmented", expected(service()))


def test_photo_refused_for_memory_is_retried_with_more_memory(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "held", lambda: 100 << 20)  # does not depend on the other tests of this process
    cloud.put("photos", "a.jpg", photo())
    huge = {"render_factor": "256", "bytes_per_pixel": "1000"}
    assert deliver(cloud, service(memory="1500Mi", **huge)) == "refused"
    assert deliver(cloud, service(memory="1500Mi", **huge)) == "done before"
    assert deliver(cloud, service(memory="1600Mi", **huge)) == "refused"
    assert deliver(cloud, service(memory="1600Mi")) == "segmented"
    assert there(cloud) == expected(service(memory="1600Mi"))


def test_error_json_beside_results_is_ignored(cloud: Cloud) -> None:
    cloud.put("photos", "a.jpg", photo())
    deliver(cloud, service(max_upload="1Ki"))
    cloud.faults.add(Fault(403, method="DELETE"))
    assert deliver(cloud, service()) == "segmented"
    assert set(there(cloud)) == {"error.json", "overlay.png", "detections.json"}
    assert deliver(cloud, service(max_upload="1Ki")) == "done before"


def test_refusal_that_cannot_be_replaced_gets_another_file(cloud: Cloud) -> None:
    cloud.put("photos", "a.jpg", photo())
    small, larger = service(max_upload="1Ki"), service(max_upload="2Ki")
    deliver(cloud, small)
    first = there(cloud)
    cloud.faults.add(Fault(403, method="DELETE"))
    assert deliver(cloud, larger) == "refused"
    (added,) = there(cloud).keys() - first.keys()
    assert re.fullmatch(r"error-[0-9a-f]{8}\.json", added)
    assert "2,048" in json.loads(there(cloud)[added])["detail"]
    assert there(cloud)["error.json"] == first["error.json"]
    folder = next(iter(cloud.objects("results"))).rpartition("/")[0] + "/"
    newest = Results.find(open_store("gs://results", 1).store, folder).errors[-1]
    assert newest.name == folder + added
    calls = len(cloud.requests)
    assert [deliver(cloud, by) for by in (larger, small)] == ["done before"] * 2
    assert len(cloud.requests) == calls + 2, "one listing each"
    cloud.faults.clear()
    assert deliver(cloud, service()) == "segmented"
    assert there(cloud) == expected(service()), "with the permission, no error remains"


def test_photo_that_cannot_be_read_is_retried_but_its_error_is_written_once(cloud: Cloud) -> None:
    cloud.put("photos", "a.jpg", photo())
    cloud.faults.add(Fault(403, path="alt=media"))
    cloud.faults.add(Fault(403, method="DELETE"))
    assert [deliver(cloud, service()) for _ in range(3)] == ["refused"] * 3
    assert set(there(cloud)) == {"error.json"}

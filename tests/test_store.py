"""Tests of the stores: buckets and folders with the same tests, then each with its own."""

from __future__ import annotations

import gc
import gzip
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from devtools.gcs import Cloud, Fault
from segment.bucket.store import Object, Store, google, open_store
from segment.bucket.store.folder import Folder
from segment.bucket.store.google import Bucket
from segment.errors import CorruptImage, StorageError, StorageRefused, TooLarge

MIB = 1 << 20


@pytest.fixture(params=["bucket", "folder"])
def store(request: pytest.FixtureRequest, cloud: Cloud, tmp_path: Path) -> Store:
    address = "gs://photos" if request.param == "bucket" else str(tmp_path / "photos")
    return open_store(address, 2).store


def put(store: Store, *names: str) -> None:
    for name in names:
        assert store.write(name, name.encode(), "text/plain", {})


# Both


def test_written_objects_are_listed_and_read(store: Store) -> None:
    put(store, "b/ünï code", "a", "b/c/d", "c")
    assert sorted(item.name for item in store.objects()) == ["a", "b/c/d", "b/ünï code", "c"]
    assert [item.name for item in store.objects("b/c")] == ["b/c/d"]
    assert list(store.objects("nowhere/")) == []
    for item in store.objects():
        assert item.size == len(item.name.encode())
        assert store.read(item, 100) == item.name.encode()


def test_existing_objects_are_not_overwritten(store: Store) -> None:
    assert store.write("a/b", b"1", "text/plain", {})
    assert not store.write("a/b", b"2", "text/plain", {})
    (item,) = store.objects()
    assert store.read(item, 10) == b"1"


@pytest.mark.parametrize("sizes", [[], [1], [0, 5 * MIB, 3, 4 * MIB], [8 * MIB], [20 * MIB]])
def test_replacing_overwrites_an_object(store: Store, sizes: list[int]) -> None:
    put(store, "a/b")
    store.replace("a/b", (os.urandom(1) * size for size in sizes), "application/json", {"segment-source": "gs://x"})
    (item,) = store.objects()
    assert item.size == sum(sizes)
    body = store.read(item, 20 * MIB)
    assert body is not None
    ends = list(itertools.accumulate(sizes))
    assert all(len(set(body[end - size : end])) <= 1 for size, end in zip(sizes, ends, strict=True))


def test_an_interrupted_replacement_changes_nothing(store: Store) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"x" * 9 * MIB
        raise StorageError("The source failed.")

    put(store, "a/b")
    with pytest.raises(StorageError, match="The source failed"):
        store.replace("a/b", pieces(), "application/json", {})
    (item,) = store.objects()
    assert store.read(item, 10) == b"a/b"


def test_listing_starts_at_the_given_name(store: Store) -> None:
    put(store, "a", "b", "c/d", "e")
    assert sorted(item.name for item in store.objects(start="b")) == ["b", "c/d", "e"]


def test_only_that_generation_is_deleted(store: Store) -> None:
    put(store, "a")
    (item,) = store.objects()
    store.delete(Object("a", item.generation + 1))
    assert list(store.objects()) == [item]
    store.delete(item)
    store.delete(item)
    assert list(store.objects()) == []


def test_another_generation_is_not_read(store: Store) -> None:
    put(store, "a")
    (item,) = store.objects()
    assert store.read(Object("a", item.generation + 1), 10) is None
    assert store.read(Object("b", item.generation), 10) is None


def test_too_large_is_not_read(store: Store) -> None:
    put(store, "four")
    (item,) = store.objects()
    assert store.read(item, 4) == b"four"
    with pytest.raises(TooLarge, match="4 bytes; the maximum is 3"):
        store.read(item, 3)


# A bucket


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_replacement_that_failed_is_not_completed_later(cloud: Cloud, method: str) -> None:
    """The storage client's writer would upload again when it is garbage collected."""
    fault = cloud.faults.add(Fault(503, path="/upload/.*", method=method))
    with pytest.raises(StorageError):
        Bucket("photos", 1).replace("a", [b"old"], "text/plain", {})
    assert fault.hits
    cloud.faults.clear()
    gc.collect()
    assert not cloud.objects("photos")


def test_every_page_is_listed(cloud: Cloud) -> None:
    for n in range(5100):
        cloud.put("photos", f"{n:04}", b"")
    assert [item.name for item in Bucket("photos", 60).objects()] == [f"{n:04}" for n in range(5100)]
    assert len(cloud.requests) == 2, "a page has 5,000 objects"


def test_only_as_many_objects_are_requested_as_needed(cloud: Cloud, tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for n in range(30):
        cloud.put("photos", f"{n:02}", b"")
        folder.write(f"{n:02}", b"", "", {})
    for store in (Bucket("photos", 5), folder):
        assert [item.name for item in store.objects("", "05", most=3)] == ["05", "06", "07"]
    (request,) = cloud.requests
    assert "maxResults=3" in request[1]


def test_bucket_keeps_type_and_metadata(cloud: Cloud) -> None:
    bucket = Bucket("photos", 2)
    assert bucket.write("a", b"{}", "application/json", {"segment-source": "gs://x/ünï"})
    assert cloud.objects("photos")["a"].content_type == "application/json"
    (item,) = bucket.objects()
    assert item.metadata == {"segment-source": "gs://x/ünï"}


@pytest.mark.parametrize("size", [100, 20 * MIB])
@pytest.mark.parametrize("when", ["before", "half", "after"])
def test_interrupted_write_is_completed_once(cloud: Cloud, when: str, size: int) -> None:
    body = os.urandom(size)
    cloud.faults.add(Fault("cut", when, method="PUT|POST", skip=size // (10 * MIB), times=1))  # type: ignore[arg-type]
    lost = size < MIB and when == "after"
    assert Bucket("photos", 5).write("a", body, "image/png", {}) is not lost
    assert cloud.objects("photos")["a"].content == body
    assert len(cloud.writes) == 1


def test_interrupted_read_is_resumed_and_verified(cloud: Cloud) -> None:
    content = os.urandom(MIB)
    item = cloud.put("photos", "a", content)
    fault = cloud.faults.add(Fault("cut", "half", path="alt=media", times=2))
    assert Bucket("photos", 5).read(Object("a", item.generation, MIB, item.crc32c), MIB) == content
    assert fault.hits == 2
    cloud.faults.add(Fault("cut", "half", path="alt=media", times=1))
    with pytest.raises(StorageError, match="does not match its checksum"):
        Bucket("photos", 5).read(Object("a", item.generation, MIB, "AAAAAA=="), MIB)


def test_slow_bucket_times_out(cloud: Cloud) -> None:
    item = cloud.put("photos", "a", b"1")
    cloud.faults.add(Fault("stall", path="alt=media", seconds=30))
    with pytest.raises(StorageError, match="Could not read in gs://photos"):
        Bucket("photos", 1).read(Object("a", item.generation), 10)


def test_missing_bucket_is_refused(cloud: Cloud) -> None:
    bucket = Bucket("nowhere", 1)
    with pytest.raises(StorageRefused, match="Could not list in gs://nowhere"):
        list(bucket.objects())
    with pytest.raises(StorageRefused, match="Could not write in gs://nowhere"):
        bucket.write("a", b"", "", {})
    with pytest.raises(StorageRefused, match="Could not read in gs://nowhere"):
        bucket.read(Object("a", 1), 10)


@pytest.mark.parametrize("status", [400, 403])
def test_refusals_and_failures_are_distinguished(cloud: Cloud, status: int) -> None:
    item = cloud.put("photos", "a", b"1")
    cloud.faults.add(Fault(status))
    bucket = Bucket("photos", 5)
    for attempt in (
        lambda: list(bucket.objects()),
        lambda: bucket.read(Object("a", item.generation), 10),
        lambda: bucket.write("b", b"", "", {}),
        lambda: bucket.delete(Object("a", item.generation)),
    ):
        with pytest.raises(StorageRefused):
            attempt()


@pytest.mark.parametrize("size", [100, 9 * MIB])
def test_write_whose_answer_was_lost_counts_without_permission_to_replace(cloud: Cloud, size: int) -> None:
    """Cloud Storage refuses the retry with 403, because an account that may only create may not replace."""
    cloud.create_only.add("photos")
    cloud.faults.add(Fault("cut", "after", method="POST", path="Type=multipart", times=1))
    assert Bucket("photos", 5).write("a", bytes(size), "image/png", {}) is (size > 8 * MIB)
    assert Bucket("photos", 5).write("a", bytes(size), "image/png", {}) is False
    assert len(cloud.writes) == 1
    with pytest.raises(StorageRefused, match=r"403 Forbidden: .* storage\.objects\.delete"):
        Bucket("photos", 5).delete(Object("a", cloud.writes[0].generation))


@pytest.mark.parametrize("reason", ["rateLimitExceeded", "quotaExceeded"])
def test_exceeded_quota_is_no_lack_of_permission(cloud: Cloud, reason: str) -> None:
    item = cloud.put("photos", "a", b"1")
    cloud.faults.add(Fault(403, reason=reason))
    bucket = Bucket("photos", 5)
    for attempt in (
        lambda: list(bucket.objects()),
        lambda: bucket.read(Object("a", item.generation), 10),  # refused in plain text
        lambda: bucket.write("b", b"", "", {}),
    ):
        with pytest.raises(StorageError) as raised:
            attempt()
        assert not isinstance(raised.value, StorageRefused)


@pytest.mark.parametrize(
    ("effect", "said"),
    [
        (403, "Could not {} in gs://photos: 403 Forbidden: A fault on demand."),
        (503, "Could not {} in gs://photos: no success within the time limit. The last attempt: 503 Service "
         "Unavailable: A fault on demand."),
    ],
)  # fmt: skip
def test_error_is_a_sentence_with_googles_message(cloud: Cloud, effect: int, said: str) -> None:
    item = cloud.put("photos", "a", b"1")
    cloud.faults.add(Fault(effect))
    bucket = Bucket("photos", 2)
    attempts: dict[str, Callable[[], object]] = {
        "list": lambda: list(bucket.objects()),
        "read": lambda: bucket.read(Object("a", item.generation), 10),
        "write": lambda: bucket.write("b", b"", "", {}),
        "delete": lambda: bucket.delete(Object("a", item.generation)),
    }
    with ThreadPoolExecutor(len(attempts)) as pool:  # at the same time, because each is repeated until the time limit
        tried = {what: pool.submit(attempt) for what, attempt in attempts.items()}
    assert {what: str(one.exception()) for what, one in tried.items()} == {what: said.format(what) for what in tried}


def test_packed_object_is_verified_and_unpacked(cloud: Cloud) -> None:
    packed = gzip.compress(b"a photo")
    item = cloud.put("photos", "a", packed, content_encoding="gzip")
    assert Bucket("photos", 2).read(Object("a", item.generation, len(packed), item.crc32c), 100) == b"a photo"
    with pytest.raises(StorageError, match="does not match its checksum"):
        Bucket("photos", 2).read(Object("a", item.generation, len(packed), "AAAAAA=="), 100)
    bomb = cloud.put("photos", "b", gzip.compress(bytes(1000)), content_encoding="gzip")
    with pytest.raises(TooLarge, match="when decompressed"):
        Bucket("photos", 2).read(Object("b", bomb.generation), 100)


@pytest.mark.parametrize("content", [b"no gzip", b"", gzip.compress(b"a photo")[:-9]], ids=["other", "empty", "cut"])
def test_object_wrongly_marked_as_gzip_is_corrupt(cloud: Cloud, content: bytes) -> None:
    item = cloud.put("photos", "a", content, content_encoding="gzip")
    with pytest.raises(CorruptImage, match="content-encoding is gzip"):
        Bucket("photos", 2).read(Object("a", item.generation), 100)


def test_missing_credentials_are_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    google.client.cache_clear()
    with pytest.raises(StorageError, match=r"none\.json"):
        list(Bucket("photos", 1).objects())


# A folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "2026" / "May").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"a photo")
    (folder / "2026" / "May" / "b.jpg").write_bytes(b"another")
    (folder / ".DS_Store").write_text("not seen")
    return folder


def test_folder_without_hard_links_works_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    test_existing_objects_are_not_overwritten(Folder(tmp_path))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["b"]


def test_folder_lists_by_prefix_without_following_links(photos: Path) -> None:
    (photos / "2026" / "loop").symlink_to(photos)
    (photos / "itself.jpg").symlink_to("itself.jpg")
    (photos / "nowhere.jpg").symlink_to("nothing.jpg")
    (photos / "linked.jpg").symlink_to(photos / "a.jpg")
    folder = Folder(photos)
    names = {item.name for item in folder.objects()}
    assert names == {"a.jpg", "linked.jpg", "2026/May/b.jpg"}
    assert [item.name for item in folder.objects("2026/M")] == ["2026/May/b.jpg"]


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    Folder(tmp_path).write("a.json", b"{}", "", {})
    Folder(tmp_path).replace("b.json", [b"{}"], "", {})
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_folder_of_results_lists_hidden_files(tmp_path: Path) -> None:
    folder = Folder(tmp_path, hidden=True)
    assert folder.write(".cache/.a.jpg/1/overlay.png", b"", "", {})
    (tmp_path / ".cache" / ".abc.part").write_text("being written")
    assert [item.name for item in folder.objects()] == [".cache/.a.jpg/1/overlay.png"]
    assert not list(Folder(tmp_path).objects())


def test_folder_reads_the_given_generation(photos: Path) -> None:
    folder = Folder(photos)
    (item,) = folder.objects("a.jpg")
    assert folder.read(item, 1 << 20) == b"a photo"
    os.utime(photos / "a.jpg", (1, 1))
    assert folder.read(item, 1 << 20) is None
    (photos / "a.jpg").unlink()
    assert folder.read(item, 1 << 20) is None


@pytest.mark.parametrize(
    "attempt",
    [
        lambda folder: folder.write("../outside", b"", "", {}),
        lambda folder: folder.write("/outside", b"", "", {}),
        lambda folder: folder.read(Object("a/../../outside", 1), 10),
        lambda folder: folder.write("a.jpg/b", b"", "", {}),
        lambda folder: folder.write("2026//outside", b"", "", {}),
        lambda folder: folder.write("./outside", b"", "", {}),
    ],
)
def test_folder_refuses_names_outside_its_root(photos: Path, attempt: Callable[[Folder], object]) -> None:
    with pytest.raises(StorageError):
        attempt(Folder(photos))
    assert not (photos.parent / "outside").exists()

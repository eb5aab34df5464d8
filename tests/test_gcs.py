"""The emulator of Cloud Storage behaves like the real service, tested through Google's client."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator

import pytest
import requests
from google.api_core import exceptions
from google.cloud.storage import Blob, Bucket, Client
from google.cloud.storage.retry import DEFAULT_RETRY

from devtools.gcs import Cloud, Fault, Object

FAST = DEFAULT_RETRY.with_delay(initial=0.01, maximum=0.05).with_timeout(60)
TIMEOUT = (60.0, 60.0)


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with Cloud(seed=7) as cloud:
        cloud.create_bucket("photos")
        yield cloud


@pytest.fixture
def client(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", cloud.url)
    return Client()


@pytest.fixture
def bucket(client: Client) -> Bucket:
    return client.bucket("photos")


def upload(bucket: Bucket, name: str, content: bytes, **arguments: object) -> Blob:
    blob = bucket.blob(name)
    blob.upload_from_string(content, **{"retry": FAST, "timeout": TIMEOUT, **arguments})
    return blob


def test_written_object_reads_back_whole(bucket: Bucket) -> None:
    content = bytes(range(256)) * 40 + b"\r\n--\r\n"
    blob = bucket.blob("a folder/ünï?#%2F.jpg")
    blob.metadata = {"taken-by": "Zoë"}
    blob.upload_from_string(content, content_type="image/jpeg")

    found = bucket.get_blob("a folder/ünï?#%2F.jpg")
    assert found.download_as_bytes(checksum="crc32c") == content
    assert found.download_as_bytes(checksum="md5") == content
    assert found.download_as_bytes(start=3, end=5) == content[3:6]
    assert (found.size, found.content_type, found.metadata) == (len(content), "image/jpeg", {"taken-by": "Zoë"})
    assert found.metageneration == 1
    assert found.generation == blob.generation


@pytest.mark.parametrize("content", [b"", b"x" * (700 << 10)])
def test_resumable_upload_in_chunks(cloud: Cloud, bucket: Bucket, content: bytes) -> None:
    blob = bucket.blob("big", chunk_size=256 << 10)
    blob.upload_from_file(io.BytesIO(content), if_generation_match=0)
    assert cloud.objects("photos")["big"].content == content
    puts = [method for method, _ in cloud.requests if method == "PUT"]
    assert len(puts) == max(1, -(-len(content) // (256 << 10)))


def test_resumable_upload_says_how_far_it_is(cloud: Cloud, bucket: Bucket) -> None:
    session = bucket.blob("big").create_resumable_upload_session(size=300 << 10)
    content = b"y" * (300 << 10)

    def put(data: bytes, content_range: str) -> requests.Response:
        return requests.put(session, data, headers={"Content-Range": content_range}, timeout=60)

    assert put(b"", f"bytes */{len(content)}").headers.get("Range") is None
    assert put(content[: 256 << 10], f"bytes 0-{(256 << 10) - 1}/{len(content)}").status_code == 308
    asked = put(b"", f"bytes */{len(content)}")
    assert (asked.status_code, asked.headers["Range"]) == (308, f"bytes=0-{(256 << 10) - 1}")
    assert put(content[256 << 10 :], f"bytes {256 << 10}-{len(content) - 1}/{len(content)}").status_code == 200
    assert put(b"", f"bytes */{len(content)}").json()["size"] == str(len(content))
    assert cloud.objects("photos")["big"].content == content


def test_resumable_upload_survives_a_cut_in_a_chunk(cloud: Cloud, bucket: Bucket) -> None:
    cloud.faults.add(Fault("cut", "half", method="PUT", skip=1, times=1))
    content = bytes(range(250)) * 4000
    blob = bucket.blob("big", chunk_size=256 << 10)
    blob.upload_from_file(io.BytesIO(content), if_generation_match=0, retry=FAST, timeout=TIMEOUT)
    assert cloud.objects("photos")["big"].content == content
    assert len(cloud.writes) == 1


def test_generations_increase_and_replace_older_ones(bucket: Bucket) -> None:
    first = upload(bucket, "a", b"1")
    second = upload(bucket, "a", b"2")
    assert second.generation > first.generation
    assert bucket.blob("a", generation=second.generation).download_as_bytes() == b"2"
    with pytest.raises(exceptions.NotFound):
        bucket.blob("a", generation=first.generation).download_as_bytes()
    with pytest.raises(exceptions.NotFound):
        bucket.blob("a", generation=first.generation).reload()


def test_versioned_bucket_keeps_generations(cloud: Cloud, bucket: Bucket) -> None:
    cloud.versioned.add("photos")
    first, second = upload(bucket, "a", b"1"), upload(bucket, "a", b"2")
    bucket.blob("a").delete()
    assert [bucket.blob("a", generation=one.generation).download_as_bytes() for one in (first, second)] == [b"1", b"2"]
    assert not bucket.blob("a").exists()
    assert not list(bucket.list_blobs())


def test_preconditions_hold(bucket: Bucket) -> None:
    blob = upload(bucket, "a", b"1", if_generation_match=0)
    with pytest.raises(exceptions.PreconditionFailed):
        upload(bucket, "a", b"2", if_generation_match=0)
    with pytest.raises(exceptions.PreconditionFailed):
        upload(bucket, "b", b"2", if_generation_match=1)
    with pytest.raises(exceptions.PreconditionFailed):
        blob.download_as_bytes(if_generation_match=blob.generation + 1)
    with pytest.raises(exceptions.PreconditionFailed):
        bucket.blob("a").delete(if_metageneration_match=2)
    with pytest.raises(exceptions.NotModified):
        blob.reload(if_generation_not_match=blob.generation)
    upload(bucket, "a", b"3", if_generation_match=blob.generation)
    assert bucket.blob("a").download_as_bytes() == b"3"


def test_patch_merges_metadata(bucket: Bucket) -> None:
    blob = upload(bucket, "a", b"1")
    blob.metadata = {"x": "1", "y": "2"}
    blob.patch()
    blob.metadata = {"x": None, "z": "3"}
    blob.patch(if_metageneration_match=2)
    found = bucket.get_blob("a")
    assert found.metadata == {"y": "2", "z": "3"}
    assert (found.metageneration, found.generation) == (3, blob.generation)


def test_list_goes_over_pages(cloud: Cloud, client: Client) -> None:
    for name in ["b/2", "a", "b/1", "b/c/3", "d"]:
        cloud.put("photos", name, b"")
    assert [blob.name for blob in client.list_blobs("photos", page_size=2)] == ["a", "b/1", "b/2", "b/c/3", "d"]
    assert [blob.name for blob in client.list_blobs("photos", prefix="b/")] == ["b/1", "b/2", "b/c/3"]
    (blob,) = client.list_blobs("photos", prefix="a", fields="items(name,size),nextPageToken")
    assert (blob.name, blob.size, blob.generation) == ("a", 0, None)
    folders = client.list_blobs("photos", delimiter="/", page_size=1)
    assert [blob.name for blob in folders] == ["a", "d"]
    assert folders.prefixes == {"b/"}
    assert [blob.name for blob in client.list_blobs("photos", start_offset="b/2", end_offset="d")] == ["b/2", "b/c/3"]


@pytest.mark.parametrize(
    ("asked", "pages"),
    [({}, [1000] * 5 + [200]), ({"page_size": 9999}, [5000, 200]), ({"page_size": 7, "max_results": 9}, [7, 2])],
)
def test_size_of_pages(cloud: Cloud, client: Client, asked: dict[str, int], pages: list[int]) -> None:
    for n in range(5200):
        cloud.put("photos", f"{n:04}", b"")
    assert [page.num_items for page in client.list_blobs("photos", **asked).pages] == pages


def test_virtual_bucket_lists_generated_objects(cloud: Cloud, client: Client) -> None:
    """Part of 10 billion generated objects is listed in order, with a written object among them."""

    def listing(start: str) -> Iterator[Object]:
        first = max(int(start or 0), 0) if start.isdecimal() or not start else 10**10
        for number in range(first, 10**10):
            yield Object("virtual", f"{number:010}", number, b"", "image/jpeg", "", {}, "", "")

    cloud.create_virtual_bucket("virtual", listing)
    client.bucket("virtual").blob("5000001500x").upload_from_string(b"")
    found = client.list_blobs("virtual", start_offset="5000000000", end_offset="5000002000")
    names = [blob.name for blob in found]
    assert len(names) == 2001
    assert names[1500:1502] == ["5000001500", "5000001500x"]
    assert names == sorted(names)


def test_deleted_object_is_gone(bucket: Bucket) -> None:
    upload(bucket, "a", b"1").delete()
    assert not bucket.blob("a").exists()
    with pytest.raises(exceptions.NotFound):
        bucket.blob("a").delete()


def test_errors_have_googles_shape(cloud: Cloud) -> None:
    answer = requests.get(f"{cloud.url}/storage/v1/b/photos/o/none", timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["errors"][0]["reason"]) == (404, 404, "notFound")
    assert requests.get(f"{cloud.url}/storage/v1/b/nowhere/o", timeout=60).status_code == 404
    assert requests.post(f"{cloud.url}/storage/v1/b", json={"name": "photos"}, timeout=60).status_code == 409


def test_damaged_upload_is_refused(cloud: Cloud) -> None:
    about = {"name": "a", "crc32c": "AAAAAA=="}
    body = f"--x\r\n\r\n{json.dumps(about)}\r\n--x\r\nContent-Type: text/plain\r\n\r\nhello\r\n--x--"
    url = f"{cloud.url}/upload/storage/v1/b/photos/o?uploadType=multipart"
    answer = requests.post(url, body, headers={"Content-Type": "multipart/related; boundary=x"}, timeout=60)
    assert answer.status_code == 400
    assert not cloud.writes


@pytest.mark.parametrize("effect", [429, 503, "cut", "stall"])
@pytest.mark.parametrize("when", ["before", "half", "after"])
def test_client_retries_all_faults(cloud: Cloud, bucket: Bucket, effect: int, when: str) -> None:
    content = bytes(range(256)) * 2000
    uploading = cloud.faults.add(Fault(effect, when, method="POST", times=1, seconds=0.1))  # type: ignore[arg-type]
    downloading = cloud.faults.add(Fault(effect, when, path="alt=media", times=1, seconds=0.1))  # type: ignore[arg-type]
    committed = when == "after"
    try:
        upload(bucket, "a", content, if_generation_match=0)
    except exceptions.PreconditionFailed:
        assert committed, "only the retry of a write whose response was lost may fail its precondition"
    assert bucket.blob("a").download_as_bytes(retry=FAST, timeout=TIMEOUT) == content
    assert (uploading.hits, downloading.hits) == (1, 1)
    assert len(cloud.writes) == 1


def test_precondition_failure_on_demand_writes_nothing(cloud: Cloud, bucket: Bucket) -> None:
    # Only uploads: the client also looks up the bucket in the background, which would use up the fault.
    cloud.faults.add(Fault(412, path="/upload/", times=1))
    with pytest.raises(exceptions.PreconditionFailed):
        upload(bucket, "a", b"1", if_generation_match=0)
    assert not cloud.writes


def test_incomplete_upload_is_not_written(cloud: Cloud, bucket: Bucket) -> None:
    cloud.faults.add(Fault("cut", "half", method="POST"))
    with pytest.raises(requests.ConnectionError):
        upload(bucket, "a", b"1" * 100_000, retry=None)
    assert not cloud.objects("photos")


def test_faults_repeat_with_the_seed() -> None:
    def hits() -> list[bool]:
        cloud = Cloud(seed=3)
        cloud.faults.add(Fault(503, probability=0.2))
        return [cloud.faults.draw("GET", "/") is not None for _ in range(1000)]

    first = hits()
    assert first == hits()
    assert 150 < sum(first) < 250


def test_request_is_held_until_released(cloud: Cloud, bucket: Bucket) -> None:
    gate = cloud.faults.add(Fault("hold", "after", method="POST", times=1))
    uploading = threading.Thread(target=upload, args=(bucket, "a", b"1"))
    uploading.start()
    assert gate.reached.wait(60)
    assert cloud.objects("photos")["a"].content == b"1"
    assert uploading.is_alive()
    gate.release()
    uploading.join(60)
    assert not uploading.is_alive()


def test_writes_are_remembered(cloud: Cloud, bucket: Bucket) -> None:
    upload(bucket, "a", b"1")
    upload(bucket, "a", b"2")
    bucket.blob("a").delete()
    digests = [write.sha256 for write in cloud.writes]
    assert len(set(digests)) == 3
    assert digests[2] == ""

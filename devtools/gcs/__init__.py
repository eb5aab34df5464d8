"""An in-memory emulator of Cloud Storage for tests and development: the JSON API over HTTP, on localhost.

It implements what google-cloud-storage uses if STORAGE_EMULATOR_HOST is set (https://cloud.google.com/storage/docs/json_api/v1):
buckets; objects inserted in one piece, as multipart or resumably in chunks; metadata and media (whole, in ranges, by
generation); patch, delete, list with prefix, delimiter, fields and pages. Generations increase, preconditions are
checked (https://cloud.google.com/storage/docs/request-preconditions), checksums are verified, errors have Google's
format.
A generation that was overwritten or deleted returns 404, except in buckets with versioning (`versioned`), where it can
be read but is not listed.

For tests, it also records all writes (`writes`) and requests (`requests`), and injects faults (`faults`): an error
status, a closed connection, a delay, or a hold until the test releases it. A fault can occur before the request is
read, in the middle of its body, or after it was carried out but before the response.

    with Cloud() as cloud:
        cloud.create_bucket("photos")
        cloud.faults.add(Fault(503, path="/upload/", probability=0.2))
        os.environ["STORAGE_EMULATOR_HOST"] = cloud.url

`python -m devtools.gcs PORT BUCKET...` runs it alone.

Modules, from the lowest: `messages` (a request and its response), `objects` (one generation), `faults`, `storage` (the
buckets), `uploads` (bodies of uploads), `api` (what a request means), `server` (HTTP), `cloud` (all of it).
"""

from devtools.gcs.cloud import Cloud
from devtools.gcs.faults import Fault
from devtools.gcs.objects import Object

__all__ = ["Cloud", "Fault", "Object"]

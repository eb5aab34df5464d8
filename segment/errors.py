"""The exceptions that this package raises.

    SegmentError
    ├── SettingsError
    ├── ModelError
    ├── MissingPackage
    ├── ConversionError
    ├── RequestError
    │   ├── OptionError
    │   ├── ImageError
    │   │   ├── UnsupportedImage
    │   │   └── CorruptImage
    │   ├── TooLarge
    │   └── FetchError
    │       └── RefusedURL
    ├── StorageError
    │   └── StorageRefused
    ├── PipelineError
    ├── Busy
    │   └── Starting
    └── Cancelled

Each message is a complete sentence for the user: what was wrong, which value, and what would work. Messages contain no
internal details such as server paths or stack traces. `segment/web/problems.py` maps the errors to HTTP status codes,
`segment/bucket/events.py` maps them to acknowledgements of bucket events.
"""

from __future__ import annotations


class SegmentError(Exception):
    """Base class of all errors in this package."""


class SettingsError(SegmentError):
    """A SEGMENT_ environment variable is unknown or invalid; the process does not start."""


class ModelError(SegmentError):
    """The model file is missing, damaged or of an unsupported family."""


class MissingPackage(SegmentError):
    """An optional package is not installed; the message has the command that installs it."""


class ConversionError(SegmentError):
    """A config or checkpoint cannot be converted into a model file; the message names the key or tensor."""


class RequestError(SegmentError):
    """The request is invalid; the same request will fail again."""


class OptionError(RequestError):
    """An option is unknown or out of range.

    `name`: the option's name as given in the request.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class ImageError(RequestError):
    """The bytes cannot be decoded as an image."""


class UnsupportedImage(ImageError):
    """The bytes are not an image, or are in an unsupported format."""


class CorruptImage(ImageError):
    """The image is truncated or damaged."""


class TooLarge(RequestError):
    """The request needs more bytes, pixels or memory than this instance can provide."""


class FetchError(RequestError):
    """The URL could not be fetched."""


class RefusedURL(FetchError):
    """The URL is malformed, is not http(s), or points to an address that is not public."""


class StorageError(SegmentError):
    """Reading or writing a bucket or folder failed; a retry may succeed."""


class StorageRefused(StorageError):
    """Storage denies the call until somebody intervenes: permission denied, no such bucket, or a bad request."""


class PipelineError(SegmentError):
    """A Beam pipeline did not start, or did not finish."""


class Busy(SegmentError):
    """No memory or time at the moment; a later retry may succeed.

    `retry_after`: seconds after which to retry.
    """

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Starting(Busy):
    """The model is still being downloaded, converted or loaded; GET /progress has the current step."""


class Cancelled(SegmentError):
    """The client has closed the connection."""

    def __init__(self) -> None:
        super().__init__("The client has closed the connection.")

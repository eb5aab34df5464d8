"""Every error this package raises on purpose.

    SegmentError                    the root
    ├── SettingsError               an environment setting is unknown or has a bad value: the start stops
    ├── ModelError                  a model file is missing, damaged or of no known family
    ├── MissingPackage              an optional package is not installed; names the command that installs it
    ├── ConversionError             a config or checkpoint cannot become a model file; names the key or tensor
    ├── RequestError                the caller can mend it; the same request would fail again
    │   ├── OptionError             an option is unknown or out of range; names it
    │   ├── ImageError              these bytes are no image that can be segmented
    │   │   ├── UnsupportedImage    not an image, or a format that is not read here
    │   │   └── CorruptImage        an image that is cut off or damaged
    │   ├── TooLarge                more bytes, pixels or memory than this instance can ever give
    │   └── FetchError              a URL that could not be fetched
    │       └── RefusedURL          a URL that may not be fetched
    ├── StorageError                a bucket or a folder could not be read or written now; the same may pass later
    │   └── StorageRefused          it refuses for good: no permission, no such bucket, a request it does not accept
    ├── Busy                        no memory or time now; the same request may pass later
    └── Cancelled                   nobody waits for the result any more

The message of each is a whole sentence for the user: what was wrong, which value, what would work. It holds
nothing internal (no paths of the server, no stack). What each means over HTTP is said in web.py, what it means for
a bucket event in bucket.py.
"""

from __future__ import annotations


class SegmentError(Exception):
    """The root of all errors raised on purpose by this package."""


class SettingsError(SegmentError):
    """An environment setting is unknown or has a bad value."""


class ModelError(SegmentError):
    """A model file is missing, damaged or of no known family."""


class MissingPackage(SegmentError):
    """An optional package is not installed."""


class ConversionError(SegmentError):
    """A config or a checkpoint cannot become a model file."""


class RequestError(SegmentError):
    """The caller can mend it; the same request would fail again."""


class OptionError(RequestError):
    """An option is unknown or out of range.

    `name` is the option as the caller wrote it.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class ImageError(RequestError):
    """These bytes are no image that can be segmented."""


class UnsupportedImage(ImageError):
    """Not an image, or a format that is not read here."""


class CorruptImage(ImageError):
    """An image that is cut off or damaged."""


class TooLarge(RequestError):
    """More bytes, pixels or memory than this instance can ever give."""


class FetchError(RequestError):
    """A URL that could not be fetched."""


class RefusedURL(FetchError):
    """A URL that may not be fetched: malformed, not http(s), or not a public address."""


class StorageError(SegmentError):
    """A bucket or a folder could not be read or written now; the same may pass later."""


class StorageRefused(StorageError):
    """Storage refuses for good, until somebody changes it: no permission, no such bucket, a request it rejects."""


class Busy(SegmentError):
    """No memory or time now; the same request may pass after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Cancelled(SegmentError):
    """Nobody waits for the result any more: the client has closed the connection."""

    def __init__(self) -> None:
        super().__init__("The client has closed the connection.")

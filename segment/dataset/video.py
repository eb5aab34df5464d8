"""Read the frames of a video as photos, and write a video of overlays, with PyAV (https://pyav.basswood-io.com).

Each frame is passed on as a BMP file, which is lossless and fast, and then processed like any other photo, with the
same limits. One frame at a time is converted. The memory of the decoder and the encoder is not planned: some tens of
frames at 1.5 bytes per pixel, independent of the length of the video (benchmarks/results/folder-video.md).
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import av
import numpy as np
from PIL import Image

from segment.dataset import files
from segment.errors import CorruptImage, StorageError, UnsupportedImage

THREADS = 2
"""Threads of the decoder and of the encoder. Each keeps one or more frames in memory."""
X264 = {"crf": "20", "preset": "veryfast", "threads": str(THREADS), "rc-lookahead": "10"}
"""Options of the encoder: no visible loss, and little time compared with the network."""

SHORT_SHARE, SHORT_SECONDS = 0.1, 1
"""How much shorter than in its header a video may be; the sound may be longer than the pictures."""


@dataclass(frozen=True)
class Frame:
    """A frame of a video. `time`: when it is shown, in seconds.

    `size`: stored (width, height), and `stored_aspect`: width / height of a stored pixel, both before rotation.
    """

    time: Fraction
    size: tuple[int, int]
    stored_aspect: Fraction
    picture: av.VideoFrame

    @property
    def aspect(self) -> Fraction:
        """Width / height of a pixel in which the video is shown; 1 but for anamorphic videos, such as DV and DVD."""
        return 1 / self.stored_aspect if self.picture.rotation % 180 else self.stored_aspect

    @property
    def file_bytes(self) -> int:
        """The size of its BMP file without the header."""
        return 3 * self.size[0] * self.size[1]

    def bmp(self) -> bytes:
        """The frame as a BMP file, upright."""
        pixels = np.rot90(self.picture.to_ndarray(format="rgb24"), self.picture.rotation // 90)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "BMP")
        return buffer.getvalue()


def frames(path: Path) -> Iterator[Frame | CorruptImage]:
    """The frames of a video in the order in which they are shown; an error for each that cannot be decoded.

    Raises OSError if the file cannot be read, UnsupportedImage if it is not a video.
    """
    with path.open("rb") as file, _opened(file) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = THREADS
        packets, end = container.demux(stream), Fraction(0)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                decoded = packet.decode()
            except av.error.FFmpegError as error:
                yield CorruptImage(f"This frame cannot be decoded: {error.strerror}.")
                continue
            for picture in decoded:
                if picture.is_corrupt:
                    yield CorruptImage("This frame is damaged.")
                else:
                    end = Fraction(picture.pts or 0) * (picture.time_base or 0)
                    aspect = stream.sample_aspect_ratio or Fraction(1)
                    yield Frame(end, (picture.width, picture.height), aspect, picture)
        whole = stream.duration * stream.time_base if stream.duration else Fraction(container.duration or 0, 1_000_000)
        if end < whole * (1 - SHORT_SHARE) - SHORT_SECONDS:
            yield CorruptImage(f"The video is cut off: it ends after {float(end):.1f} of {float(whole):.1f} seconds.")


def _is_no_video(error: Exception) -> bool:
    """Whether the content of a file is the reason. In an empty file, seeking fails with EINVAL."""
    return isinstance(error, av.error.FFmpegError) or (isinstance(error, OSError) and error.errno == errno.EINVAL)


@contextmanager
def _opened(file: Any) -> Iterator[Any]:
    try:
        container = av.open(file)
    except (av.error.FFmpegError, OSError) as error:
        if not _is_no_video(error):
            raise
        raise UnsupportedImage("This file is not a video in a supported format, or it is truncated.") from None
    with container:
        if not container.streams.video:
            raise UnsupportedImage("There is no video in this file.")
        yield container


class Writer:
    """Writes an MP4 file of frames, which appears when it is complete. A context manager.

    Its size and aspect are those of the first frame; the size is rounded down to even numbers, as H.264 requires. All
    frames are scaled to it.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._partial = path, files.partial(path)
        self._container: Any = None
        self._stream: Any = None
        self._last = -1

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._partial), "w", format="mp4")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._stream and not kind:
            self._mux(None)
        self._container.close()
        if self._stream and not kind:
            os.replace(self._partial, self._path)
        else:
            self._partial.unlink(missing_ok=True)

    def add(self, time: Fraction, picture: bytes, aspect: Fraction = Fraction(1)) -> None:
        """Show this picture, an image file, from `time` on. `aspect`: width / height of a pixel, as of the first.

        Raises StorageError if the file cannot be written.
        """
        with Image.open(io.BytesIO(picture)) as image:
            frame = av.VideoFrame.from_ndarray(np.asarray(image.convert("RGB")), format="rgb24")
        if not self._stream:
            self._stream = self._container.add_stream("libx264", rate=30, options=X264)
            self._stream.width, self._stream.height = frame.width & ~1 or 2, frame.height & ~1 or 2
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = Fraction(1, 90_000)
            self._stream.codec_context.sample_aspect_ratio = aspect
        frame = frame.reformat(self._stream.width, self._stream.height, "yuv420p")
        frame.time_base = Fraction(1, 90_000)
        frame.pts = self._last = max(round(time * 90_000), self._last + 1)
        self._mux(frame)

    def _mux(self, frame: av.VideoFrame | None) -> None:
        try:
            self._container.mux(self._stream.encode(frame))
        except (av.error.FFmpegError, OSError) as error:
            raise StorageError(f"{self._path} cannot be written: {error.strerror}.") from error

"""Read the frames of a video as photos, and write a video of overlays, with PyAV (https://pyav.basswood-io.com).

A frame is handed on as a BMP file: nothing is lost, writing and reading it takes little time, and from then on it is a
photo like any other, under the same limits. One frame at a time is converted. What a decoder or encoder keeps is not
planned; it is some tens of frames at 1.5 bytes per pixel, however long the video is.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
from PIL import Image

from segment.errors import CorruptImage, StorageError, UnsupportedImage

THREADS = 2
"""Threads of the decoder and of the encoder; each keeps a frame or more. The network has the other CPUs."""
X264 = {"crf": "20", "preset": "veryfast", "threads": str(THREADS), "rc-lookahead": "10"}
"""Options of the encoder: no loss that can be seen, and little time beside the network's."""

SHORT_SHARE, SHORT_SECONDS = 0.1, 1
"""By how much a video may be shorter than its header says; the sound may be longer than the pictures."""


@dataclass(frozen=True)
class Frame:
    """A frame of a video. `time`: when it is shown, in seconds. `size`: (width, height) as it is stored."""

    time: Fraction
    size: tuple[int, int]
    picture: av.VideoFrame

    @property
    def file_bytes(self) -> int:
        """The length of its BMP file, but for the header."""
        return 3 * self.size[0] * self.size[1]

    def bmp(self) -> bytes:
        """The frame as a BMP file, upright."""
        pixels = np.rot90(self.picture.to_ndarray(format="rgb24"), self.picture.rotation // 90)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "BMP")
        return buffer.getvalue()


def frames(path: Path) -> Iterator[Frame | CorruptImage]:
    """The frames of a video in the order in which they are shown; an error stands for one that cannot be decoded.

    Raises OSError if the file cannot be read, UnsupportedImage if it is no video.
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
                    yield Frame(end, (picture.width, picture.height), picture)
        whole = stream.duration * stream.time_base if stream.duration else Fraction(container.duration or 0, 1_000_000)
        if end < whole * (1 - SHORT_SHARE) - SHORT_SECONDS:
            yield CorruptImage(f"The video is cut off: it ends after {float(end):.1f} of {float(whole):.1f} seconds.")


@contextmanager
def _opened(file: Any) -> Iterator[Any]:
    try:
        container = av.open(file)
    except av.error.FFmpegError:
        raise UnsupportedImage("This file is no video that can be read, or it is cut off.") from None
    with container:
        if not container.streams.video:
            raise UnsupportedImage("There is no video in this file.")
        yield container


class Writer:
    """An MP4 file of frames, which appears when it is complete. A context manager.

    Its size is that of the first frame, or a pixel less where that is odd, as H.264 requires. All frames are scaled to
    it.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._partial = path, path.with_name(f".{path.name}.partial")
        self._container: Any = None
        self._stream: Any = None
        self._last = -1

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._partial), "w", format="mp4")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._stream and not kind:
            self._mux(None)
        self._container.close()
        if self._stream and not kind:
            os.replace(self._partial, self._path)
        else:
            self._partial.unlink(missing_ok=True)

    def add(self, time: Fraction, picture: bytes) -> None:
        """Show this picture, an image file, from `time` on. Raises StorageError if the file cannot be written."""
        with Image.open(io.BytesIO(picture)) as image:
            frame = av.VideoFrame.from_ndarray(np.asarray(image.convert("RGB")), format="rgb24")
        if not self._stream:
            self._stream = self._container.add_stream("libx264", rate=30, options=X264)
            self._stream.width, self._stream.height = frame.width & ~1 or 2, frame.height & ~1 or 2
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = Fraction(1, 90_000)
        frame = frame.reformat(self._stream.width, self._stream.height, "yuv420p")
        frame.time_base = Fraction(1, 90_000)
        frame.pts = self._last = max(round(time * 90_000), self._last + 1)
        self._mux(frame)

    def _mux(self, frame: av.VideoFrame | None) -> None:
        try:
            self._container.mux(self._stream.encode(frame))
        except (av.error.FFmpegError, OSError) as error:
            raise StorageError(f"{self._path} cannot be written: {error.strerror}.") from error

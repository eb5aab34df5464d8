"""Tests of segmenting videos into overlay videos and datasets; faulty videos and frames must not end the run."""

from __future__ import annotations

import csv
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pycocotools.coco import COCO

from segment import extras
from segment.__main__ import main
from segment.dataset import video
from segment.errors import UnsupportedImage
from segment.service import Result, Service
from tests.compiled import compiled_once  # noqa: F401
from training.shapes import scene

SIZE = (160, 120)
TIMES = [Fraction(n * n, 25) for n in range(8)]
"""Times of the frames, at a variable rate."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGMENT_RENDER_FACTOR", "8")


def write(path: Path, codec: str = "libx264", frames: int = 8, aspect: Fraction = Fraction(1)) -> Path:
    """Write a video whose frames are generated scenes. `aspect`: width / height of a pixel."""
    container: Any = av.open(str(path), "w")
    with container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = 1
        stream.codec_context.sample_aspect_ratio = aspect
        for number in range(frames):
            picture = av.VideoFrame.from_ndarray(scene(number, SIZE)[0], format="rgb24")
            picture.pts = number * number
            picture.time_base = Fraction(1, 25)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def damaged(path: Path) -> Path:
    """Overwrite a frame in the middle of the video."""
    container: Any = av.open(str(path))
    with container:
        packet = list(container.demux(video=0))[4]
    data = bytearray(path.read_bytes())
    data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(data)
    return path


def turned_clockwise(path: Path) -> Path:
    """Set the matrix for the display to a quarter turn."""
    data = path.read_bytes()
    unity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    place = data.index(unity, data.index(b"tkhd"))
    clockwise = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, SIZE[1] << 16, 0, 1 << 30)
    path.write_bytes(data[:place] + clockwise + data[place + len(unity) :])
    return path


def run(*arguments: object) -> int:
    return main(["image", *(str(argument) for argument in arguments)])


def errors(out: Path) -> list[list[str]]:
    with (out / "errors.csv").open(newline="") as file:
        return list(csv.reader(file))[1:]


def names(out: Path) -> list[str]:
    dataset = COCO(out / "instances.json")
    return [image["file_name"] for image in dataset.loadImgs(dataset.getImgIds())]


def shown(path: Path) -> list[tuple[Fraction, NDArray[np.uint8]]]:
    """The time and pixels of each frame."""
    container: Any = av.open(str(path))
    with container:
        return [(frame.pts * frame.time_base, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def test_overlays_of_a_video_are_a_video(tmp_path: Path) -> None:
    clip, out = write(tmp_path / "clip.mp4"), tmp_path / "out"
    assert run(clip, "-o", out) == 0
    assert [path.name for path in out.iterdir() if not path.name.startswith(".")] == ["clip.overlay.mp4"]
    before, after = shown(clip), shown(out / "clip.overlay.mp4")
    assert [time for time, _ in after] == [time for time, _ in before] == TIMES
    assert run(tmp_path / "clip.mp4", "-o", tmp_path / "files", "-f", "png") == 0
    for (_, photo), (_, overlay) in zip(before, after, strict=True):
        assert overlay.shape == photo.shape
        assert np.abs(overlay.astype(int) - photo).mean() > 3, "the overlay must be drawn"
        assert np.abs(overlay.astype(int) - photo).mean() < 60, "the photo must stay visible"


def test_a_frame_is_segmented_as_the_photo_it_is(tmp_path: Path) -> None:
    clip, out = write(tmp_path / "clip.mkv", "ffv1"), tmp_path / "out"
    assert run(clip, "-o", out, "-f", "json,ids", "-d", "coco") == 0
    for number, (_, pixels) in enumerate(shown(clip), 1):
        Image.fromarray(pixels).save(tmp_path / f"{number:06}.png")
    assert run(*sorted(tmp_path.glob("*.png")), "-o", tmp_path / "photos", "-f", "json,ids") == 0
    frames = sorted((out / "clip.mkv").iterdir())
    assert [path.name for path in frames] == sorted(path.name for path in (tmp_path / "photos").glob("0*"))
    assert len(frames) == 16
    for frame in frames:
        assert frame.read_bytes() == (tmp_path / "photos" / frame.name).read_bytes()
    assert names(out) == [f"clip.mkv/{number:06}.png" for number in range(1, 9)]


def test_a_tree_of_photos_and_videos(tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    (photos / "deeper").mkdir(parents=True)
    write(photos / "deeper" / "clip.mp4", frames=2)
    write(photos / "IMG_1.MOV", frames=1)
    Image.fromarray(scene(1, SIZE)[0]).save(photos / "IMG_1.jpg")
    assert run(photos, "-o", out, "-f", "jpeg,json", "-d", "coco") == 0
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file() and path.name[0] != "."}
    assert found == {
        "IMG_1.jpg.overlay.jpg",
        "IMG_1.jpg.detections.json",
        "IMG_1.MOV.overlay.mp4",
        "IMG_1.MOV/000001.detections.json",
        "deeper/clip.overlay.mp4",
        "deeper/clip.mp4/000001.detections.json",
        "deeper/clip.mp4/000002.detections.json",
        "instances.json",
    }
    assert names(out) == [
        "IMG_1.MOV/000001.png",
        "IMG_1.jpg",
        "deeper/clip.mp4/000001.png",
        "deeper/clip.mp4/000002.png",
    ]


@pytest.mark.parametrize("formats", [("-f", "png"), ()], ids=["overlay", "dataset only"])
def test_a_run_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str], formats: tuple[str, ...]) -> None:
    clip, out = write(tmp_path / "clip.mp4"), tmp_path / "out"
    arguments = (clip, "-o", out, "-d", "coco", *formats)
    assert run(*arguments) == 0
    first = (out / "instances.json").read_bytes()
    capsys.readouterr()
    assert run(*arguments) == 0
    assert " ms\n" not in capsys.readouterr().out
    assert (out / "instances.json").read_bytes() == first
    write(clip, frames=3)
    assert run(*arguments) == 0
    assert capsys.readouterr().out.count(" ms\n") == 3
    assert len(names(out)) == 3


def test_a_stopped_run_goes_on_with_the_next_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, out = write(tmp_path / "clip.mp4"), tmp_path / "out"
    segment, count = Service.segment, iter(range(100))

    def stop(*arguments: Any) -> Result:
        if next(count) == 5:
            raise KeyboardInterrupt
        return segment(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Service, "segment", stop)
        assert run(clip, "-o", out, "-d", "coco", "-j", "1") == 130
    capsys.readouterr()
    assert run(clip, "-o", out, "-d", "coco") == 0
    assert 1 <= capsys.readouterr().out.count(" ms\n") <= 4
    assert len(names(out)) == 8


def test_damaged_frame_is_listed_in_errors_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip, out = damaged(write(tmp_path / "clip.mp4")), tmp_path / "out"
    for _ in range(2):
        assert run(clip, "-o", out, "-d", "coco", "-f", "png") == 1
        ((name, error),) = errors(out)
        assert name.startswith("clip.mp4/00000")
        assert error.startswith("This frame ")
        assert len(names(out)) == len(shown(out / "clip.overlay.mp4")) == 7
    assert capsys.readouterr().out.count(" ms\n") == 7, "the second run must not segment again"


def test_broken_videos_are_listed_in_errors_csv(tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    (photos / "text.mp4").write_text("no video")
    (photos / "empty.mp4").touch()
    cut = write(photos / "cut.mkv", frames=20)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    Image.fromarray(scene(1, SIZE)[0]).save(photos / "z.jpg")
    assert run(photos, "-o", out, "-d", "coco") == 1
    (cut_name, cut_error), empty, text = errors(out)
    assert cut_name.startswith("cut.mkv/0000")
    assert "cut off" in cut_error
    assert empty[1] == text[1]
    assert text == ["text.mp4", "This file is not a video in a supported format, or it is truncated."]
    assert names(out)[-1] == "z.jpg"
    assert len(names(out)) > 3


def test_a_turned_video_is_upright(tmp_path: Path) -> None:
    """Phones store pixels rotated, with a matrix for the display (ISO/IEC 14496-12, 8.3.2)."""
    clip = turned_clockwise(write(tmp_path / "clip.mp4", frames=1))
    (frame,) = video.frames(clip)
    assert isinstance(frame, video.Frame)
    (tmp_path / "frame.bmp").write_bytes(frame.bmp())
    with Image.open(tmp_path / "frame.bmp") as upright:
        turned = np.asarray(Image.fromarray(shown(clip)[0][1]).transpose(Image.Transpose.ROTATE_270))
        assert np.array_equal(np.asarray(upright), turned)
    assert run(clip, "-o", tmp_path / "out") == 0
    assert shown(tmp_path / "out" / "clip.overlay.mp4")[0][1].shape == turned.shape


@pytest.mark.parametrize("turned", [False, True])
def test_overlays_are_shown_in_the_aspect_of_the_video(tmp_path: Path, turned: bool) -> None:
    clip = write(tmp_path / "clip.mp4", frames=1, aspect=Fraction(4, 3))
    if turned:
        turned_clockwise(clip)
    assert run(clip, "-o", tmp_path / "out") == 0
    container: Any = av.open(str(tmp_path / "out" / "clip.overlay.mp4"))
    with container:
        (stream,) = container.streams.video
        assert stream.sample_aspect_ratio == (Fraction(3, 4) if turned else Fraction(4, 3))
        assert (stream.width, stream.height) == (SIZE[::-1] if turned else SIZE)


def test_odd_sizes_are_rounded_to_even(tmp_path: Path) -> None:
    with video.Writer(tmp_path / "odd.mp4") as writer:
        for number in range(3):
            Image.fromarray(scene(number, (33, 31))[0]).save(tmp_path / "frame.jpg")
            writer.add(Fraction(number), (tmp_path / "frame.jpg").read_bytes())
    assert [pixels.shape for _, pixels in shown(tmp_path / "odd.mp4")] == [(30, 32, 3)] * 3


def test_nothing_is_left_of_a_video_that_was_not_finished(tmp_path: Path) -> None:
    Image.fromarray(scene(1, SIZE)[0]).save(tmp_path / "frame.jpg")

    def write_half() -> None:
        with video.Writer(tmp_path / "out" / "clip.mp4") as writer:
            for picture in ((tmp_path / "frame.jpg").read_bytes(), b"no picture"):
                writer.add(Fraction(0), picture)

    with pytest.raises(UnidentifiedImageError):
        write_half()
    with video.Writer(tmp_path / "out" / "empty.mp4"):
        pass
    assert not list((tmp_path / "out").iterdir())


def test_file_without_video_stream_is_refused(tmp_path: Path) -> None:
    container: Any = av.open(str(tmp_path / "sound.mp4"), "w")
    with container:
        stream = container.add_stream("aac", rate=44_100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44_100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(UnsupportedImage, match="There is no video in this file"):
        list(video.frames(tmp_path / "sound.mp4"))


def test_missing_package_is_listed_in_errors_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write(tmp_path / "clip.mp4", frames=1)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(clip, "-o", tmp_path / "out") == 1
    assert extras.command("video") in errors(tmp_path / "out")[0][1]

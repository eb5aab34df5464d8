"""Files that are given by a path or a URL."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from segment.errors import ModelError
from segment.modelfile import CHECKPOINT_SUFFIXES, MODEL_SUFFIX
from segment.progress import Report
from segment.zoo.download import download, download_once

LARGEST_CHECKPOINT, LARGEST_TEXT = 4 << 30, 1 << 20
"""Maximum bytes of a downloaded checkpoint or model file, and of a downloaded config or labels file."""
_CHECKSUM = re.compile(r"model_(?:final|[0-9]{7})_([0-9a-f]{6})$|-(?=[0-9]*[a-f])([0-9a-f]{8,64})$")
"""The end of a published checkpoint's name: the first digits of its MD5 (detectron2's zoo) or SHA-256 (torch.hub).
Other numbers are iterations, such as in detectron2's model_0004999.pth, or dates."""


@dataclass(frozen=True)
class LocalFile:
    """A file of this machine, which is used where it is."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def stem(self) -> str:
        """The file's name without its extension."""
        return self.path.stem

    @property
    def key(self) -> str:
        """The absolute path."""
        return str(self.path.resolve())

    @property
    def version(self) -> str:
        """Text that differs for another file and for other contents."""
        status = self.path.stat()
        return f"{self.key} {status.st_size} {status.st_mtime_ns}"

    def beside(self, name: str) -> LocalFile:
        """A file in the same folder."""
        return LocalFile(self.path.parent / name)

    def check(self) -> None:
        """Raise ModelError if there is no such file."""
        if not self.path.is_file():
            raise ModelError(
                f"There is no file {self.path}. A model is a model file ({MODEL_SUFFIX}), a checkpoint "
                f"({', '.join(CHECKPOINT_SUFFIXES)}) with its config, or a name that `python -m segment models` lists."
            )

    def fetch(self, _folder: Path, _report: Report) -> Path:
        """The path of the file."""
        return self.path

    def fetch_text(self, _folder: Path) -> Path:
        """The path of the file."""
        return self.path

    def save_as(self, path: Path, _report: Report) -> None:
        """Copy the file to `path`, unless it is that file."""
        if self.path.resolve() != path.resolve():
            shutil.copyfile(self.path, path)


@dataclass(frozen=True)
class RemoteFile:
    """A file on a web server."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def stem(self) -> str:
        """The file's name without its extension."""
        return PurePosixPath(self._name).stem

    @property
    def key(self) -> str:
        """The URL."""
        return self.url

    @property
    def version(self) -> str:
        """The URL; the server is not asked for the version of the file."""
        return self.url

    def beside(self, name: str) -> RemoteFile:
        """A file in the same folder of the server."""
        return RemoteFile(f"{self.url.rpartition('/')[0]}/{name}")

    def check(self) -> None:
        """Do nothing; the download raises the errors."""

    def fetch(self, folder: Path, report: Report) -> Path:
        """The path of a large file in `folder`, downloaded if it is not there. Raises ModelError, FetchError."""
        path = folder / self._name
        self.save_as(path, report)
        return path

    def fetch_text(self, folder: Path) -> Path:
        """The path of a text file in `folder`, downloaded again each time. Raises ModelError, FetchError."""
        path = folder / self._name
        download(self.url, path, digest="", limit=LARGEST_TEXT)
        return path

    def save_as(self, path: Path, report: Report) -> None:
        """Download a large file to `path` unless it exists. Raises ModelError, FetchError."""
        checksum = _CHECKSUM.search(self.stem)
        digest = checksum[1] or checksum[2] if checksum else ""
        download_once(self.url, path, digest=digest, limit=LARGEST_CHECKPOINT, report=report)

    @property
    def _name(self) -> str:
        return PurePosixPath(urlsplit(self.url).path).name


File = LocalFile | RemoteFile


def at(address: str) -> File:
    """The file with this path or URL."""
    return RemoteFile(address) if address.startswith(("http://", "https://")) else LocalFile(Path(address))

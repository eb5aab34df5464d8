"""A client for a Pub/Sub pull subscription, with the REST API
(https://cloud.google.com/pubsub/docs/reference/rest/v1/projects.subscriptions).

Google's client library is not used, because it depends on gRPC, which nothing else needs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import google.auth
import requests
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import AuthorizedSession

from segment.errors import SettingsError, StorageError, StorageRefused

SCOPES = ("https://www.googleapis.com/auth/pubsub",)
SECONDS = 30.0
"""Time limit of a call."""


@dataclass(frozen=True)
class Letter:
    """A pulled message. `receipt`: the id for acknowledging it. `message`: the message in the format of a push."""

    id: str
    receipt: str
    message: Mapping[str, Any]


class Subscription:
    """A subscription, named projects/PROJECT/subscriptions/NAME. Raises SettingsError for another name.

    `emulator`: HOST:PORT of a server that is used instead of Google's, without authorisation.
    """

    def __init__(self, name: str, emulator: str = "") -> None:
        if not re.fullmatch(r"projects/[^/]+/subscriptions/[^/]+", name):
            raise SettingsError(f"The subscription is {name!r}; it must be projects/PROJECT/subscriptions/NAME.")
        self.name, self._emulator = name, emulator

    def pull(self, most: int) -> list[Letter]:
        """Pull up to `most` messages without waiting. Raises StorageError, StorageRefused."""
        found = self._call("pull", {"maxMessages": most, "returnImmediately": True})
        return [
            Letter(str(one["message"].get("messageId", "")), str(one["ackId"]), one["message"])
            for one in found.get("receivedMessages", [])
        ]

    def extend(self, letters: Sequence[Letter], seconds: int) -> None:
        """Extend the acknowledgement deadline of messages to `seconds`. Raises StorageError, StorageRefused."""
        if letters:
            self._call("modifyAckDeadline", {"ackIds": _receipts(letters), "ackDeadlineSeconds": seconds})

    def acknowledge(self, letters: Sequence[Letter]) -> None:
        """Acknowledge messages, which removes them. Raises StorageError, StorageRefused."""
        if letters:
            self._call("acknowledge", {"ackIds": _receipts(letters)})

    @cached_property
    def _session(self) -> requests.Session:
        if self._emulator:
            return requests.Session()
        credentials, _ = google.auth.default(SCOPES)
        session: requests.Session = AuthorizedSession(credentials)  # type: ignore[no-untyped-call]
        return session

    def _call(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        server = f"http://{self._emulator}" if self._emulator else "https://pubsub.googleapis.com"
        what = f"Could not {method} messages of {self.name}"
        try:
            answer = self._session.post(f"{server}/v1/{self.name}:{method}", json=body, timeout=SECONDS)
            document: dict[str, Any] = answer.json() if answer.content else {}
        except (requests.RequestException, GoogleAuthError, ValueError) as error:
            raise StorageError(f"{what}: {error}") from error
        if not answer.ok:
            kind = StorageRefused if answer.status_code in (400, 401, 403, 404) else StorageError
            raise kind(f"{what}: {answer.status_code} {document.get('error', {}).get('message', answer.reason)}")
        return document


def _receipts(letters: Sequence[Letter]) -> list[str]:
    return [letter.receipt for letter in letters]

"""The password: asked for on every route, compared in constant time, tried a few times only."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from collections import OrderedDict
from dataclasses import dataclass
from time import monotonic

FREE = 5  # wrong passwords before an address has to wait
LONGEST = 300.0  # seconds
_REMEMBERED = 10_000  # addresses


@dataclass(frozen=True)
class Verdict:
    """Whether somebody may come in.

    Attributes:
        admitted: Whether the right password was given.
        wait: Seconds before another try is looked at, or 0.
    """

    admitted: bool
    wait: float = 0.0


class Password:
    """User and password that everybody needs.

    Args:
        user: The user.
        password: The password.

    >>> door = Password("ann", "secret")
    >>> door.check("Basic " + base64.b64encode(b"ann:secret").decode(), "10.0.0.1").admitted
    True
    >>> door.check("", "10.0.0.1")
    Verdict(admitted=False, wait=0.0)
    """

    def __init__(self, user: str, password: str) -> None:
        self._digest = _digest(f"{user}:{password}".encode())
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()

    @classmethod
    def from_environment(cls) -> Password:
        """From `ERASE_SD_AUTH`.

        Raises:
            ValueError: If it is not set to `user:password`.
        """
        user, colon, password = os.environ.get("ERASE_SD_AUTH", "").partition(":")
        if not user or not colon or not password:
            raise ValueError("--auth reads the environment: set ERASE_SD_AUTH=user:password")
        return cls(user, password)

    def check(self, header: str, address: str, *, known: bool = False) -> Verdict:
        """Look at what a browser sends.

        After `FREE` wrong passwords an address waits a second, and after each one more twice as
        long; until then no password of it is looked at, the right one neither.

        Args:
            header: The request's Authorization.
            address: Where it comes from.
            known: Whether this browser gave the right password before: it does not wait for others
                of its address.
        """
        if not header:
            return Verdict(False)
        count, until = self._wrong.get(address, (0, 0.0))
        left = until - monotonic()
        if left > 0 and not known:
            return Verdict(False, left)
        if hmac.compare_digest(_digest(_credentials(header)), self._digest):
            if not known:
                self._wrong.pop(address, None)
            return Verdict(True)
        wait = min(LONGEST, 2.0 ** (count + 1 - FREE)) if count + 1 >= FREE else 0.0
        self._wrong[address] = (count + 1, monotonic() + wait)
        self._wrong.move_to_end(address)
        while len(self._wrong) > _REMEMBERED:
            self._wrong.popitem(last=False)
        return Verdict(False, wait)


def _credentials(header: str) -> bytes:
    """`user:password` of a Basic header; anything else is a wrong one."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()

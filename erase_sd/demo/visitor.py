"""Who visits, and what is theirs: known by a cookie, kept in a folder that only they can read."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import secrets
import shutil
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from erase_sd.artifact.erasure import Erasure
from erase_sd.demo.limits import Limits
from erase_sd.demo.pictures import Pictures, Shot


@dataclass(frozen=True)
class Session:
    """What one page of a visitor shows, and what it was made from.

    Attributes:
        home: The visitor's folder; files of this session are made below it.
        model: Name of the model that the erasures are for.
        stack: Erasures, in the order they were added.
        scale: What multiplies their change.
        own: The visitor's own prompt.
        seed: Seed of the first picture of each prompt.
        brought: Whether an erasure file was added.
        shots: What was drawn.
        pictures: Files of the untouched and the erased model's pictures, or None.
        scores: HTML of what was seen in them.
        folder: Where pictures and files to take home lie, or None.
        files: Files to take home, by kind.
        python: Code that does the same.
        shell: Commands that do the same.

    >>> Session(Path("visits/1"), "emoji-sd").names
    []
    """

    home: Path
    model: str
    stack: tuple[Erasure, ...] = ()
    scale: float = 1.0
    own: str = ""
    seed: int = 0
    brought: bool = False
    shots: tuple[Shot, ...] = ()
    pictures: Pictures | None = None
    scores: str = ""
    folder: Path | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    python: str = ""
    shell: str = ""

    @property
    def names(self) -> list[str]:
        """Names of what is erased."""
        return [n for e in self.stack for n in e.names]


@dataclass(eq=False)
class Visitor:
    """One browser, as its cookie tells.

    Attributes:
        name: Made from the cookie; it does not lead back to it.
        address: Where the visitor comes from: an IPv4 address or an IPv6 network.
        folder: The visitor's folder.
        limits: What visitors may ask for.
        sessions: What the visitor's pages show, by their secret names.
        events: Names of the visitor's last requests for a job.
        uploaded: When files were uploaded.
        unheard: How many jobs of each page nobody has listened to.
        streams: Open answers without an end, by what they are for.
        admitted: Whether the right password was given.
        seen: When the last request came.
    """

    name: str
    address: str
    folder: Path
    limits: Limits
    sessions: dict[str, Session] = field(default_factory=dict)
    events: deque[str] = field(default_factory=lambda: deque(maxlen=64))
    uploaded: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    unheard: Counter[str] = field(default_factory=Counter)
    streams: Counter[str] = field(default_factory=Counter)
    admitted: bool = False
    seen: float = field(default_factory=time.monotonic)

    def session(self, tab: str, model: str) -> Session:
        """What a page shows; a new one shows nothing."""
        return self.sessions.get(tab) or Session(self.folder, model)

    def keep(self, tab: str, session: Session) -> None:
        """Remember what a page shows now, and delete what it showed before."""
        old = self.sessions.pop(tab, None)
        self.sessions[tab] = session
        if old is not None and old.folder is not None and old.folder != session.folder:
            shutil.rmtree(old.folder, ignore_errors=True)
        while len(self.sessions) > self.limits.tabs:
            gone = self.sessions.pop(next(iter(self.sessions)))
            if gone.folder is not None:
                shutil.rmtree(gone.folder, ignore_errors=True)

    def may_ask(self, tab: str) -> bool:
        """Whether a page may ask for one more job: outcomes wait in memory until it listens."""
        if not self.streams[f"listen {tab}"]:
            self.unheard[tab] += 1
        return self.unheard.total() <= self.limits.unheard

    @contextlib.contextmanager
    def streaming(self, what: str, tab: str) -> Iterator[None]:
        """An answer without an end to a page: a heartbeat, or outcomes it listens to."""
        key = f"{what} {tab}"
        self.streams[key] += 1
        if what == "listen":
            del self.unheard[tab]
        try:
            yield
        finally:
            self.streams[key] -= 1
            self.streams += Counter()  # forgets what is 0

    def owns(self, path: Path) -> bool:
        """Whether a file is the visitor's own."""
        return path.resolve().is_relative_to(self.folder.resolve())

    def upload(self, name: str, content: bytes) -> Path:
        """Keep an uploaded file until a job has read it.

        Raises:
            ValueError: If there are too many, or too many came in an hour.
        """
        now = time.monotonic()
        kept = self.folder / "uploads"
        lying = sum(1 for _ in kept.iterdir()) if kept.is_dir() else 0
        while self.uploaded and now - self.uploaded[0] > 3600:
            self.uploaded.popleft()
        if lying >= self.limits.uploads or len(self.uploaded) >= self.limits.uploads_per_hour:
            raise ValueError("too many uploads; try again later")
        self.uploaded.append(now)
        place = kept / secrets.token_hex(16)
        place.mkdir(parents=True, mode=0o700)
        path = place / name
        path.write_bytes(content)
        return path


class Visitors:
    """All visitors, in memory; cookies are ours or worth nothing.

    Args:
        folder: Where their folders are made.
        limits: How many are remembered, and how long.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder = folder / "visits"
        self.limits = limits
        self._key = secrets.token_bytes(32)
        self._known: dict[str, Visitor] = {}

    def ticket(self) -> str:
        """A new cookie; nothing is remembered before it comes back."""
        token = secrets.token_urlsafe(32)
        return f"{token}.{self._mac('ticket', token)}"

    def find(self, ticket: str, address: str) -> Visitor | None:
        """The visitor with a cookie, or None if we never gave it to anybody."""
        token, _, mac = ticket.partition(".")
        if not hmac.compare_digest(mac.encode(), self._mac("ticket", token).encode()):
            return None
        name = self._mac("visitor", token)
        if name not in self._known:
            self._make_room()
            self._known[name] = Visitor(name, _place(address), self.folder / name, self.limits)
        visitor = self._known[name]
        visitor.address, visitor.seen = _place(address), time.monotonic()
        return visitor

    def tab(self, visitor: Visitor, name: str) -> str:
        """The secret name of a visitor's page: whoever knows only `name` reaches nothing by it."""
        return self._mac("tab", f"{visitor.name} {name}")

    def sweep(self) -> None:
        """Delete what is left of visits that have ended."""
        now = time.monotonic()
        for visitor in list(self._known.values()):
            quiet = now - visitor.seen
            idle = not visitor.streams.total() and quiet > self.limits.idle_seconds
            if idle or quiet > self.limits.stay_seconds:
                self._forget(visitor)

    def size(self) -> int:
        """Bytes of all that visitors have."""
        return sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file())

    def _make_room(self) -> None:
        """Let the address with the most visitors lose the one that was quiet longest."""
        while len(self._known) >= self.limits.visitors:
            addresses = [v.address for v in self._known.values()]
            crowd = max(set(addresses), key=addresses.count)
            there = [v for v in self._known.values() if v.address == crowd]
            self._forget(min(there, key=lambda v: (v.streams.total() > 0, v.seen)))

    def _forget(self, visitor: Visitor) -> None:
        del self._known[visitor.name]
        shutil.rmtree(visitor.folder, ignore_errors=True)

    def _mac(self, use: str, text: str) -> str:
        message = f"{use} {text}".encode()
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()[:40]


def _place(address: str) -> str:
    """An address, or the network of an IPv6 one: a visitor has a whole network of those.

    >>> _place("2001:db8::1"), _place("10.0.0.1")
    ('2001:db8::/64', '10.0.0.1')
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"  # a socket without an address
    if isinstance(found, ipaddress.IPv6Address) and not found.ipv4_mapped:
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)

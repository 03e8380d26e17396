"""Which page a request comes from, and which name of this server it was sent to."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class Stranger(ValueError):
    """A request that another site, or another name of this server, has sent."""


class Origins:
    """Names under which the page may be asked for.

    Args:
        hosts: Names or addresses without port, besides those of this machine for itself.

    Raises:
        ValueError: If one of them is none.

    >>> Origins(["demo.example"]).check([(b"host", b"demo.example")], changes=False)
    """

    def __init__(self, hosts: Iterable[str] = ()) -> None:
        self.hosts = {*LOOPBACK, *(host_name(h) for h in hosts)}

    def check(self, headers: Iterable[tuple[bytes, bytes]], *, changes: bool) -> None:
        """Let through what the page itself asks for.

        A page of another site has another `Origin`; a name that leads here by its owner's will
        alone (DNS rebinding) is not among ours. Browsers send `Origin` with all that changes
        something.

        Args:
            headers: The request's, lower case.
            changes: Whether the request may change something.

        Raises:
            Stranger: With what was wrong.
        """
        found: dict[bytes, list[str]] = {b"host": [], b"origin": [], b"sec-fetch-site": []}
        for name, value in headers:
            if name in found:
                found[name].append(value.decode("latin-1"))
        if len(found[b"host"]) != 1:
            raise Stranger("expected one Host")
        host = found[b"host"][0].lower()
        if _without_port(host) not in self.hosts:
            raise Stranger("this name is not served here; the operator names it by --allowed-host")
        if any(o.lower() not in (f"http://{host}", f"https://{host}") for o in found[b"origin"]):
            raise Stranger("that came from another site")
        if changes and len(found[b"origin"]) != 1:
            raise Stranger("expected one Origin")
        if changes and any(s != "same-origin" for s in found[b"sec-fetch-site"]):
            raise Stranger("that came from another site")


def host_name(text: str) -> str:
    """A host as browsers write it.

    Raises:
        ValueError: If it has more than a name or an address.

    >>> host_name("Demo.Example"), host_name("::1")
    ('demo.example', '[::1]')
    """
    bare = text.strip().lower().removeprefix("[").removesuffix("]")
    try:
        return f"[{ipaddress.IPv6Address(bare)}]"
    except ValueError:
        pass  # a name, or an IPv4 address
    parts = urlsplit(f"//{bare}")
    if not bare or parts.netloc != parts.hostname or parts.path or "*" in bare:
        raise ValueError(f"expected a name or an address without port, got {text!r}")
    return bare


def _without_port(host: str) -> str:
    """The host of a `Host` header, which may have a port.

    >>> _without_port("[::1]:7860"), _without_port("a:1:2")
    ('[::1]', 'a:1:2')
    """
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() and (":" not in name or name.endswith("]")) else host

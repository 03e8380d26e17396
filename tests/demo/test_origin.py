"""Names and origins, as headers have them."""

import pytest

from erase_sd.demo.origin import Origins, Stranger, host_name


def check(origins, host, origin=None, changes=True):
    headers = [(b"host", host.encode())]
    headers += [(b"origin", origin.encode())] if origin is not None else []
    origins.check(headers, changes=changes)


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:7860", "LOCALHOST:1", "127.0.0.1:7860", "[::1]", "[::1]:7860"]
)
def test_this_machine_by_its_own_names(host):
    check(Origins(), host, f"http://{host}")
    check(Origins(), host, changes=False)


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:7860", "http://localhost:7861"),
        ("localhost:7860", "http://localhost:78600"),
        ("localhost:7860", "http://localhost"),
        ("localhost:7860", "ws://localhost:7860"),
        ("localhost:7860", "null"),
        ("localhost:7860", "http://localhost:7860 http://evil.example"),
        ("localhost:7860", "http://user@localhost:7860"),
        ("127.0.0.1.evil.example", "http://127.0.0.1.evil.example"),
        ("localhost.", "http://localhost."),
        ("[::1", "http://[::1"),
        ("::1", "http://::1"),
        ("127.1", "http://127.1"),
        ("0.0.0.0:7860", "http://0.0.0.0:7860"),
        ("2130706433", "http://2130706433"),
    ],
)
def test_everything_else_is_strange(host, origin):
    with pytest.raises(Stranger):
        check(Origins(), host, origin)


def test_one_host_and_one_origin():
    good = [(b"host", b"localhost"), (b"origin", b"http://localhost")]
    Origins().check(good, changes=True)
    for bad in ([], good[1:], [*good, good[0]], [*good, good[1]], good[:1]):
        with pytest.raises(Stranger):
            Origins().check(bad, changes=True)


@pytest.mark.parametrize("text", ["", "a/b", "http://a", "a:80", "*.a", "a b@c", "user@a", "*"])
def test_an_allowed_host_is_a_name(text):
    with pytest.raises(ValueError, match="expected a name or an address"):
        host_name(text)


def test_an_open_address_needs_a_name():
    from erase_sd.cli.main import main
    from erase_sd.demo.serve import Address

    for host in ("0.0.0.0", "::", "[::]"):
        with pytest.raises(ValueError, match="needs --allowed-host"):
            Address(host)
        assert main(["demo", "--host", host]) == 2
    assert main(["demo", "--allowed-host", "http://x/"]) == 2
    assert not Address().public
    assert Address("0.0.0.0", allowed_hosts=("demo.example",)).public
    check(Address("10.0.0.7").origins, "10.0.0.7:80", "http://10.0.0.7:80")


def test_options_have_ranges():
    from erase_sd.cli.main import main

    for words in (
        ["--queue", "0"],
        ["--job-seconds", "0"],
        ["--job-seconds", "nan"],
        ["--job-memory", "-1"],
        ["--reports", "/no/such/folder"],
    ):
        assert main(["demo", *words]) == 2

"""What belongs to whom, for how long."""

import dataclasses
import time

import pytest

from erase_sd.demo.limits import Limits
from erase_sd.demo.visitor import Session, Visitors


def made(visitors, address="10.0.0.1"):
    return visitors.find(visitors.ticket(), address)


def with_files(session, name):
    folder = session.home / "work" / name
    folder.mkdir(parents=True)
    (folder / "x.png").write_bytes(b"x" * 100)
    return dataclasses.replace(session, folder=folder)


def test_a_cookie_is_ours_or_nothing(tmp_path):
    visitors = Visitors(tmp_path, Limits())
    ticket = visitors.ticket()
    visitor = visitors.find(ticket, "a")
    assert visitors.find(ticket, "b") is visitor
    token, _, mac = ticket.partition(".")
    for forged in ("", ".", token, f"{token}.", f"{token}x.{mac}", f".{mac}", f"{token}.\u00e9"):
        assert visitors.find(forged, "a") is None
    assert Visitors(tmp_path, Limits()).find(ticket, "a") is None  # of an earlier server
    assert token not in str(visitor.folder)


def test_one_page_name_is_two_sessions_for_two_visitors(tmp_path):
    visitors = Visitors(tmp_path, Limits())
    ann, bob = made(visitors), made(visitors)
    assert visitors.tab(ann, "tab") == visitors.tab(ann, "tab")
    assert len({visitors.tab(v, t) for v in (ann, bob) for t in ("tab", "other")}) == 4


def test_what_a_page_showed_before_is_deleted(tmp_path):
    visitor = made(Visitors(tmp_path, Limits(tabs=2)))
    session = visitor.session("1", "m")
    assert session == Session(visitor.folder, "m")
    first, second = with_files(session, "a"), with_files(session, "b")
    visitor.keep("1", first)
    visitor.keep("1", dataclasses.replace(first, scale=0.5))
    assert first.folder.exists()
    visitor.keep("1", second)
    assert not first.folder.exists()
    others = [with_files(session, n) for n in "cd"]
    for tab, other in zip("23", others, strict=True):
        visitor.keep(tab, other)
    assert not second.folder.exists()  # the oldest of three pages
    assert all(o.folder.exists() for o in others)


def test_a_visit_ends(tmp_path):
    visitors = Visitors(tmp_path, Limits(idle_seconds=10, stay_seconds=100))
    ann, bob, cas = (made(visitors) for _ in range(3))
    for visitor in (ann, bob, cas):
        visitor.keep("1", with_files(visitor.session("1", "m"), "a"))
    assert visitors.size() == 300
    ann.seen = bob.seen = time.monotonic() - 11
    bob.streams["heartbeat 1"] = 1  # the page is open
    visitors.sweep()
    assert [v.folder.exists() for v in (ann, bob, cas)] == [False, True, True]
    bob.seen = time.monotonic() - 101
    visitors.sweep()
    assert [v.folder.exists() for v in (bob, cas)] == [False, True]


def test_a_crowd_from_one_address_does_not_drive_others_out(tmp_path):
    visitors = Visitors(tmp_path, Limits(visitors=10))
    ticket = visitors.ticket()
    ann = visitors.find(ticket, "10.0.0.2")
    for i in range(50):
        made(visitors, f"2001:db8::{i:x}")  # one network
    assert visitors.find(ticket, "10.0.0.2") is ann


def test_uploads_are_counted(tmp_path):
    visitor = made(Visitors(tmp_path, Limits(uploads=2, uploads_per_hour=3)))
    paths = [visitor.upload("a.safetensors", b"x") for _ in range(2)]
    assert paths[0].parent != paths[1].parent
    assert all(visitor.owns(p) for p in paths)
    with pytest.raises(ValueError, match="too many uploads"):
        visitor.upload("a.safetensors", b"x")
    for path in paths:
        path.unlink()
        path.parent.rmdir()
    visitor.upload("a.safetensors", b"x")
    with pytest.raises(ValueError, match="too many uploads"):
        visitor.upload("a.safetensors", b"x")  # the fourth in an hour


def test_a_page_listens_before_it_asks_for_much_more(tmp_path):
    visitor = made(Visitors(tmp_path, Limits(unheard=3)))
    assert [visitor.may_ask(t) for t in "aab"] == [True] * 3
    assert not visitor.may_ask("c")
    with visitor.streaming("listen", "a"):
        assert all(visitor.may_ask("a") for _ in range(10))
        with visitor.streaming("heartbeat", "a"):
            assert visitor.streams.total() == 2
    assert not visitor.streams
    assert visitor.may_ask("a")


def test_a_link_does_not_make_a_file_ones_own(tmp_path):
    visitors = Visitors(tmp_path, Limits())
    ann, bob = made(visitors), made(visitors)
    theirs = bob.upload("a.safetensors", b"x")
    ann.folder.mkdir(parents=True)
    (ann.folder / "link").symlink_to(theirs)
    assert not ann.owns(ann.folder / "link")
    assert not ann.owns(ann.folder / ".." / bob.name)
    assert not ann.owns(ann.folder.parent / f"{ann.name}x")

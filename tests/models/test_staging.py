"""Outputs appear together or not at all; what the dead leave is finished or removed."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from erase_sd.models import placing
from erase_sd.models.files import atomic_path, atomic_paths
from erase_sd.models.leftovers import _swept, leftovers, sweep
from erase_sd.models.placing import commit_folder, settle

NAMES = ("x.safetensors", "x.erasure.safetensors", "x.report.md")


def write(place, text, **options):
    targets = [place / name for name in NAMES]
    with atomic_paths(targets, **options) as drafts:
        for draft in drafts:
            draft.write_text(text)


def held(place):
    return {p.name: p.read_text() for p in place.iterdir() if p.is_file()}


def dies(place, where, text="new"):
    """Another process writes the three files and is killed by SIGKILL at a certain call."""
    code = f"""
import os, signal, sys
from pathlib import Path
from erase_sd.models import files, placing
from tests.models.test_staging import write
calls = 0
def killing(*args, true=getattr(placing, {where[0]!r}), **more):
    global calls
    calls += 1
    if calls > {where[1]}:
        os.kill(os.getpid(), signal.SIGKILL)
    return true(*args, **more)
setattr(placing, {where[0]!r}, killing)
write(Path({str(place)!r}), {text!r}, force=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("moved", [0, 1, 2])
def test_what_was_decided_is_finished_by_whoever_comes_next(tmp_path, moved, exchange, monkeypatch):
    write(tmp_path, "old")
    dies(tmp_path, ("forward", moved))
    (one,) = leftovers(tmp_path)
    assert one.decided and not one.in_use
    assert set(held(tmp_path).values()) == ({"old", "new"} if moved else {"old"})
    if not exchange:
        monkeypatch.setattr(placing, "_rename", lambda a, b, how: False)
    settle(tmp_path / NAMES[0])
    assert held(tmp_path) == dict.fromkeys(NAMES, "new")
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("where", ["_write_journal", "sync"])
def test_what_was_not_decided_never_was(tmp_path, where):
    write(tmp_path, "old")
    dies(tmp_path, (where, 0))
    assert held(tmp_path) == dict.fromkeys(NAMES, "old")
    write(tmp_path, "third", force=True)
    assert held(tmp_path) == dict.fromkeys(NAMES, "third")
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("fails", [1, 2, 3])
@pytest.mark.parametrize("exchange", [True, False])
def test_a_failure_between_two_places_puts_everything_back(tmp_path, monkeypatch, fails, exchange):
    write(tmp_path, "old")
    true, calls = placing.forward, []

    def failing(folder, move):
        calls.append(move)
        if len(calls) == fails:
            raise OSError(5, "Input/output error")
        true(folder, move)

    monkeypatch.setattr(placing, "forward", failing)
    if not exchange:
        monkeypatch.setattr(placing, "_rename", lambda a, b, how: False)
    with pytest.raises(OSError, match="Input/output"):
        write(tmp_path, "new", force=True)
    assert held(tmp_path) == dict.fromkeys(NAMES, "old")
    assert len(list(tmp_path.iterdir())) == 3


def test_what_belonged_to_the_old_one_goes_with_it(tmp_path):
    write(tmp_path, "old")
    stale = [tmp_path / NAMES[2], tmp_path / "x.before_after.png"]
    with atomic_paths([tmp_path / NAMES[0]], force=True, gone=stale) as (draft,):
        draft.write_text("new")
    assert held(tmp_path) == {NAMES[0]: "new", NAMES[1]: "old"}


def test_an_error_after_everything_is_in_place_is_a_warning(tmp_path, monkeypatch, caplog):
    from erase_sd.models import files

    def failing(staging):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "leave", failing)
    with atomic_path(tmp_path / "x") as draft:
        draft.write_text("new")
    assert held(tmp_path) == {"x": "new"}
    assert "is in place" in caplog.text


def test_a_failed_one_leaves_no_folder_that_it_made(tmp_path):
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a" / "b" / "x"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError), atomic_path(tmp_path / "file" / "b" / "x"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_living_writer_is_not_swept_and_a_dead_one_is(tmp_path):
    with atomic_path(tmp_path / "x") as draft:
        draft.write_text("mine")
        _swept.cache_clear()
        sweep(tmp_path)
        (one,) = leftovers(tmp_path)
        assert one.in_use and one.bytes == 4 and not one.remove()
    dead = tmp_path / ".erase-sd-0123456789abcdef.part"
    (dead / "deep").mkdir(parents=True)
    (dead / "deep" / "0").write_text("0")
    (dead / "deep").chmod(0o500)
    near = [".erase-sd-0123.part", "erase-sd-0123456789abcdef.part", ".erase-sd-x.commit"]
    for name in near:  # not ours, by their names
        (tmp_path / name).mkdir()
    _swept.cache_clear()
    sweep(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"x", *near}


def test_a_journal_that_came_with_a_strangers_folder_moves_nothing_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    commit = commit_folder(tmp_path / "model.safetensors")
    commit.mkdir()
    (commit / "0").write_text("theirs")
    number = os.stat(commit / "0").st_ino
    for name in ("thesis.txt", "../thesis.txt", str(tmp_path / "thesis.txt")):
        for first in (name, "model.safetensors"):
            moves = [
                {"name": first, "draft": "0", "inode": number},
                {"name": name, "draft": "1", "inode": number},
            ]
            (commit / "journal.json").write_text(json.dumps(moves))
            with pytest.raises(ValueError, match="no journal of ours"):
                settle(tmp_path / "model.safetensors")
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    for text in ("[" * 100_000, "{}", "[1]", "\x00", '[{"name": 1, "draft": "0", "inode": 1}]'):
        (commit / "journal.json").write_text(text)
        with pytest.raises(ValueError, match="no journal of ours"):
            settle(tmp_path / "model.safetensors")
    (commit / "journal.json").unlink()
    os.mkfifo(commit / "journal.json")
    with pytest.raises(ValueError, match="no journal of ours"):
        settle(tmp_path / "model.safetensors")


def test_only_what_belongs_to_a_target_goes_with_it(tmp_path):
    for other in (tmp_path / "y.md", tmp_path / "a" / "x.md"):
        with (
            pytest.raises(ValueError, match="expected what belongs"),
            atomic_paths([tmp_path / "x.safetensors", other]),
        ):
            pass


def test_many_writers_of_one_name_never_mix(tmp_path):
    """Eight threads, with names taken one by one: whoever is last has all three."""
    failed = []

    def work(text):
        try:
            for _ in range(25):
                write(tmp_path, text, force=True)
                assert all((tmp_path / name).read_text() for name in NAMES)  # none is away
                settle(tmp_path / NAMES[0])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(str(i),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(set(held(tmp_path).values())) == 1
    assert len(list(tmp_path.iterdir())) == 3


def test_a_place_that_cannot_be_locked_for_an_error_is_left_as_it_was(tmp_path, monkeypatch):
    def failing(*_, **more):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(OSError, match="Input/output"), atomic_path(tmp_path / "new" / "x"):
        pass
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())


def test_a_name_that_cannot_be_freed_leaves_nothing_to_finish(tmp_path, monkeypatch, caplog):
    from erase_sd.models import files

    def failing(staging):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "leave", failing)
    write(tmp_path, "new")
    assert held(tmp_path) == dict.fromkeys(NAMES, "new")
    assert len(list(tmp_path.iterdir())) == 3 and "not all is well" in caplog.text


class Wish(BaseException):
    """What a signal's handler raises."""


def test_a_signal_at_any_call_of_the_system_leaves_all_or_nothing_and_no_folder(tmp_path):
    """Python tells of every call before it is made; the handler raises there, once."""
    at: list[int] = []

    def told(event, args):
        if at and at[0] > 0 and any(str(tmp_path) in str(a) for a in args):
            at[0] -= 1
            if not at[0]:
                raise Wish

    sys.addaudithook(told)  # for the rest of the process, where it does nothing
    ended = 0
    for over in (False, True):
        for nth in range(1, 60):
            place = tmp_path / f"{over}-{nth}"
            if over:
                write(place, "old")
            at[:] = [nth]
            try:
                write(place, "new", force=True)
            except Wish:
                ended += 1
            finally:
                at.clear()
            found = held(place) if place.exists() else {}
            assert found in ({}, dict.fromkeys(NAMES, "old"), dict.fromkeys(NAMES, "new")), nth
            assert bool(found) or not over
            assert not place.exists() or len(list(place.iterdir())) == len(found), nth
    assert ended > 50


@pytest.mark.parametrize("call", ["stat", "unlink", "open", "rename", "mkdir", "scandir"])
def test_a_call_that_fails_once_leaves_no_folder_in_silence(tmp_path, monkeypatch, call, caplog):
    true, failing = getattr(os, call), []

    def once(*args, **more):
        if failing and str(tmp_path) in str(args[0]):
            failing[0] -= 1
            if not failing[0]:
                raise OSError(5, "Input/output error", str(args[0]))
        return true(*args, **more)

    monkeypatch.setattr(os, call, once)
    for nth in range(1, 40):
        caplog.clear()
        place = tmp_path / str(nth)
        failing[:] = [nth]
        try:
            write(place, "new")
        except OSError:
            pass
        finally:
            failing.clear()
        found = held(place) if place.exists() else {}
        assert found in ({}, dict.fromkeys(NAMES, "new"))
        left = [p.name for p in place.iterdir() if p.is_dir()] if place.exists() else []
        assert not left or "doctor" in caplog.text, (nth, left)


def test_a_name_that_is_not_utf_8_is_refused_before_the_work(tmp_path):
    with (
        pytest.raises(ValueError, match="expected a name in UTF-8"),
        atomic_path(tmp_path / "\udcff" / "x"),
    ):
        pass
    assert not list(tmp_path.iterdir())

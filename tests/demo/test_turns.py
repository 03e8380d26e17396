"""The fair queue: whose job is next, what one visitor may not do to others."""

import asyncio
import json
import threading
import time

import pytest

from erase_sd.demo.budget import OverBudget
from erase_sd.demo.limits import Limits
from erase_sd.demo.turns import Busy, Turns
from erase_sd.demo.visitor import Visitor
from tests.demo.conftest import Client, make_server, serving

LOOK = ["emoji-sd", "cat", "", "rayleigh", False, ""]
CAT = [1, "", 0, *LOOK]


def somebody(tmp_path, name, address="10.0.0.1"):
    return Visitor(name, address, tmp_path / name, Limits())


async def work(turns, visitor, done, steps=1, seconds=0.0):
    """A job that notes each of its steps."""
    with turns.job(visitor) as job:
        for _ in range(steps):
            await job.step(lambda: (time.sleep(seconds), done.append(visitor.name)))


def order_of(turns, jobs):
    """Who is served, in order, when all these come while somebody else has the turn."""
    done = []

    async def all_at_once():
        gate = threading.Event()
        with turns.job(Visitor("first", "10.9.9.9", None, Limits())) as job:
            holding = asyncio.create_task(job.step(gate.wait))
            await asyncio.sleep(0.02)
            waiting = []
            for visitor, steps, seconds in jobs:
                waiting.append(asyncio.create_task(work(turns, visitor, done, steps, seconds)))
                await asyncio.sleep(0)
            gate.set()
            await holding
        await asyncio.gather(*waiting)

    asyncio.run(all_at_once())
    return done


def test_one_visitors_jobs_wait_behind_everybody_elses_first(tmp_path):
    greedy, ann, bob = (somebody(tmp_path, n, f"10.0.0.{i}") for i, n in enumerate("gab"))
    jobs = [(greedy, 1, 0), (greedy, 1, 0), (greedy, 1, 0), (ann, 1, 0), (bob, 1, 0)]
    assert order_of(Turns(Limits()), jobs) == ["g", "a", "b", "g", "g"]


def test_many_cookies_of_one_address_take_turns_with_another_address(tmp_path):
    crowd = [somebody(tmp_path, f"c{i}") for i in range(4)]
    ann = somebody(tmp_path, "ann", "10.0.0.2")
    done = order_of(Turns(Limits()), [(v, 1, 0) for v in [*crowd, ann]])
    assert done == ["c0", "ann", "c1", "c2", "c3"]


def test_a_long_job_lets_others_go_between_its_steps(tmp_path):
    long, short = somebody(tmp_path, "long"), somebody(tmp_path, "short")
    done = order_of(Turns(Limits(slice_seconds=0.01)), [(long, 4, 0.02), (short, 1, 0)])
    assert done == ["long", "short", "long", "long", "long"]
    done = order_of(Turns(Limits(slice_seconds=60)), [(long, 4, 0.02), (short, 1, 0)])
    assert done == ["long"] * 4 + ["short"]


def test_a_visitor_an_address_and_everybody_have_so_many_jobs(tmp_path):
    turns = Turns(Limits(jobs=2, waiting=6))

    async def come():
        held = []
        for visitor in (somebody(tmp_path, "a"), somebody(tmp_path, "b")):
            for _ in range(2):
                held.append(turns.job(visitor))
                try:
                    held[-1].__enter__()
                except Busy as busy:
                    held.pop()
                    told.append(str(busy))
            with pytest.raises(Busy):
                turns.job(visitor).__enter__()
        for i in range(4):
            held.append(turns.job(somebody(tmp_path, f"x{i}", f"10.1.0.{i}")))
            try:
                held[-1].__enter__()
            except Busy as busy:
                held.pop()
                told.append(str(busy))
        for one in held:
            one.__exit__(None, None, None)

    told = []
    asyncio.run(come())
    # An address has half of the queue, and everybody all of it.
    assert told == [
        "the demo is busy, 3 jobs wait; try again in a minute",
        "the demo is busy, 6 jobs wait; try again in a minute",
    ]
    assert order_of(turns, [(somebody(tmp_path, "later"), 1, 0)]) == ["later"]


def test_a_job_ends_when_its_time_is_spent(tmp_path):
    turns = Turns(Limits(job_seconds=0.05))
    visitor = somebody(tmp_path, "a")
    done = []
    with pytest.raises(OverBudget, match=r"may compute for 0\.05 s"):
        asyncio.run(work(turns, visitor, done, 10, 0.03))
    assert 1 <= len(done) < 10
    asyncio.run(work(turns, visitor, done := []))
    assert done == ["a"]


def test_a_job_nobody_waits_for_is_stopped_before_the_next_begins(tmp_path):
    from erase_sd.demo import budget

    turns = Turns(Limits())
    ann, bob = somebody(tmp_path, "ann"), somebody(tmp_path, "bob")
    ended, done = [], []

    def endless():
        try:
            while True:
                budget.check()
                time.sleep(0.001)
        except OverBudget:
            ended.append(time.monotonic())
            raise

    async def start():
        with turns.job(ann) as job:
            await job.step(endless)

    async def cancelled():
        first = asyncio.create_task(start())
        await asyncio.sleep(0.05)
        next_one = asyncio.create_task(work(turns, bob, done))
        await asyncio.sleep(0.02)
        assert not done
        first.cancel()
        await next_one
        assert len(ended) == 1
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(cancelled())
    assert done == ["bob"]


def test_a_holder_that_does_nothing_loses_its_turn(tmp_path):
    turns = Turns(Limits(slice_seconds=0.05))
    done = []

    async def idle():
        with turns.job(somebody(tmp_path, "idle")) as job:
            await job.step(lambda: None)
            other = asyncio.create_task(work_patiently())
            await asyncio.wait_for(other, 5)

    async def work_patiently():
        with turns.job(somebody(tmp_path, "other")) as job:
            while not await job.wait(0.02):
                pass
            await job.step(lambda: done.append("other"))

    asyncio.run(idle())
    assert done == ["other"]


# -- over HTTP -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A server with a short queue."""
    folder = tmp_path_factory.mktemp("small")
    server = make_server(folder, steps=2, jobs=2, waiting=8, slice_seconds=0.2, job_seconds=60)
    server.model("emoji-sd").warm()
    with serving(server) as port:
        yield port


def ended(client, tab, answers):
    answers.append((client.address, tab, client.outcome(tab), time.monotonic()))


def test_a_greedy_client_does_not_keep_others_out(small):
    greedy, other = Client(small, "127.0.0.2"), Client(small, "127.0.0.3")
    number, one = greedy.function("preflight")
    for i in range(20):
        assert greedy.join(number, LOOK, tab=f"t{i}", trigger_id=one)[0] == 200
    start = time.monotonic()
    message = other.run("preflight", LOOK)
    assert message["success"], message
    answers = []
    threads = [threading.Thread(target=ended, args=(greedy, f"t{i}", answers)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    told = [m["output"].get("error") or "" for _, _, m, _ in answers if not m.get("success")]
    assert len(answers) == 20
    assert len(told) >= 15
    assert all("jobs waiting" in t for t in told)
    assert time.monotonic() - start < 60


def test_all_visitors_are_answered(small):
    answers, clients = [], [Client(small, f"127.0.0.{10 + i}") for i in range(6)]
    number, one = clients[0].function("preflight")

    def one_of(i, client):
        word = ("cat", "dog", "pizza")[i % 3]
        status, _ = client.join(
            number, ["emoji-sd", word, "", "rayleigh", False, ""], trigger_id=one
        )
        answers.append((status, word, client.outcome()))

    threads = [threading.Thread(target=one_of, args=pair) for pair in enumerate(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert len(answers) == 6
    for status, word, message in answers:
        assert status == 200
        assert message["success"], message
        assert f"<b>{word}</b>" in json.dumps(message["output"]["data"])


def test_a_job_over_its_time_or_memory_is_told_so_and_the_page_goes_on(tmp_path):
    short = make_server(tmp_path / "short", job_seconds=0.01)
    with serving(short) as port:
        message = Client(port).run("preflight", LOOK)
    assert "may compute for 0.01 s" in message["output"]["error"]
    tight = make_server(tmp_path / "tight", job_bytes=1_000_000)
    with serving(tight) as port:
        client = Client(port)
        message = client.run("erase", CAT)  # pictures want fresh memory, whatever is free already
        assert "may take 0.001 GB of memory" in message["output"]["error"]
        assert client.get("/config")[0] == 200

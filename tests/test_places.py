"""Places at Triton: how many, who is next, and who does not wait any longer."""

import threading
import time

import pytest
from processes import wait_for

from gateway.places import Places
from lipserve.contract import Priority
from lipserve.errors import Cancelled


def test_no_more_than_there_are() -> None:
    places = Places(2)
    assert places.take(Priority.BATCH, 0)
    assert places.take(Priority.LIVE, 0)
    assert places.taken == 2
    assert not places.take(Priority.LIVE, 0.05)
    places.give_back()
    assert places.take(Priority.BATCH, 0)
    assert places.taken == 2


def test_live_is_next_and_of_the_same_priority_who_came_first() -> None:
    places, order = Places(1), list[str]()
    assert places.take(Priority.BATCH, 0)

    def come(name: str, priority: Priority) -> None:
        assert places.take(priority, 20)
        order.append(name)
        places.give_back()

    guests = [("batch 1", Priority.BATCH), ("batch 2", Priority.BATCH), ("live 1", Priority.LIVE)]
    threads = []
    for number, guest in enumerate([*guests, ("live 2", Priority.LIVE)], 1):
        threads.append(threading.Thread(target=come, args=guest))
        threads[-1].start()
        wait_for(lambda waiting=number: len(places._waiting) == waiting, 10)
    places.give_back()
    for thread in threads:
        thread.join(10)
    assert order == ["live 1", "live 2", "batch 1", "batch 2"]
    assert places.taken == 0


def test_who_is_cancelled_or_has_waited_long_enough_is_in_nobodys_way() -> None:
    places, cancelled = Places(1), threading.Event()
    assert places.take(Priority.BATCH, 0)
    cancelled.set()
    with pytest.raises(Cancelled):
        places.take(Priority.LIVE, 20, cancelled)
    assert not places.take(Priority.LIVE, 0)
    places.give_back()
    assert places.take(Priority.BATCH, 0)


def test_waiting_until_all_are_free() -> None:
    places = Places(2)
    assert places.wait_until_free(0)
    assert places.take(Priority.BATCH, 0)
    assert not places.wait_until_free(0.05)
    started = time.monotonic()
    threading.Timer(0.1, places.give_back).start()
    assert places.wait_until_free(20)
    assert time.monotonic() - started < 10

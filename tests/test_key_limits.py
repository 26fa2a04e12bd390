"""Rate and concurrency of one key."""

import pytest

from gateway.key_limits import KeyLimits
from lipserve.errors import RateLimited


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.time", clock)
    return clock


def test_so_many_calls_in_any_minute_and_retry_after_says_when(clock: Clock) -> None:
    limits = KeyLimits(3, 0)
    for _ in range(3):
        limits.count("me")
        clock.now += 10
    with pytest.raises(RateLimited) as caught:
        limits.count("me")
    assert caught.value.retry_after == 30
    limits.count("you")
    clock.now += 29
    with pytest.raises(RateLimited) as caught:
        limits.count("me")
    assert caught.value.retry_after == 1
    clock.now += 1.1
    limits.count("me")  # the first has left the window, the other two have not
    with pytest.raises(RateLimited):
        limits.count("me")


def test_zero_is_no_limit() -> None:
    limits = KeyLimits(0, 0)
    for _ in range(1000):
        limits.count("me")
    with limits.working("me", lambda _: 1000), limits.working("me", lambda _: 1000):
        pass


def test_so_much_at_once_jobs_included() -> None:
    limits, jobs = KeyLimits(0, 2), {"me": 0, "you": 0}
    with limits.working("me", jobs.__getitem__):
        with limits.working("me", jobs.__getitem__):
            with pytest.raises(RateLimited) as caught, limits.working("me", jobs.__getitem__):
                pass
            assert caught.value.retry_after == RateLimited.retry_after
            with limits.working("you", jobs.__getitem__):
                pass
        jobs["me"] = 1
        with pytest.raises(RateLimited), limits.working("me", jobs.__getitem__):
            pass
        jobs["me"] = 0
    with pytest.raises(ZeroDivisionError), limits.working("me", jobs.__getitem__):
        raise ZeroDivisionError
    with limits.working("me", jobs.__getitem__), limits.working("me", jobs.__getitem__):
        pass

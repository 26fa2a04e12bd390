"""The real embedded Triton under the benchmark's stress, on a small scale: it lives, each request has its answer."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from stress import Load, Outcome, asked, write_repository

from gateway.shared_memory import FOLDER, PREFIX, remove_stale
from lipserve.embedded import EmbeddedTriton
from lipserve.settings import SharedMemoryMode


@pytest.fixture(scope="module")
def costless(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTriton]:
    folder = tmp_path_factory.mktemp("costless")
    repository = write_repository(exported / "model_repository/cpu", folder / "models", batch_milliseconds=0)
    with EmbeddedTriton(repository, exported / "models", folder / "run") as triton:
        yield triton


def regions(pid: int) -> set[str]:
    return {file.name for file in FOLDER.glob(f"{PREFIX}{pid}-*")}


@pytest.mark.parametrize("transport", ["on", "off"])
def test_triton_outlives_gateways_that_leave_close_and_are_killed(
    costless: EmbeddedTriton, transport: SharedMemoryMode
) -> None:
    """600 single frames, 64 open at once, a quarter given up unread."""
    pid, gateways, before = costless.pid, list[int](), regions(os.getpid())
    counts = asked(costless, transport, Load(requests=600, outstanding=64, leave=0.25, closings=2, kills=1), gateways)
    assert costless.pid == pid is not None
    assert set(counts) == {"answered", "left"}
    assert counts.total() == 600
    assert 100 < counts["left"] < 200
    remove_stale()
    assert len(gateways) == 1
    assert (regions(gateways[0]), regions(os.getpid())) == (set(), before)


@pytest.mark.parametrize(
    ("changed", "good"),
    [
        ({}, True),
        ({"answered": 8}, False),
        ({"busy": 1, "answered": 8}, True),
        ({"ended": "ended with -11"}, False),
        ({"wrong": 1, "answered": 8}, False),
        ({"regions_left": 1}, False),
    ],
)
def test_what_a_good_start_is(changed: dict[str, int | str], good: bool) -> None:
    values = {"busy": 0, "wrong": 0, "failed": 0, "ended": "", "regions_left": 0, "seconds": 1.0}
    outcome = Outcome(transport="on", **{**values, "answered": 9, "left": 1, **changed})  # type: ignore[arg-type]
    assert outcome.is_good(Load(requests=10)) is good

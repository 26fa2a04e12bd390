"""Everything an export can refuse to do.

ExportError
├── UnknownTarget    no such deployment target
├── UnknownProfile   no such set of weights
└── ExportRefused    a graph does not compute what its torch module computes
"""

from collections.abc import Iterable


class ExportError(Exception):
    """Base of this package's errors; the message is meant for the person at the terminal."""


class UnknownTarget(ExportError):
    """The target asked for is not one of those that exist."""

    def __init__(self, target: str, known: Iterable[str]) -> None:
        super().__init__(f"unknown target {target!r}; targets that exist: {', '.join(known)}")


class UnknownProfile(ExportError):
    """The profile asked for is not one of those that exist."""

    def __init__(self, profile: str, known: Iterable[str]) -> None:
        super().__init__(f"unknown profile {profile!r}; profiles that exist: {', '.join(known)}")


class ExportRefused(ExportError):
    """An exported graph is further from torch than its bound allows, or says something that is not a number."""

    def __init__(self, graph: str, batch: int, error: float, bound: float) -> None:
        super().__init__(f"graph {graph!r} refused at batch {batch}: maximum error {error:.3g} is over {bound:.3g}")
        self.graph, self.batch, self.error, self.bound = graph, batch, error, bound

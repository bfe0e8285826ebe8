"""What a mutant is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    #: The promise that it breaks.
    name: str
    file: str
    #: Found once in that file, and what stands there instead.
    before: str
    after: str
    #: Tests that must notice: pytest's names of them, below tests/, between spaces.
    tests: str

    @property
    def selection(self) -> list[str]:
        return [f"tests/{test}" for test in self.tests.split()]

"""Reads Terraform's files, and holds their resources against what the providers document."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hcl2
import pytest

from tests.workers import ROOT

#: A new environment's first parse makes the grammar, which takes a CPU for 5 s: not once in each process.
ONE_PROCESS = pytest.mark.xdist_group("hcl")

MODULE = ROOT / "infra" / "terraform"
#: Made by infra/schema.py.
PROVIDER: dict[str, dict[str, Any]] = json.loads(
    (ROOT / "tests" / "infra" / "provider.json").read_text()
)
META = {"count", "for_each", "depends_on", "provider", "lifecycle"}


def plain(value: Any) -> Any:
    """Without the parser's quotes and marks: texts as they are, expressions as ``${...}``."""
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items() if not str(k).startswith("__")}
    if isinstance(value, list):
        return [plain(v) for v in value]
    if isinstance(value, str) and len(value) > 1 and value[0] == value[-1] == '"':
        return value[1:-1].replace('\\"', '"')
    return value


@dataclass
class Module:
    """All files of a folder, or a text."""

    #: (type, name) -> its body.
    resources: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    variables: dict[str, dict[str, Any]] = field(default_factory=dict)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    modules: dict[str, dict[str, Any]] = field(default_factory=dict)
    locals: dict[str, Any] = field(default_factory=dict)
    text: str = ""

    def of(self, kind: str) -> dict[str, dict[str, Any]]:
        return {name: body for (type, name), body in self.resources.items() if type == kind}


def load(texts: Iterable[str]) -> Module:
    module = Module()
    for text in texts:
        module.text += text + "\n"
        parsed = plain(hcl2.loads(text))
        for entry in parsed.get("resource", []):
            for type, named in entry.items():
                for name, body in named.items():
                    assert (type, name) not in module.resources, f"{type}.{name} is there twice"
                    module.resources[type, name] = body
        for part in ("variable", "output", "module"):
            for entry in parsed.get(part, []):
                getattr(module, f"{part}s").update(entry)
        for entry in parsed.get("locals", []):
            module.locals.update(entry)
    return module


def folder(path: Path) -> Module:
    return load(file.read_text() for file in sorted(path.glob("*.tf")))


def faults(module: Module) -> Iterator[str]:
    """Where a resource has what its provider doesn't document, or lacks what it requires."""
    for (type, name), body in module.resources.items():
        if type not in PROVIDER:
            yield f"{type} is not in provider.json: run infra/schema.py"
            continue
        yield from _faults(f"{type}.{name}", body, PROVIDER[type], META)


def _faults(
    where: str, body: dict[str, Any], known: dict[str, Any], more: set[str] = frozenset()
) -> Iterator[str]:
    given = {key: value for key, value in body.items() if key != "dynamic"}
    for entry in body.get("dynamic", []):
        for block, content in entry.items():
            given.setdefault(block, []).extend(content["content"])
    for key, value in given.items():
        if key in more:
            continue
        if key not in known:
            yield f"{where}: {key} is not documented"
        elif isinstance(known[key], dict) and isinstance(value, list):
            for block in value:
                yield from _faults(f"{where}.{key}", block, known[key]["arguments"])
    for key, needed in known.items():
        required = needed["required"] if isinstance(needed, dict) else needed
        if required and key not in given:
            yield f"{where}: {key} is missing"


def references(module: Module) -> Iterator[str]:
    """Names that are used and not there, and names that are there and not used."""
    text = module.text
    used = set(re.findall(r"\bvar\.(\w+)", text))
    yield from (f"var.{name} is not declared" for name in used - set(module.variables))
    yield from (f"var.{name} is not used" for name in set(module.variables) - used)
    used = set(re.findall(r"\blocal\.(\w+)", text))
    yield from (f"local.{name} is not there" for name in used - set(module.locals))
    yield from (f"local.{name} is not used" for name in set(module.locals) - used)
    for type, name in re.findall(r"(?<!data\.)\b(google_\w+)\.(\w+)", text):
        if (type, name) not in module.resources:
            yield f"{type}.{name} is not there"

"""Extracts what Terraform's providers document of the resources that the module uses.

    python infra/schema.py PATH_TO_A_CLONE_OF_terraform-provider-google > tests/infra/provider.json

Only names are kept: arguments, which of them are required, and blocks within blocks.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

MODULE = Path(__file__).parent / "terraform"
#: Pages that aren't called after their resource.
PAGES = {
    "google_project_iam_member": "google_project_iam",
    "google_project_service": "google_project_service",
    "google_service_account": "google_service_account",
    "google_service_account_iam_member": "google_service_account_iam",
    "google_kms_crypto_key_iam_member": "google_kms_crypto_key_iam",
}
#: Arguments that every resource takes.
META = {"count", "for_each", "depends_on", "provider", "lifecycle"}


def used() -> list[str]:
    found = set()
    for path in MODULE.glob("*.tf"):
        found |= set(re.findall(r'^resource "(\w+)"', path.read_text(), re.MULTILINE))
    return sorted(found)


def page_of(resource: str) -> str:
    name = PAGES.get(resource) or resource.removeprefix("google_")
    return name.removesuffix("_member") if name.endswith("_iam_member") else name


def arguments(text: str) -> dict[str, Any]:
    """Argument -> whether it is required (True, False), or, for a block, its own arguments."""
    text = text.partition("## Argument Reference")[2].partition("## Attributes Reference")[0]
    blocks: dict[str, dict[str, Any]] = {"": {}}
    current = ""
    for line in text.splitlines():
        if block := re.match(r'(?:<a name="nested_(\w+)"></a>)?The `(\w+)` block ', line):
            current = block[1] or block[2]
            blocks[current] = {}
        elif argument := re.match(r"[*-] `([\w/]+)`\s*-?\s*(.*)", line):
            name = argument[1].split("/")[0]
            blocks[current][name] = "(Required)" in argument[2]
            last = name
        elif line.strip() == "(Required)":
            blocks[current][last] = True
        elif line.strip() == "(Output)":
            del blocks[current][last]
    for path in sorted(blocks, key=len, reverse=True):
        if path:
            # The longest other path that this one begins with is the block that holds it.
            parent = max(
                (p for p in blocks if p != path and (not p or path.startswith(p + "_"))), key=len
            )
            name = path[len(parent) + 1 if parent else 0 :]
            if name in blocks[parent]:
                blocks[parent][name] = {
                    "required": blocks[parent][name] is True,
                    "arguments": blocks[path],
                }
    return blocks[""]


def main() -> None:
    clone = sys.argv[1]

    def show(name: str) -> str:
        return subprocess.run(
            ["git", "-C", clone, "show", f"HEAD:website/docs/r/{name}.html.markdown"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    schema = {resource: arguments(show(page_of(resource))) for resource in used()}
    json.dump(schema, sys.stdout, indent=1, sort_keys=True)
    print()


if __name__ == "__main__":
    main()

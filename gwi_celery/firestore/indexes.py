"""``firestore.indexes.json``: the indexes that the store's queries need, and the TTL policies.

The file is the only source: the Firebase CLI takes it as it is, Terraform reads it by ``jsondecode``,
and :func:`commands` turns it into gcloud's commands.
"""

from __future__ import annotations

import json
import shlex
from importlib.resources import files
from typing import Any, Final

FILE_NAME: Final = "firestore.indexes.json"


def text() -> str:
    """The file's text."""
    return (files(__package__) / FILE_NAME).read_text(encoding="utf-8")


def load() -> dict[str, Any]:
    """The file's content: ``indexes`` (composite), and ``fieldOverrides`` (single fields, and TTL)."""
    content: dict[str, Any] = json.loads(text())
    return content


def commands(project: str, database: str = "(default)") -> list[str]:
    """The gcloud commands that give a database these indexes and TTL policies.

    They only start the work, because an index may take an hour: so all are made side by side. The last
    command lists what is still being made. All may be run again: gcloud refuses an index that exists
    already. TTL needs a project with billing.
    """
    place = ["--project", project, "--database", database]
    where = [*place, "--quiet", "--async"]
    content, made, lifetimes = load(), [], []
    for index in content["indexes"]:
        command = ["gcloud", "firestore", "indexes", "composite", "create"]
        command += ["--collection-group", index["collectionGroup"]]
        command += ["--query-scope", index["queryScope"].lower().replace("_", "-")]
        for field in index["fields"]:
            kind = f"order={field['order']}" if "order" in field else "array-config=contains"
            command += ["--field-config", f"field-path={field['fieldPath']},{kind.lower()}"]
        made.append([*command, *where])
    for field in content["fieldOverrides"]:
        group = ["--collection-group", field["collectionGroup"]]
        command = ["gcloud", "firestore", "indexes", "fields", "update", field["fieldPath"]]
        for index in field["indexes"]:
            command += ["--index", f"order={index['order'].lower()}"]
        if not field["indexes"]:
            command += ["--disable-indexes"]
        made.append([*command, *group, *where])
        if field.get("ttl"):
            command = ["gcloud", "firestore", "fields", "ttls", "update", field["fieldPath"]]
            # After all indexes, because gcloud allows one operation at a time for each field.
            lifetimes.append([*command, *group, "--enable-ttl", *where])
    made += lifetimes
    made.append(["gcloud", "firestore", "operations", "list", "--filter=done!=true", *place])
    return [shlex.join(command) for command in made]

"""Prints ``openapi.yaml``, the service's description: ``python -m gwi_celery.service.openapi``."""

from __future__ import annotations

from importlib.resources import files


def text() -> str:
    return files("gwi_celery.service").joinpath("openapi.yaml").read_text(encoding="utf-8")


if __name__ == "__main__":
    print(text(), end="")

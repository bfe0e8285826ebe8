"""Whether a version that may be installed has a known hole: those installed, and each lower bound.

    audit.py SITE-PACKAGES

Ends with 1 for a hole only. Where no advisory service can be reached, it says so and ends with 0: no
change is to blame for that.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
#: Seconds that an advisory service has.
_PATIENCE = 300
#: Extras that no user's service is made of.
_OURS = ("bench", "dev", "docs", "testing")


def main(installed: str) -> int:
    try:
        _run(
            ["pip", "--quiet", "--disable-pip-version-check", "install", "pip-audit"]
        ).check_returncode()
    except subprocess.SubprocessError:
        print("audit: pip-audit can't be installed here, so nothing was audited")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        floors = Path(folder) / "floors.txt"
        floors.write_text("\n".join(lower_bounds()))
        holes = audit("what is installed", ["--path", installed], folder)
        holes += audit(
            "lower bounds", ["--requirement", str(floors), "--no-deps", "--disable-pip"], folder
        )
    return 1 if holes else 0


def lower_bounds() -> list[str]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # pip-audit needs it
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra, needed in project["optional-dependencies"].items():
        wanted += needed if extra not in _OURS else []
    found = (re.match(r"([\w.-]+)(?:\[.*\])?>=([\w.]+)", one) for one in wanted)
    return sorted({f"{m[1]}=={m[2]}" for m in found if m})


def audit(what: str, options: list[str], folder: str) -> int:
    """How many packages have holes."""
    report = Path(folder) / f"{what}.json"
    command = [
        "pip_audit",
        "--progress-spinner",
        "off",
        "--format",
        "json",
        "--output",
        str(report),
    ]
    try:
        done = _run([*command, *options])
        packages = json.loads(report.read_text())["dependencies"]
    except (subprocess.TimeoutExpired, FileNotFoundError):
        print(f"audit of {what}: no advisory service answers, so nothing was audited")
        return 0
    except ValueError:
        print(f"audit of {what}: pip-audit failed: {done.stderr[-500:]}")
        return 0
    known = [package for package in packages if "vulns" in package]
    bad = [package for package in known if package["vulns"]]
    for package in bad:
        for hole in package["vulns"]:
            fixed = ", ".join(hole["fix_versions"]) or "no release"
            print(f"{package['name']} {package['version']}: {hole['id']}, fixed in {fixed}")
    print(
        f"audit of {what}: {len(known)} of {len(packages)} packages are known, {len(bad)} have holes"
    )
    return len(bad)


def _run(module: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 our own arguments
        [sys.executable, "-m", *module],
        check=False,
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""Checks locks against known vulnerabilities: records in the OSV format, in a folder or a zip file.

    python requirements/audit.py --osv osv-PyPI.zip requirements/runtime.txt

Needs no network. osv.dev publishes the records of all packages, as one zip file for PyPI.
A version counts as vulnerable if a record lists it, or if it is in a range of a record (introduced
inclusive, fixed exclusive, last_affected inclusive: OSV schema 1.7, "affected[].ranges[].events").
The exit status is 1 if a vulnerability is found, and 2 if nothing could be compared.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

_PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s\\;]+)", re.MULTILINE)


class AuditError(Exception):
    """Nothing could be compared; the text has the remedy."""


def pins(lock: Path) -> dict[str, str]:
    """Name and version of every package in a lock."""
    found = {canonicalize_name(name): version for name, version in _PIN.findall(lock.read_text())}
    if not found:
        raise AuditError(f"{lock} pins nothing: give a file that `make lock` has written")
    return dict(found)


def records(source: Path) -> Iterator[dict[str, Any]]:
    if source.is_dir():
        for path in sorted(source.rglob("*.json")):
            yield json.loads(path.read_bytes())
    elif source.is_file() and zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            for name in archive.namelist():
                if name.endswith(".json"):
                    yield json.loads(archive.read(name))
    else:
        raise AuditError(f"no OSV records at {str(source)!r}: give a folder or a zip file of them")


def vulnerable(record: dict[str, Any], pinned: dict[str, str]) -> Iterator[tuple[str, str]]:
    """The pinned packages that a record makes vulnerable, with their versions."""
    if record.get("withdrawn"):
        return
    for affected in record.get("affected", ()):
        package = affected.get("package", {})
        name = canonicalize_name(package.get("name", ""))
        if package.get("ecosystem") != "PyPI" or name not in pinned:
            continue
        version = pinned[name]
        if version in affected.get("versions", ()) or any(
            _in_range(Version(version), each["events"])
            for each in affected.get("ranges", ())
            if each.get("type") == "ECOSYSTEM"
        ):
            yield name, version


def _in_range(version: Version, events: list[dict[str, str]]) -> bool:
    inside = False
    for event in sorted(events, key=lambda each: _version(next(iter(each.values())))):
        ((kind, text),) = event.items()
        at = _version(text)
        if kind == "introduced" and version >= at:
            inside = True
        elif (kind == "fixed" and version >= at) or (kind == "last_affected" and version > at):
            inside = False
    return inside


def _version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:
        return Version("0")


def audit(source: Path, locks: list[Path]) -> list[str]:
    """Returns a line for each vulnerable pin. Raises AuditError."""
    pinned = {lock: pins(lock) for lock in locks}
    found, read = [], 0
    for record in records(source):
        read += 1
        for lock, packages in pinned.items():
            for name, version in dict.fromkeys(vulnerable(record, packages)):
                also = ", ".join(record.get("aliases", ()))
                said = record.get("summary", "")
                found.append(f"{lock}: {name} {version}: {record['id']} ({also}) {said}")
    if not read:
        raise AuditError(f"{source} holds no OSV record")
    return found


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--osv", type=Path, required=True, help="folder or zip of OSV records")
    arguments.add_argument("locks", type=Path, nargs="+")
    given = arguments.parse_args()
    try:
        found = audit(given.osv, given.locks)
    except (AuditError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(found) or "nothing known against these versions")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())

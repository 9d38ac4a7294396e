"""The vectors as they are collected: path, bytes, verdict, and why."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from making.model import File
from making.writing import write


@dataclass
class Suite:
    """All files of the suite by path, and the manifest's records."""

    files: dict[str, bytes] = field(default_factory=dict)
    manifest: list[dict[str, Any]] = field(default_factory=list)

    def valid(
        self, name: str, file: File, why: str, *, large: bool = False, verdict_only: bool = False, **hooks: Any
    ) -> None:
        """A file that a reader must read."""
        content = None if verdict_only else file.document()
        self._accept(f"valid/{name}", write(file, **hooks), why, content, large=large)

    def newer(self, name: str, file: File, why: str, *, rule: str | None = None, **hooks: Any) -> None:
        """A file of a later version: to be read, or, with `rule`, to be refused."""
        data = write(file, **hooks)
        if rule is None:
            self._accept(f"newer/{name}", data, why, file.document(), newer=True)
        else:
            self._add(f"newer/{name}.tsw", data, verdict="refuse", rule=rule, reason=why, newer=True)

    def invalid(self, name: str, rule: str, why: str, file: File | bytes, *, large: bool = False, **hooks: Any) -> None:
        """A file that breaks one rule."""
        data = file if isinstance(file, bytes) else write(file, **hooks)
        self._add(f"invalid/{name}.tsw", data, verdict="refuse", rule=rule, reason=why, large=large)

    def apply(self, name: str, case: dict[str, Any], why: str) -> None:
        """A case of applying."""
        refused = {"rule": case["rule"]} if "rule" in case else {}
        verdict = "refuse" if refused else "accept"
        self._add(f"apply/{name}.json", dumped(case), verdict=verdict, reason=why, **refused)

    def _accept(self, stem: str, data: bytes, why: str, content: dict[str, Any] | None, **marks: bool) -> None:
        found: dict[str, Any] = {"content": None}
        if content is not None:
            path, text = f"{stem}.json", dumped(content)
            self._file(path, text)
            found = {"content": path, "content_sha256": hashlib.sha256(text).hexdigest()}
        self._add(f"{stem}.tsw", data, verdict="accept", reason=why, **marks, **found)

    def _add(self, path: str, data: bytes, **record: Any) -> None:
        self._file(path, data)
        kept = {key: value for key, value in record.items() if value is not False}
        digest = hashlib.sha256(data).hexdigest()
        self.manifest.append({"path": path, "sha256": digest, "length": len(data), **kept})

    def _file(self, path: str, data: bytes) -> None:
        if path in self.files:
            raise ValueError(f"two vectors are called {path}; rename one")
        self.files[path] = data


def dumped(value: Any) -> bytes:
    """A JSON file's bytes: to be read by people, or short where it is long."""
    text = json.dumps(value, ensure_ascii=False, indent=1)
    if len(text) > 1 << 15:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return (text + "\n").encode()

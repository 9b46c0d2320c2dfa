"""API keys: who may read, write and administer. Only SHA-256 digests are stored; a key is shown once, when made.

A key is 256 random bits, so a plain digest is as good as a slow one: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moonstore.files import locked, write_json
from serving.settings import Settings

log = logging.getLogger("moon.serving")

Scope = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
ENVIRONMENT = "MOON_API_KEYS"  # the content of a keys file
KEYS_FILE = "keys.json"  # in the run folder
ID_LENGTH = 8


class KeysError(ValueError):
    """Keys that are missing or cannot be read."""


class Key(BaseModel):
    """One key.

    Attributes:
        name: of whoever holds it; several keys may share one, so that a new key can replace an old one.
        scopes: what it allows: read (answers, pictures, page), write (events, items), admin (metrics, details of
            readiness). None implies another.
        sha256: digest of the key.
        created: when it was made.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    created: datetime | None = None

    @property
    def id(self) -> str:
        """What tells apart keys of one name."""
        return self.sha256[:ID_LENGTH]


class KeyList(BaseModel):
    """The content of a keys file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: tuple[Key, ...]


@dataclass(frozen=True)
class Caller:
    """Who sends a request: the name of the key, empty without one, and what it allows."""

    name: str
    scopes: frozenset[str]


ANYONE = Caller("", frozenset(SCOPES))  # where no keys are in force
STRANGER = Caller("", frozenset())


def scope_of(method: str, path: str) -> str:
    """The scope that a request needs."""
    if path == "/metrics":
        return "admin"
    return "read" if method in ("GET", "HEAD") or path in ("/search", "/") else "write"


class KeyRing:
    """The keys in force. A change of their file counts from the next request on.

    A file that cannot be read any more changes nothing: the keys that were read last stay in force.

    Args:
        path: the keys file; None: ``keys`` never change.
        keys: those in force until there is a file; None: everybody may do everything.

    Raises:
        KeysError: the file is there and cannot be read.
    """

    def __init__(self, path: Path | None, keys: Sequence[Key] | None = None) -> None:
        self._path, self._keys = path, keys
        self._stamp = _stamp(path)
        if path is not None and self._stamp is not None:
            self._keys = read_keys(path)

    @classmethod
    def open(cls, settings: Settings) -> KeyRing:
        """The keys of a service: of ``settings.keys``, else of the environment, else of the run folder, if any.

        Raises:
            KeysError: they cannot be read, or ``settings.keys`` is not there.
        """
        if settings.keys is None and (text := os.environ.get(ENVIRONMENT)):
            return cls(None, _parsed(text, ENVIRONMENT))
        ring = cls(settings.keys or settings.run / KEYS_FILE)
        if settings.keys is not None and ring._keys is None:
            raise KeysError(
                f"{settings.keys}: expected a keys file, found none. "
                f"Run 'moon keys create NAME --scope read --keys {settings.keys}'."
            )
        return ring

    @property
    def keys(self) -> Sequence[Key] | None:
        """The keys in force; None: there never were any, and everybody may do everything."""
        stamp = _stamp(self._path)
        if self._path is not None and stamp is not None and stamp != self._stamp:
            self._stamp = stamp
            try:
                self._keys = read_keys(self._path)
                log.info("%d keys are in force", len(self._keys))
            except (KeysError, OSError) as error:
                log.error("the keys of before stay in force: %s", error)
        return self._keys

    def caller(self, presented: str | None) -> Caller | None:
        """Who presents this key, in a time that does not depend on how much of it is right; None: nobody known."""
        keys = self.keys
        if keys is None:
            return ANYONE
        if presented is None:
            return None
        digest, found = digest_of(presented), None
        for key in keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return None if found is None else Caller(found.name, frozenset(found.scopes))


def require_keys(settings: Settings) -> None:
    """Refuse to serve without keys on an address that other machines can reach.

    Raises:
        KeysError: there are none, or they cannot be read.
    """
    if not is_loopback(settings.host) and not KeyRing.open(settings).keys:
        raise KeysError(
            f"expected API keys for a service on {settings.host}, found none: whoever reaches that address could "
            f"write. Run 'moon keys create NAME --scope read' first, or serve on 127.0.0.1."
        )


def warn_of_no_keys(settings: Settings) -> None:
    """Say that everybody who reaches the service may do everything, where that is so."""
    if KeyRing.open(settings).keys is None:
        log.warning(
            "NO API KEYS: every program on this machine, and whoever a proxy lets through to %s:%d, may read, write "
            "and delete. Run 'moon keys create NAME --scope read' to close it.",
            settings.host,
            settings.port,
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def create_key(path: Path, name: str, scopes: Sequence[str]) -> str:
    """Make a key and add its digest to the file.

    Returns:
        the key; it is stored nowhere.

    Raises:
        KeysError: the name or a scope is invalid, or the file cannot be read.
    """
    key = f"moon_{secrets.token_urlsafe(32)}"
    try:
        made = Key.model_validate(
            {
                "name": name,
                "scopes": tuple(dict.fromkeys(scopes)),
                "sha256": digest_of(key),
                "created": datetime.now(UTC).replace(microsecond=0),
            }
        )
    except ValidationError as error:
        raise KeysError(
            f"expected a name of at most 64 letters, digits, '.', '_' or '-', and one or more of the scopes "
            f"{', '.join(SCOPES)}; found {name!r} and {', '.join(map(str, scopes)) or 'no scope'}. "
            f"Run 'moon keys create NAME --scope read'."
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f"{path.name}.lock")):
        _write(path, [*read_keys(path), made])
    return key


def revoke_key(path: Path, asked: str) -> int:
    """Remove all keys of a name, or the key with an id; returns how many.

    Raises:
        KeysError: there is none, or the file cannot be read.
    """
    with locked(path.with_name(f"{path.name}.lock")):
        keys = read_keys(path)
        kept = [key for key in keys if asked not in (key.name, key.id)]
        if len(kept) == len(keys):
            known = ", ".join(f"{key.name} ({key.id})" for key in keys) or "none"
            raise KeysError(f"{path}: no key {asked!r}; there are: {known}. Run 'moon keys list'.")
        _write(path, kept)
    return len(keys) - len(kept)


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a file; none where there is no file.

    Raises:
        KeysError: it is not a keys file.
    """
    return _parsed(path.read_text(), str(path)) if path.exists() else ()


def digest_of(key: str) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


def _parsed(text: str, where: str) -> tuple[Key, ...]:
    try:
        return KeyList.model_validate_json(text).keys
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise KeysError(
            f'{where}: expected {{"keys": [{{"name", "scopes", "sha256"}}]}}, found a fault at {place}: '
            f"{first['msg']}. 'moon keys create NAME --scope read' writes such a file."
        ) from None


def _write(path: Path, keys: Sequence[Key]) -> None:
    write_json(path, KeyList(keys=tuple(keys)).model_dump(mode="json", exclude_none=True))
    path.chmod(0o600)


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path) if path is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)

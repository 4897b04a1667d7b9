"""The daemon's folder of keys: its own, and whom it lets in, with what.

::

    server.key            the daemon's key pair, and the address that sites are told
    clients/NAME.json     one a name: its roles, what it may see, its public keys

Each change replaces a file as a whole, so that a running daemon can look at any moment. There is
no secret in the clients' files: they can be read by whoever may read their folder. A service under
systemd, which is nobody's account, is handed ``server.key`` as a credential.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple
from urllib.parse import quote

from . import keys
from .errors import KeyFileError
from .keys import Key
from .records import check_name, check_type

__all__ = ["ROLES", "Client", "KeyRing"]

#: What a key may be used for: to log, to receive, to look after the daemon.
ROLES = ("writer", "subscriber", "operator")

#: Longest name, in bytes: it names a file too.
MAX_NAME = 80


class Client(NamedTuple):
    """One key, and what it is good for. ``topics`` and ``sites``: what a subscriber may see."""

    name: str
    roles: frozenset[str]
    topics: frozenset[str] | None = None
    sites: frozenset[str] | None = None
    revoked: bool = False


class KeyRing:
    """The folder at ``path``, as it was made by :meth:`create`.

    Raises:
        KeyFileError: there is none, or others may read or change it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path / "clients"
        own = _credential() or _own(path / "server.key")
        if own is None:
            raise KeyFileError(
                f"{path} has no server.key: it is no folder that `zmqtrack keys init` made. Name "
                "another (--keys or ZMQTRACK_KEYS; in the configuration: keys), or make one"
            )
        try:
            self.address = str(own["address"])
            self.public, self.secret = own["public"].encode(), own["secret"].encode()
            Key.of({**own, "name": "server", "server": own["public"]})
        except (KeyError, AttributeError, ValueError) as error:
            raise KeyFileError(f"{path / 'server.key'} is no server's key: {error}") from None
        for place in (path, self.folder):
            _check_writable_by_owner_alone(place)
        self._seen: dict[str, tuple[int, int]] = {}  # by file, as :meth:`clients` read it

    @classmethod
    def create(cls, path: Path, address: str) -> KeyRing:
        """A new server's key; sites are told ``address``.

        Raises:
            FileExistsError: there is one.
        """
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        (path / "clients").mkdir(exist_ok=True, mode=0o700)
        public, secret = keys.new_pair()
        fields = {"address": address, "public": public.decode(), "secret": secret.decode()}
        keys.write(path / "server.key", fields)
        return cls(path)

    # --- what the daemon asks -----------------------------------------------------------------

    def version(self) -> int:
        """Changes with each change of a client.

        Raises:
            OSError: the folder is not there any more.
        """
        return hash(tuple(sorted(self._files().items())))

    def _files(self) -> dict[str, tuple[int, int]]:
        with os.scandir(self.folder) as entries:
            return {entry.name: (entry.stat().st_mtime_ns, entry.inode()) for entry in entries}

    def has_changed(self, name: str) -> bool:
        """Whether the file of that client is another one than when :meth:`clients` read it.

        It opens no file.
        """
        path = self._path(name)
        try:
            now = path.stat()
        except OSError:
            return True
        return self._seen.get(path.name) != (now.st_mtime_ns, now.st_ino)

    def clients(self) -> dict[bytes, Client]:
        """Who belongs to each public key.

        Raises:
            KeyFileError, OSError: a file cannot be read; nobody may be let in then.
        """
        _check_writable_by_owner_alone(self.folder)
        files = self._files()  # what changes after this is seen to have changed
        try:
            known = self.facts()
        except PermissionError as error:
            raise KeyFileError(
                f"{error.filename} cannot be read by this service. No secret is in clients/: "
                f"chmod a+rX {self.path} and chmod -R a+rX {self.folder}"
            ) from None
        self._seen = files
        found = {}
        for facts in known:
            client = Client(
                facts["name"],
                frozenset(facts["roles"]),
                None if facts["topics"] is None else frozenset(facts["topics"]),
                None if facts["sites"] is None else frozenset(facts["sites"]),
            )
            for each in facts["keys"]:
                public = each["public"].encode()
                found[public] = client._replace(revoked="revoked" in each)
        return found

    # --- what an operator does ----------------------------------------------------------------

    def facts(self) -> list[dict[str, Any]]:
        """All that is known of each client, by name.

        Raises:
            KeyFileError, OSError: a file cannot be read.
        """
        paths = sorted(path for path in self.folder.iterdir() if path.suffix == ".json")
        return sorted(map(self._read, paths), key=lambda facts: facts["name"])

    def new(
        self,
        name: str,
        roles: list[str],
        topics: list[str] | None = None,
        sites: list[str] | None = None,
        *,
        rotate: bool = False,
        address: str | None = None,
    ) -> Key:
        """Let ``name`` in; returns the key to be handed to it, which is kept nowhere here.

        Raises:
            ValueError: a name or role that cannot be; or it has a key, and ``rotate`` is not set.
        """
        check_name("name", name, MAX_NAME)
        if ":" in name or name.startswith("("):
            raise ValueError(f"{name!r}: a key's name has no ':', and does not begin with '('")
        facts = self._find(name)
        current = [each for each in facts["keys"] if "revoked" not in each] if facts else []
        if current and not rotate:
            raise ValueError(
                f"{name} has a key already. Give it a second one with --rotate, or take the first "
                f"away with: zmqtrack keys revoke {name}"
            )
        if current and (roles or topics or sites):
            raise ValueError(
                f"with --rotate what {name} may do stays as it is; `zmqtrack keys roles` changes it"
            )
        facts = facts or {"name": name, "keys": []}
        roles = roles or ["writer"]
        if "subscriber" not in roles and (topics or sites):
            raise ValueError("--topic and --site are for a key that has the role subscriber")
        if not current:
            facts |= _grants(roles, topics, sites)
        public, secret = keys.new_pair()
        facts["keys"].append({"public": public.decode(), "created": time.time()})
        self._write(facts)
        return Key(name, address or self.address, self.public, public, secret)

    def forget(self, name: str, key: Key) -> None:
        """Undo :meth:`new`: the key could not be handed over."""
        facts = self.known(name)
        facts["keys"] = [each for each in facts["keys"] if each["public"] != key.public.decode()]
        if facts["keys"]:
            self._write(facts)
        else:
            self._path(name).unlink()

    def revoke(self, name: str, *, older: bool = False) -> int:
        """Take all keys of ``name`` away, or all but the newest; returns how many.

        Raises:
            ValueError: nobody has that name.
        """
        facts = self.known(name)
        good = [each for each in facts["keys"] if "revoked" not in each]
        gone = good[:-1] if older else good
        for each in gone:
            each["revoked"] = time.time()
        self._write(facts)
        return len(gone)

    def grant(
        self,
        name: str,
        roles: list[str] | None,
        topics: list[str] | None = None,
        sites: list[str] | None = None,
    ) -> None:
        """Change what ``name`` may do; what is None stays as it is, ``["*"]`` stands for all.

        Raises:
            ValueError: nobody has that name, or there is no such role or data type.
        """
        facts = self.known(name)
        for what, new in (("roles", roles), ("topics", topics), ("sites", sites)):
            if new is not None:
                facts[what] = None if new == ["*"] and what != "roles" else new
        self._write(facts | _grants(facts["roles"], facts["topics"], facts["sites"]))

    # --- inside -------------------------------------------------------------------------------

    def _path(self, name: str) -> Path:
        return self.folder / f"{quote(name, safe=' ')}.json"

    def known(self, name: str) -> dict[str, Any]:
        """All that is known of ``name``.

        Raises:
            ValueError: nobody has that name.
        """
        facts = self._find(name)
        if facts is None:
            names = ", ".join(each["name"] for each in self.facts()) or "nobody yet"
            raise ValueError(f"nobody is called {name!r}; there are: {names}")
        return facts

    def _find(self, name: str) -> dict[str, Any] | None:
        path = self._path(name)
        return self._read(path) if path.exists() else None

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            _check_writable_by_owner_alone(path)
            facts = json.loads(path.read_text(encoding="utf-8"))
            if self._path(check_name("name", facts["name"])).name != path.name:
                raise ValueError(f"it says that it is {facts['name']!r:.100}")
            for what in ("roles", "topics", "sites"):
                if not isinstance(facts[what], (list, NoneType)):
                    raise TypeError(f"{what} is no list")
            facts |= _grants(facts["roles"], facts["topics"], facts["sites"])
            for each in facts["keys"]:
                keys.check_key("public", each["public"])
                for when in ("created", "revoked"):
                    float(each.get(when, each["created"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise KeyFileError(f"{path} does not say who may come in: {error!r:.200}") from None
        return dict(facts)

    def _write(self, facts: dict[str, Any]) -> None:
        mode = 0o600 | (self.folder.stat().st_mode & 0o044)
        keys.write(self._path(facts["name"]), facts, replace=True, mode=mode)


def _own(path: Path) -> dict[str, Any] | None:
    """The daemon's own key, if there is one; one that we may not read is something else."""
    with contextlib.suppress(PermissionError):
        if not path.exists():
            return None
    return keys.read_private(path)


def _credential() -> dict[str, Any] | None:
    """The one that systemd hands to the daemon; ``{}`` stands for none."""
    given = os.environ.get("CREDENTIALS_DIRECTORY")
    return (_own(Path(given) / "server.key") or None) if given else None


def _grants(
    roles: list[str], topics: list[str] | None, sites: list[str] | None
) -> dict[str, list[str] | None]:
    if not roles or (strange := sorted(set(roles) - set(ROLES))):
        what = f"no such role: {strange[0]!r}" if roles else "no role is named"
        raise ValueError(f"{what}; there are: {', '.join(ROLES)}")
    return {
        "roles": sorted(set(roles)),
        "topics": None if topics is None else sorted(map(check_type, topics)),
        "sites": None if sites is None else sorted(check_name("site", site) for site in sites),
    }


def _check_writable_by_owner_alone(folder: Path) -> None:
    try:
        mode = folder.stat().st_mode
    except OSError as error:
        raise KeyFileError(f"{folder} cannot be read: {error.strerror}") from None
    if mode & 0o022:
        raise KeyFileError(
            f"{folder} can be changed by others (mode {stat.S_IMODE(mode):04o}): who may come in "
            f"is not certain. chmod 700 {folder}"
        )

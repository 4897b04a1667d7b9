"""``zmqtrack service``: the daemon under systemd. Writes files; systemctl does the rest."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Annotated, NamedTuple, NoReturn

import typer

__all__ = ["service_app"]

service_app = typer.Typer(help="Run the daemon as a service of systemd.")

#: Where a service that is nobody's account cannot start a program from.
_HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
#: The last line of a unit that we wrote, by which we know it again if nobody has changed it.
_STAMP = "# Written by zmqtrack service install: "

User = Annotated[
    bool, typer.Option("--user", help="A service of this user, without root, in ~/.config.")
]
Root = Annotated[
    Path | None, typer.Option("--root", help="Write below this folder, as to make a package.")
]
Executable = Annotated[
    Path | None,
    typer.Option("--executable", help="The zmqtrackd to run. Default: the one beside this."),
]
Force = Annotated[
    bool, typer.Option("--force", help="Replace units that were changed; they are kept as .old.")
]


class _Places(NamedTuple):
    """Where things are for the service, without ``--root``."""

    units: Path
    config: Path
    state: Path

    @classmethod
    def of(cls, user: bool) -> _Places:
        if not user:
            return cls(
                Path("/etc/systemd/system"), Path("/etc/zmqtrack"), Path("/var/lib/zmqtrack")
            )
        config = _xdg("XDG_CONFIG_HOME", ".config")
        state = _xdg("XDG_STATE_HOME", ".local/state")
        return cls(config / "systemd/user", config / "zmqtrack", state / "zmqtrack")


@service_app.command()
def install(
    user: User = False, root: Root = None, executable: Executable = None, force: Force = False
) -> None:
    """Write the units, and a configuration where there is none; say what to do next.

    Example:  sudo /opt/zmqtrack/bin/zmqtrack service install
    """
    program, python = _programs(user, root, executable)
    places = _Places.of(user)
    try:
        left = [
            name
            for name, text in _units(user, program, python, places.config).items()
            if not _put_unit(_below(root, places.units / name), text, force)
        ]
        _configure(places, user, root)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}")
    if left:
        _fail("changed units stay: move your changes to drop-ins (systemctl edit), then --force")
    systemctl = "systemctl --user" if user else "systemctl"
    typer.echo(
        f"\nNext:\n"
        f"  {systemctl} daemon-reload\n"
        f"  {systemctl} enable --now zmqtrackd\n"
        f"  {systemctl} status zmqtrackd\n"
        f"One more adapter is one more file in {places.config / 'adapters.d'}, then:\n"
        f"  {systemctl} reload zmqtrackd"
    )
    if user:
        typer.echo("It ends when you log out, unless:  loginctl enable-linger")


@service_app.command()
def uninstall(user: User = False, root: Root = None) -> None:
    """Stop the service and remove its units. Data and configuration stay.

    Example:  sudo zmqtrack service uninstall
    """
    _check_rights(user, root)
    places = _Places.of(user)
    units = [_below(root, places.units / name) for name in _names(user)]
    found = [unit for unit in units if unit.exists() or unit.is_symlink()]
    try:
        if found and root is None:
            _systemctl(user, "stop", "zmqtrack-adapter@*.service", "zmqtrackd.service")
            _systemctl(user, "disable", *(unit.name for unit in found))
        for unit in found:
            if _is_ours(unit):
                unit.unlink()
                typer.echo(f"removed {unit}")
            else:
                typer.echo(f"removed {unit}; it was changed, and is kept as {_set_aside(unit)}")
        if found and root is None:
            _systemctl(user, "daemon-reload")
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}")
    if not found:
        typer.echo(f"no unit of zmqtrack is in {_below(root, places.units)}")
    for what, place in (
        ("the configuration", _below(root, places.config)),
        ("the journal and what adapters wrote", _below(root, places.state)),
        *(("drop-ins", unit.with_name(f"{unit.name}.d")) for unit in units),
    ):
        if place.exists():
            typer.echo(f"left: {what} in {place}")


# --- what is written -----------------------------------------------------------------------------


def _names(user: bool) -> list[str]:
    return ["zmqtrackd.service"] if user else ["zmqtrackd.service", "zmqtrack-adapter@.service"]


def _shipped(name: str) -> str:
    return (resources.files("zmqtrack.units") / name).read_text(encoding="utf-8")


def _units(user: bool, program: Path, python: Path, config: Path) -> dict[str, str]:
    """The units that we ship, with the paths of this installation; by name."""
    folder = "user/" if user else ""
    texts = {name: _shipped(folder + name) for name in _names(user)}
    for name, text in texts.items():
        for shipped, real in (
            ("/usr/bin/zmqtrackd", program),
            ("/usr/bin/python3", python),
            ("%E/zmqtrack/zmqtrack.yaml", config / "zmqtrack.yaml"),
        ):
            text = text.replace(shipped, _in_unit(real))
        state = str(_Places.of(user).state).replace("%", "%%")
        text = text.replace("%h/.local/state/zmqtrack", state)
        texts[name] = text + _stamp(text)
    return texts


def _in_unit(path: Path) -> str:
    """A path as one word of a unit's command line."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$").replace("%", "%%")
    return text if re.fullmatch(r"[\w@%+=:,./-]+", text) else f'"{text}"'


def _configure(places: _Places, user: bool, root: Path | None) -> None:
    """The configuration and its folders; what is there stays."""
    folder = _below(root, places.config)
    mode = 0o700 if user else 0o755
    file = folder / "zmqtrack.yaml"
    # Keys: who may come in is read by the service itself; the daemon's own key is handed to it.
    for each in (folder, folder / "adapters.d", folder / "keys", folder / "keys/clients"):
        _make(each, mode)
    if user:
        _make(_below(root, places.state), mode)
    else:
        _make(folder / "adapters", 0o700)
        _make(folder / "secrets", 0o700)
    if file.exists():
        typer.echo(f"{file} is there, and stays as it is")
        return
    text = _shipped("zmqtrack.yaml")
    if user:
        text = text.replace("/var/lib/zmqtrack", str(places.state))
        text = text.replace("/etc/zmqtrack", str(places.config))
        text = text.replace("systemctl reload", "systemctl --user reload")
    _write(file, text, 0o600 if user else 0o644)
    typer.echo(f"wrote {file}")


def _put_unit(path: Path, text: str, force: bool) -> bool:
    """Write a unit, and say so; False if somebody has changed the one that is there."""
    if not (path.exists() or path.is_symlink()):
        _write(path, text)
        typer.echo(f"wrote {path}")
    elif not path.is_symlink() and path.read_text(encoding="utf-8", errors="replace") == text:
        typer.echo(f"{path} is as it should be")
    elif _is_ours(path):
        _write(path, text)
        typer.echo(f"updated {path}")
    elif force:
        kept = _set_aside(path)
        _write(path, text)
        typer.echo(f"replaced {path}; the changed one is kept as {kept}")
    else:
        typer.echo(f"{path} was changed, and stays as it is; --force replaces it", err=True)
        return False
    return True


def _stamp(text: str) -> str:
    return f"{_STAMP}{hashlib.sha256(text.encode()).hexdigest()[:16]}\n"


def _is_ours(path: Path) -> bool:
    """Whether a unit is as we wrote it, perhaps in another version."""
    if path.is_symlink():
        return False
    text, _, stamp = path.read_text(encoding="utf-8", errors="replace").rpartition(_STAMP)
    return bool(stamp) and _stamp(text) == f"{_STAMP}{stamp}"


def _set_aside(path: Path) -> Path:
    return path.replace(path.with_name(f"{path.name}.old"))


def _make(folder: Path, mode: int) -> None:
    """A folder with this mode, whatever the umask; one that is there stays as it is."""
    if not folder.exists():
        folder.mkdir(parents=True)
        folder.chmod(mode)


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# --- where we are --------------------------------------------------------------------------------


def _programs(user: bool, root: Path | None, executable: Path | None) -> tuple[Path, Path]:
    """zmqtrackd and its Python, if the service can start them."""
    _check_rights(user, root)
    if executable is not None:
        program, python = executable, executable.with_name("python3")
        needed = [program] if root is None else []  # a package's need not be here yet
        if not program.is_absolute():
            _fail(f"--executable {program}: name it with its whole path", code=2)
    else:
        python = Path(sys.executable)
        program = python.with_name("zmqtrackd")
        if not program.exists():
            program = Path(shutil.which("zmqtrackd") or program)
        needed = [program, Path(sys.base_prefix), Path(__file__)]
    if not program.exists() and root is None:
        _fail(f"{program} is not there: name the zmqtrackd to run with --executable")
    for each in needed:
        hidden = [place for place in _HIDDEN if each.is_relative_to(place)]
        if hidden and not user:
            _fail(
                f"{each} is in {hidden[0]}, which a service of the system does not see. Install "
                "zmqtrack for all:\n"
                "  python3 -m venv /opt/zmqtrack\n"
                "  /opt/zmqtrack/bin/pip install 'zmqtrack[daemon]'\n"
                "  /opt/zmqtrack/bin/zmqtrack service install\n"
                "or make it a service of this user alone: zmqtrack service install --user"
            )
    return program.absolute(), python.absolute()


def _check_rights(user: bool, root: Path | None) -> None:
    if not user and root is None and os.geteuid() != 0:
        _fail("a service of the system takes root: use sudo; or --user for one without")


def _below(root: Path | None, path: Path) -> Path:
    return path if root is None else root / path.relative_to("/")


def _xdg(variable: str, default: str) -> Path:
    value = os.environ.get(variable, "")
    return Path(value) if Path(value).is_absolute() else Path.home() / default


def _systemctl(user: bool, *arguments: str) -> None:
    """Where systemd runs; nothing is removed of a service that it cannot stop."""
    # The variable is missing under su and cron.
    own = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    if not Path(own if user else "/run", "systemd").is_dir() or shutil.which("systemctl") is None:
        return
    command = ["systemctl", *(["--user"] if user else []), *arguments]
    env = {**os.environ, "XDG_RUNTIME_DIR": own} if user else None
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode and "not loaded" not in done.stderr:
        _fail(f"{' '.join(command)}: {done.stderr.strip()}")


def _fail(message: str, code: int = 1) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)

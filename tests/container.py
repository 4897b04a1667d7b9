"""A Debian with a systemd of its own, booted in a container, for tests. Takes root.

The tree is made once, by ``debootstrap`` from where this machine gets its packages, with an
environment that has zmqtrack's dependencies; it is kept in the user's cache. Each container works
on a copy, in a network of its own that has nothing but loopback.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from harness import PATIENCE

ROOT = Path(__file__).parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "") or Path.home() / ".cache") / "zmqtrack-tests"
TREE = CACHE / "tree"
#: What a tree is made of; another list makes another tree.
PACKAGES = ("systemd", "systemd-sysv", "dbus", "libpam-systemd", "python3", "python3-venv")
#: Where zmqtrack is installed in it.
VENV = "/opt/zmqtrack"


def obstacle(build: bool) -> str:
    """Why there can be no container here; empty if there can."""
    if os.geteuid() != 0:
        return "a container takes root"
    if shutil.which("systemd-nspawn") is None:
        return "there is no systemd-nspawn here (Debian: systemd-container)"
    if not build and _made_of() != _recipe():
        return "there is no tree to boot: `make systemd` makes one, which takes minutes"
    if build and shutil.which("debootstrap") is None and _made_of() != _recipe():
        return "there is no debootstrap here"
    return ""


def build() -> None:
    """Make the tree, if there is none."""
    if _made_of() == _recipe():
        return
    shutil.rmtree(TREE, ignore_errors=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    suite, mirror = _source()
    include = f"--include={','.join(PACKAGES)}"
    _run("debootstrap", "--variant=minbase", include, suite, TREE, *mirror)
    version = _run("chroot", TREE, "python3", "-c", "import sys; print(*sys.version_info[:2])")
    wheels = TREE / "wheels"
    _run(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--dest", wheels),
        *("--only-binary=:all:", "--python-version", version.strip().replace(" ", ".")),
        *_requirements(),
    )  # fmt: skip
    _run("chroot", TREE, "python3", "-m", "venv", VENV)
    pip = ("chroot", TREE, f"{VENV}/bin/pip", "install", "--quiet", "--no-index")
    _run(*pip, "--find-links=/wheels", *_requirements())
    shutil.rmtree(wheels)
    for name in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"):
        shutil.rmtree(TREE / name, ignore_errors=True)  # the less there is to copy
    (TREE / "etc/machine-id").write_text("")
    (TREE / "made-of").write_text(_recipe())


def wheel(folder: Path) -> Path:
    """The wheel of this checkout, built on a copy of what it is made of."""
    source = folder / "source"
    for name in ("zmqtrack", "daemon", "adapters", "configs"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    _run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"),
        *("--wheel-dir", folder, source),
    )
    (made,) = folder.glob("*.whl")
    return made


class Container:
    """Booted by ``with``; gone with all that is in it at the end."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self._log = folder / "console"
        self._init = 0

    def install(self, built: Path) -> None:
        """Copy the tree, and install a wheel into its environment."""
        _run("cp", "-a", "--reflink=auto", TREE, self.root)
        shutil.copy(built, self.root / "root")
        pip = ("chroot", self.root, f"{VENV}/bin/pip", "install", "--quiet", "--no-index")
        _run(*pip, "--no-deps", f"/root/{built.name}")

    def __enter__(self) -> Container:
        command = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot"]
        command += ["--private-network", "--console=pipe", "--machine=zmqtrack-test"]
        with self._log.open("wb") as log:
            self._nspawn = subprocess.Popen(
                [*command, "--directory", self.root],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._nspawn.poll() is None:
            self._init = self._init or self._find_init()
            if self._init:
                done = self.run("systemctl", "is-system-running", check=False)
                if done.stdout.strip() in ("running", "degraded"):
                    return self
            time.sleep(0.2)
        self.__exit__()
        raise AssertionError(f"the container does not boot:\n{self._log.read_text()}")

    def __exit__(self, *_: object) -> None:
        # With its process 1 the kernel ends all that runs in there.
        if self._nspawn.poll() is None:
            os.kill(self._init or self._nspawn.pid, signal.SIGKILL)
        self._nspawn.wait(PATIENCE)
        shutil.rmtree(self.root, ignore_errors=True)

    def _find_init(self) -> int:
        """The process that is number 1 in there, once it has become systemd."""
        for process in psutil.Process(self._nspawn.pid).children():
            try:
                if "systemd" in process.name() and process.name() != "systemd-nspawn":
                    return process.pid
            except psutil.NoSuchProcess:
                pass
        return 0

    def command(self, *arguments: object, **environ: str) -> list[str]:
        """The command that runs ``arguments`` in there, as root."""
        enter = ["nsenter", "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wdns=/"]
        path = f"PATH={VENV}/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        env = ["env", "-i", path, "HOME=/root", "LANG=C.UTF-8", "SYSTEMD_PAGER="]
        env += [f"{name}={value}" for name, value in environ.items()]
        return [*enter, "--target", str(self._init), *env, *map(str, arguments)]

    def run(
        self, *arguments: object, check: bool = True, timeout: float = 90, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*arguments, **environ),
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode:
            raise AssertionError(
                f"{arguments}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Facts about a unit."""
        done = self.run("systemctl", "show", unit, f"--property={','.join(properties)}")
        return dict(line.split("=", 1) for line in done.stdout.splitlines())

    def journal(self, unit: str) -> str:
        """What the unit has logged."""
        return self.run("journalctl", "--no-pager", "--output=short-monotonic", "-u", unit).stdout


def _recipe() -> str:
    text = " ".join([*PACKAGES, *_requirements(), *_source()[0:1]])
    return hashlib.sha256(text.encode()).hexdigest()


def _made_of() -> str:
    path = TREE / "made-of"
    return path.read_text() if path.exists() else ""


def _requirements() -> list[str]:
    """What zmqtrack[daemon] needs, of pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text()
    found: list[str] = []
    for name in ("dependencies", "daemon"):
        (listed,) = re.findall(rf"^{name} = \[(.*?)\]", text, re.M | re.S)
        found += re.findall(r'"([^"]+)"', listed)
    return found


def _source() -> tuple[str, list[str]]:
    """This machine's release, and the mirror that it has its packages from (or debootstrap's)."""
    release = Path("/etc/os-release").read_text()
    suite = re.search(r"^VERSION_CODENAME=(\w+)", release, re.M)
    apt = Path("/etc/apt")
    for path in [*sorted(apt.glob("sources.list.d/*")), apt / "sources.list"]:
        text = path.read_text() if path.is_file() else ""
        for pattern in (r"^URIs:\s*(\S+)", r"^deb\s+(?:\[.*?\]\s+)?(\S+)\s"):
            if suite and suite[1] in text and (uri := re.search(pattern, text, re.M)):
                return suite[1], [uri[1]]
    return (suite[1] if suite else "stable"), []


def _run(*arguments: object, **more: Any) -> str:
    command: Sequence[str] = [str(each) for each in arguments]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, **more)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout

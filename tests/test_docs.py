"""The pages agree with the code: generated ones, links, command lines, helps, completion."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from typer.testing import CliRunner

from zmqtrack.cli.app import app
from zmqtrack.config import load
from zmqtrack.errors import ConfigError

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCHEMA = json.loads((ROOT / "configs" / "zmqtrack.schema.json").read_text())
SHELLS = ("", "sh", "console", "text", "bash")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


# --- what is generated ---------------------------------------------------------------------


def test_what_is_generated_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("file", ["zmqtrack.yaml", "reference.yaml"])
def test_the_schema_for_editors_takes_the_configurations_that_we_ship(file: str) -> None:
    data = yaml.safe_load((ROOT / "configs" / file).read_text())
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(data, SCHEMA)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "daemon: {lease: 0, stale_after: 1.5, retain_time: 7d, commit_interval: 10 ms}",
        'daemon: {lease: "0"}',
        "daemon: {memory: 1000, max_bytes: 20GiB, retain_bytes: 1.5 GB, limits: {text: 8kB}}",
        "adapters: [{type: jsonl, options: {dir: out}}, {type: 'my.module:Mine', options: {a: 1}}]",
        "adapters: [{type: mlflow, options: {tracking_uri: 'sqlite:///a.db'}}]",
        "adapters: [{type: jsonl, options: {dir: o}, secrets: {TOKEN: {env: OTHER}}}]",
        # And what neither takes.
        "demon: {}",
        "daemon: {leese: 5m}",
        "daemon: {lease: 5 parsecs}",
        "daemon: {lease: -1}",
        "daemon: {memory: 256 MiBs}",
        "daemon: {memory: 1.5}",
        "daemon: {log_format: xml}",
        "adapters: [{options: {dir: out}}]",
        "adapters: [{type: jsonl}]",
        "adapters: [{type: jsonl, options: {dirr: out}}]",
        "adapters: [{type: wandb, options: {mode: of}}]",
        "adapters: [{type: jsonl, options: {dir: o}, secrets: {TOKEN: plain}}]",
    ],
)
def test_the_schema_for_editors_agrees_with_the_daemon(text: str, tmp_path: Path) -> None:
    config = tmp_path / "zmqtrack.yaml"
    config.write_text(text)
    valid = jsonschema.Draft202012Validator(SCHEMA).is_valid(yaml.safe_load(text))
    assert valid == _daemon_takes(config)


def _daemon_takes(config: Path) -> bool:
    from zmqtrack.adapters import loader

    try:
        adapters = load(config).config.adapters
    except ConfigError:
        return False
    for adapter in adapters:
        if ":" not in adapter.type:
            try:
                loader.options(adapter, loader.load(adapter.type))
            except loader.LoadError:
                return False
    return True


# --- links ---------------------------------------------------------------------------------


def _blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of each fenced block."""
    return re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def _prose(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def _anchors(page: Path) -> set[str]:
    """Of each heading, as a forge makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.*?) *$", _prose(page.read_text()), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        unique, number = slug, 0
        while unique in found:
            number += 1
            unique = f"{slug}-{number}"
        found.add(unique)
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", _prose(page.read_text()))
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", text):
        if re.match(r"[a-z]+:", target):
            continue  # to elsewhere
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name(page)}: {target}"
        assert file.is_relative_to(ROOT), f"{name(page)}: {target}"
        if anchor:
            assert anchor in _anchors(file), f"{name(page)}: no heading for {target}"


# --- command lines -------------------------------------------------------------------------


def _lines(page: Path) -> Iterator[str]:
    """What stands as a command in a block or between backticks."""
    text = page.read_text()
    for language, block in _blocks(text):
        if language in SHELLS:
            lines = block.replace("\\\n", " ").splitlines()
            prompted = [line[2:] for line in lines if line.startswith("$ ")]
            yield from prompted or lines
    yield from re.findall(r"`([^`]+)`", _prose(text))


def _commands(page: Path) -> Iterator[list[str]]:
    """Words of each command of ours, from its name on."""
    start = re.compile(r"(?:sudo |[A-Z_]+=\S+ )*(?:\S*/)?(zmqtrackd?)(?: (.*))?$", re.DOTALL)
    for line in _lines(page):
        if (found := start.match(line.strip())) is None:
            continue
        words = re.sub(r"[\[\]…]", " ", found[2] or "")
        for end in ("|", "→", "&", ";", ">", "<", "#"):
            words = words.partition(f" {end}")[0]
        try:
            yield [found[1], *shlex.split(words)]
        except ValueError:  # an apostrophe: prose
            continue


def _options(command: Any) -> set[str]:
    return {"--help", *(o for p in command.params for o in (*p.opts, *p.secondary_opts))}


def check(words: list[str], daemon_options: set[str]) -> str:
    """What is wrong with a command line, or nothing."""
    program, *rest = words
    if program == "zmqtrackd":
        unknown = [
            w for w in rest if w.startswith("-") and w.partition("=")[0] not in daemon_options
        ]
        return f"zmqtrackd has no {unknown}" if unknown else ""
    command: Any = typer.main.get_command(app)
    path = "zmqtrack"
    known = _options(command) | {"--install-completion", "--show-completion"}
    for word in rest:
        if word == "--":
            break
        if word.startswith("-"):
            if word.partition("=")[0] not in known:
                return f"{path} has no option {word}"
        elif hasattr(command, "commands"):
            if word.isupper():
                break  # stands for any
            if word not in command.commands:
                return f"{path} has no command {word!r}"
            command, path = command.commands[word], f"{path} {word}"
            known = _options(command)
    return ""


@pytest.fixture(scope="module")
def daemon_options() -> set[str]:
    shown = subprocess.run(
        [sys.executable, "-m", "zmqtrack.daemon", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return set(re.findall(r"--?[a-z-]+", shown.stdout))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_line_names_what_there_is(page: Path, daemon_options: set[str]) -> None:
    for words in _commands(page):
        assert not check(words, daemon_options), f"{name(page)}: {' '.join(words)}"


def test_command_lines_are_found_and_judged(tmp_path: Path, daemon_options: set[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Prose: zmqtrack carries. `zmqtrack keys roles NAME [ROLE…] [--topic …]`, `zmqtrack`.\n"
        "```sh\nsudo /opt/bin/zmqtrack statsu | head\nA=b zmqtrack status --jsn  # facts\n```\n"
        "```console\n$ zmqtrack run -- python train.py --lr 1\nzmqtrack prints this\n```\n"
        "```python\nzmqtrack nonsense\n```\n`zmqtrackd --confg FILE`\n"
    )
    assert [check(words, daemon_options) for words in _commands(page) if words[1:2] != ["run"]] == [
        "zmqtrack has no command 'statsu'",
        "zmqtrack status has no option --jsn",
        "",
        "",
        "zmqtrackd has no ['--confg']",
    ]


# --- help and completion -------------------------------------------------------------------


def _walk(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _walk(command, (*path, word))
        elif not command.hidden:
            yield (*path, word), command


HELPS = dict(_walk(typer.main.get_command(app)))


@pytest.mark.parametrize("path", HELPS, ids=" ".join)
def test_every_help_has_an_example_that_works(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "100"})
    assert shown.exit_code == 0
    examples = re.findall(r"Examples?: +(.*)", shown.output)
    assert examples, shown.output
    for example in examples:
        words = shlex.split(re.split(r" [|→]", example)[0], comments=True)
        ours = words[next(i for i, w in enumerate(words) if w.rpartition("/")[2] == "zmqtrack") :]
        assert not check(["zmqtrack", *ours[1:]], set())
        assert tuple(ours[1:][: len(path)]) == path


@pytest.mark.parametrize("path", HELPS, ids=" ".join)
def test_every_option_says_what_it_is(path: tuple[str, ...]) -> None:
    for parameter in HELPS[path].params:
        if parameter.name not in ("help", "command"):
            assert parameter.help, f"{' '.join(path)}: {parameter.name}"


def _zmqtrack(folder: Path) -> dict[str, str]:
    """An environment in which ``zmqtrack`` is a program, wherever it is installed."""
    program = folder / "bin" / "zmqtrack"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m zmqtrack.cli "$@"\n')
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(folder)}


def test_bash_completes_commands_and_options_once_it_is_installed(tmp_path: Path) -> None:
    source = """
    zmqtrack --install-completion >installed
    . ~/.bashrc
    complete() { COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)); _zmqtrack_completion zmqtrack; }
    complete zmqtrack sta; echo "${COMPREPLY[@]}"
    complete zmqtrack dlq re; echo "${COMPREPLY[@]}"
    complete zmqtrack drain --time; echo "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "-c", source],
        cwd=tmp_path,
        env=_zmqtrack(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == ["status", "retry", "--timeout"], done.stderr
    assert "bash completion installed" in (tmp_path / "installed").read_text()


@pytest.mark.parametrize(
    ("shell", "marks"),
    [
        ("bash", ["complete -o default -F _zmqtrack_completion zmqtrack"]),
        ("zsh", ["#compdef zmqtrack", "_ZMQTRACK_COMPLETE=complete_zsh"]),
        ("fish", ["complete --command zmqtrack", "_ZMQTRACK_COMPLETE=complete_fish"]),
    ],
)
def test_each_shell_is_told_how_to_ask_and_gets_an_answer(
    shell: str, marks: list[str], tmp_path: Path
) -> None:
    def said(**variables: str) -> str:
        done = subprocess.run(
            ["zmqtrack"],
            env={**_env, **variables},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stdout

    _env = _zmqtrack(tmp_path)
    script = said(_ZMQTRACK_COMPLETE=f"source_{shell}")
    assert all(mark in script for mark in marks)
    line = "zmqtrack spool se"
    asked = {"COMP_WORDS": line, "COMP_CWORD": "2", "_TYPER_COMPLETE_ARGS": line}
    asked["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
    answer = said(_ZMQTRACK_COMPLETE=f"complete_{shell}", **asked)
    assert "send" in answer and "list" not in answer

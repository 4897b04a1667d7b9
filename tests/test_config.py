"""A bad configuration is refused with file, line, key and what would be right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from zmqtrack.config import MAX_FILE, AdapterConfig, load
from zmqtrack.errors import ConfigError


def _problems(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "zmqtrack.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    return [problem.removeprefix(f"{path}:") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "daemon:\n  contrl: tcp://127.0.0.1:5555\n",
            "2: daemon.contrl: unknown key; did you mean 'control'? Known are: control, ingest",
        ),
        (
            "daemon:\n  control: localhost:5555\n",
            "2: daemon.control: 'localhost:5555' is no address; write for example tcp://127",
        ),
        (
            "adapters:\n  - type: jsonl\n    flush_interval: 1x\n",
            "3: adapters.0.flush_interval: '1x' is no duration; write for example 500ms, 1s",
        ),
        ("adapters:\n  - options: {}\n", "2: adapters.0.type: is missing"),
        (
            "adapters:\n  - type: jsonl\n    start: later\n",
            "3: adapters.0.start: expected 'beginning' or 'now', not 'later'",
        ),
        (
            "adapters:\n  - type: jsonl\n    topics: [metric, Bad-Topic]\n",
            "3: adapters.0.topics.1: 'Bad-Topic' cannot name a data type",
        ),
        (
            "adapters:\n  - type: jsonl\n  - type: jsonl\n",
            "3: adapter jsonl: the name 'jsonl' is taken by",
        ),
        ("daemon:\n  max_body: huge\n", "2: daemon.max_body: 'huge' is no size; write"),
        (
            "daemon:\n  limits: {artifact: 99999999999GB}\n",
            "2: daemon.limits.artifact: '99999999999GB' is too large; a size has less than 858",
        ),
        (
            "daemon:\n  max_bytes: 9223372036854775808\n",
            "2: daemon.max_bytes: 9223372036854775808 is too large; write 9223372036854775807",
        ),
        (
            f"daemon:\n  limits: {{streams: {'9' * 400}}}\n",
            f"2: daemon.limits.streams: {'9' * 40} is too large; write 9223372036854775807 at most",
        ),
        (
            f"daemon:\n  max_bytes: {'9' * 400}GB\n",
            f"2: daemon.max_bytes: '{'9' * 39} is too large",
        ),
        (
            "daemon: {control: 'tcp://127.0.0.1:5000', publish: 'tcp://127.0.0.1:5001'}\n",
            "1: daemon: ingest and publish are both tcp://127.0.0.1:5001: give each its own",
        ),
        (
            "daemon:\n  control: ipc://z\n  ingest: ipc://z\n",
            "1: daemon: control and ingest are both ipc://z: give each its own",
        ),
        (
            "daemon: {lease: 10s}\n",
            "1: daemon: lease (10 s) is shorter than stale_after (15 s): a run would end as kill",
        ),
        ("daemon:\n  lease: .inf\n", "2: daemon.lease: inf is too long; write 36500d at most"),
        ("daemon:\n  lease: .nan\n", "2: daemon.lease: nan is no duration; write for example"),
        (
            f"adapters:\n  - type: jsonl\n    retry_max: {'9' * 400}\n",
            f"3: adapters.0.retry_max: {'9' * 40} is too long; write 36500d at most",
        ),
        (
            "daemon:\n  stop_timeout: 36501d\n",
            "2: daemon.stop_timeout: '36501d' is too long; write 36500d at most",
        ),
        ("daemon: [1]\n", "1: daemon: expected a mapping, not [1]"),
        ("daemon: {state_dir: 5}\n", "1: daemon.state_dir: expected a path, not 5"),
        ("daemon: {insecure: maybe}\n", "1: daemon.insecure: expected true or false, not 'maybe'"),
        ("daemon: {limits: {runs: x}}\n", "1: daemon.limits.runs: expected a whole number, not"),
        ("daemon: {limits: {runs: 0}}\n", "1: daemon.limits.runs: expected more than 0, not 0"),
        ("daemon: {max_body: 9MiB}\n", "1: daemon.max_body: expected 8388608 or less, not 9437"),
        ("adapters: 5\n", "1: adapters: expected a list, not 5"),
        ("adapters: [5]\n", "1: adapters.0: expected a mapping, not 5"),
        ("adapters: [{type: 5}]\n", "1: adapters.0.type: expected text, not 5"),
        ("adapters: [{type: a, topics: []}]\n", "1: adapters.0.topics: expected 1 or more in the"),
        ("include: {a: b}\n", "1: include: expected a pattern of files, or a list of them, not"),
        ("include: [a.d/*, 1]\n", "1: include: expected a pattern of files, or a list of them"),
        ("xyz: 1\n", "1: xyz: unknown key. Known are: daemon, adapters, include"),
        ("daemon: {\n", "2: not valid YAML"),
        ("daemon: {}\ndaemon: {}\n", "2: not valid YAML: the key 'daemon' stands twice"),
        ("- a\n", "1: expected a mapping with daemon, adapters and include"),
        ("a: !!python/object/apply:os.system ['true']\n", "1: not valid YAML"),
        ("? [a]\n: b\n", "1: not valid YAML: found unhashable key"),
        ("a: &a [*a]\n", "1: not valid YAML: an alias within what it stands for"),
        ("a: " + "[" * 20_000, "1: not valid YAML: nested too deeply"),
        ("a: 2024-13-45\n", "1: not valid YAML: month must be in 1..12"),
        ("a: " + "9" * 10_000, "1: not valid YAML: Exceeds the limit"),
        (
            "adapters:\n  - type: wandb\n    secrets: {WANDB_API_KEY: {file: a, env: B}}\n",
            "3: adapters.0.secrets.WANDB_API_KEY: give one of: {env: NAME}, {file: PATH}, {cred",
        ),
        (
            "adapters:\n  - type: wandb\n    secrets: {WANDB_API_KEY: {flie: a}}\n",
            "3: adapters.0.secrets.WANDB_API_KEY.flie: unknown key; did you mean 'file'? Known",
        ),
        (
            "adapters:\n  - type: wandb\n    secrets: {API-KEY: {file: a}}\n",
            "3: adapters.0.secrets.API-KEY: expected the name of an environment variable",
        ),
        (
            "adapters:\n  - type: wandb\n    secrets: {WANDB_API_KEY: {credential: ../a}}\n",
            "3: adapters.0.secrets.WANDB_API_KEY.credential: expected the name of a credential",
        ),
    ],
)
def test_each_fault_is_named_with_line_key_and_what_would_be_right(
    tmp_path: Path, text: str, message: str
) -> None:
    (problem,) = _problems(tmp_path, text)
    assert problem.startswith(message)


@pytest.mark.parametrize(
    "wrong", ["s3cret-1", "[s3cret-1]", "{env: s3cret-1}", "{file: [s3cret-1]}"]
)
def test_a_secret_that_stands_in_the_file_itself_is_not_shown(tmp_path: Path, wrong: str) -> None:
    text = f"adapters:\n  - type: wandb\n    secrets: {{WANDB_API_KEY: {wrong}}}\n"
    (problem,) = _problems(tmp_path, text)
    assert problem.startswith("3: adapters.0.secrets.WANDB_API_KEY")
    assert "s3cret" not in problem


#: Each line holds the one before it nine times.
LAUGHS = "a0: &a0 [lol]\n" + "".join(
    f"a{n + 1}: &a{n + 1} [{','.join([f'*a{n}'] * 9)}]\n" for n in range(12)
)
#: The same with merges, which PyYAML expands itself.
MERGES = "a0: &a0 {k: v}\n" + "".join(
    f"a{n + 1}: &a{n + 1}\n  <<: [{','.join([f'*a{n}'] * 9)}]\n" for n in range(12)
)


@pytest.mark.parametrize("bomb", [LAUGHS, MERGES])
def test_aliases_cannot_make_a_small_file_a_large_one(tmp_path: Path, bomb: str) -> None:
    before = time.monotonic()
    (problem,) = _problems(tmp_path, bomb)
    assert "not valid YAML: more than 100000 values, with its aliases expanded" in problem
    assert time.monotonic() - before < 30  # expanded it has 9 ** 12 values


def test_aliases_that_save_writing_are_welcome(tmp_path: Path) -> None:
    path = tmp_path / "zmqtrack.yaml"
    path.write_text(
        "adapters:\n"
        "  - &base {type: jsonl, name: a, options: &options {dir: x}}\n"
        "  - {<<: *base, name: b}\n"
        "  - {type: jsonl, name: c, options: *options}\n"
    )
    assert [a.options for a in load(path).config.adapters] == [{"dir": "x"}] * 3


@pytest.mark.parametrize("included", [False, True])
def test_a_file_that_is_too_large_is_refused_and_not_read(tmp_path: Path, included: bool) -> None:
    huge = tmp_path / "huge.yaml"
    with huge.open("wb") as file:
        file.truncate(1 << 40)
    path = huge
    if included:
        path = tmp_path / "zmqtrack.yaml"
        path.write_text("include: huge.yaml\n")
    with pytest.raises(ConfigError, match=rf"huge\.yaml: larger than {MAX_FILE} bytes: that is no"):
        load(path)


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    problems = _problems(tmp_path, "daemon:\n  control: x\n  stop_timeout: y\nadapters:\n  - {}\n")
    assert [problem.split(":")[0] for problem in problems] == ["2", "3", "5"]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml: cannot be read: No such file"):
        load(tmp_path / "nothing.yaml")


def test_one_more_adapter_is_one_more_file(tmp_path: Path) -> None:
    main = tmp_path / "zmqtrack.yaml"
    main.write_text("adapters:\n  - type: jsonl\n    name: a\ninclude: adapters.d/*.yaml\n")
    (tmp_path / "adapters.d").mkdir()
    (tmp_path / "adapters.d" / "1.yaml").write_text("type: jsonl\nname: b\n")
    (tmp_path / "adapters.d" / "2.yaml").write_text(
        "adapters:\n  - type: jsonl\n    name: c\n  - type: tensorboard\n"
    )
    (tmp_path / "adapters.d" / "README.md").write_text("not YAML")
    names = [adapter.name for adapter in load(main).config.adapters]
    assert names == ["a", "b", "c", "tensorboard"]


def test_a_fault_in_an_included_file_names_that_file(tmp_path: Path) -> None:
    main = tmp_path / "zmqtrack.yaml"
    main.write_text("include: [adapters.d/*.yaml]\n")
    (tmp_path / "adapters.d").mkdir()
    bad = tmp_path / "adapters.d" / "bad.yaml"
    bad.write_text("type: jsonl\n\nflush: 1s\n")
    with pytest.raises(ConfigError) as caught:
        load(main)
    assert str(caught.value).startswith(f"{bad}:3: flush: unknown key; did you mean")


@pytest.mark.parametrize("pattern", ["", "/", ".", "./", "a**b/*.yaml"])
def test_an_include_that_is_no_pattern_is_named(tmp_path: Path, pattern: str) -> None:
    said = f"{pattern!r}: no pattern of files; write for example adapters.d/*.yaml"
    (alone,) = _problems(tmp_path, f"daemon: {{}}\ninclude: {json.dumps(pattern)}\n")
    assert alone.startswith(f"2: include: {said}")
    (among,) = _problems(tmp_path, f"include:\n- a.d/*.yaml\n- {json.dumps(pattern)}\n")
    assert among.startswith(f"3: include.1: {said}")


def test_an_include_without_wildcards_names_a_file_that_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("type: jsonl\n")
    (tmp_path / "dangling.yaml").symlink_to("nowhere")
    for name in ("oen.yaml", "dangling.yaml", "one.yaml/two.yaml", str(tmp_path / "oen.yaml")):
        (problem,) = _problems(tmp_path, f"include: [no.d/*.yaml, one.yaml, {name}]\n")
        assert problem.startswith(f"1: include.2: {name!r}: No")
        assert problem.endswith("; name a file, or a pattern if there may be none: *.yaml")


@pytest.mark.parametrize(
    ("control", "ingest", "publish"),
    [
        ("tcp://127.0.0.1:5555", "tcp://127.0.0.1:5556", "tcp://127.0.0.1:5557"),
        ("tcp://*:7000", "tcp://*:7001", "tcp://*:7002"),
        ("tcp://127.0.0.1:0", "tcp://127.0.0.1:0", "tcp://127.0.0.1:0"),
        ("ipc:///run/z/c", "ipc:///run/z/c.ingest", "ipc:///run/z/c.publish"),
    ],
)
def test_the_other_addresses_follow_from_control(
    tmp_path: Path, control: str, ingest: str, publish: str
) -> None:
    path = tmp_path / "zmqtrack.yaml"
    path.write_text(f"daemon: {{control: '{control}', insecure: true}}\n")
    config = load(path).config.daemon
    assert (config.ingest, config.publish) == (ingest, publish)


def _start(path: Path, command: Sequence[str] = (), **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, sys.executable, "-m", "zmqtrack.daemon", "--config", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=path.parent,
        env={**os.environ, **env},
    )


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (
            "type: tensorbord",
            (
                "2: adapter tensorbord.type: unknown adapter type 'tensorbord'. Did you mean "
                "'tensorboard'? Known are: jsonl, mlflow, tensorboard, wandb; an own one is named "
                "package.module:Class"
            ),
        ),
        (
            "type: nowhere.at_all:Thing",
            "2: adapter Thing.type: 'nowhere.at_all:Thing': cannot import 'nowhere.at_all'",
        ),
        (
            "type: json:JSONDecoder",
            "2: adapter JSONDecoder.type: 'json:JSONDecoder': 'JSONDecoder' is no subclass of",
        ),
        (
            "type: jsonl\n    options:\n      dir: x\n      dri: y",
            "5: adapter jsonl.options.dri: unknown key; did you mean 'dir'?",
        ),
    ],
)
def test_the_daemon_exits_with_78_and_names_what_is_wrong_with_an_adapter(
    tmp_path: Path, adapter: str, message: str
) -> None:
    path = tmp_path / "zmqtrack.yaml"
    path.write_text(f"adapters:\n  - {adapter}\n")
    done = _start(path)
    assert done.returncode == 78
    assert done.stderr.startswith(f"{path}:{message}")
    assert "Traceback" not in done.stderr


def test_a_missing_extra_names_its_pip_install(tmp_path: Path) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "needy.py").write_text(
        "from zmqtrack.adapters.base import Adapter\n"
        "class Needy(Adapter):\n"
        "    requires, extra = ('a_module_that_is_not_there',), 'mlflow'\n"
        "    def deliver(self, batches): pass\n"
    )
    path = tmp_path / "zmqtrack.yaml"
    path.write_text("adapters:\n  - type: needy:Needy\n")
    done = _start(path, PYTHONPATH=str(tmp_path / "packages"))
    assert done.returncode == 78
    assert "needs a_module_that_is_not_there: run  pip install 'zmqtrack[mlflow]'" in done.stderr


PLAIN = """
from zmqtrack.adapters.base import Adapter
class Plain(Adapter):
    def deliver(self, batches): pass
"""


def _check(path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "zmqtrack.cli", "check", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **env},
    )


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (
            "\nraise RuntimeError('no such\\ndriver')",
            "'own:Plain': cannot import 'own': RuntimeError: no such driver (OWN:2)",
        ),
        (
            "import sys\nsys.exit('it needs a GPU')",
            "'own:Plain': cannot import 'own': SystemExit: it needs a GPU (OWN:2)",
        ),
        ("a = (", "'own:Plain': cannot import 'own': SyntaxError: '(' was never closed (own.py, "),
        ("import os\nos._exit(3)", "cannot import 'own:Plain': its process ended (exit code 3)"),
    ],
    ids=["raises", "exits", "is no Python", "ends its process"],
)
def test_an_adapter_that_goes_wrong_at_its_import_is_named_with_its_line_and_the_reason(
    tmp_path: Path, source: str, reason: str
) -> None:
    (tmp_path / "packages").mkdir()
    own = tmp_path / "packages" / "own.py"
    own.write_text(source)
    path = tmp_path / "zmqtrack.yaml"
    path.write_text("adapters:\n  - type: jsonl\n    options: {dri: x}\n  - type: own:Plain\n")
    for run in (_start, _check):
        done = run(path, PYTHONPATH=str(own.parent))
        assert done.returncode == 78
        *others, line = done.stderr.splitlines()
        assert any("3: adapter jsonl.options.dri: unknown key" in other for other in others)
        told = f"{path}:4: adapter Plain.type: {reason}".replace("OWN", str(own))
        assert line.startswith(told) and "Traceback" not in done.stderr


def test_a_validator_of_ones_own_that_goes_wrong_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "own.py").write_text(
        "from pydantic import field_validator\n"
        "from zmqtrack.adapters.base import Options\n" + PLAIN + "    class Options(Options):\n"
        "        @field_validator('a')\n"
        "        def look(cls, value): return {}[value]\n"
        "        a: str\n"
    )
    path = tmp_path / "zmqtrack.yaml"
    path.write_text("adapters:\n  - type: own:Plain\n    options: {a: b}\n")
    done = _start(path, PYTHONPATH=str(tmp_path / "packages"))
    assert done.returncode == 78
    told = f"{path}:3: adapter Plain.options: cannot be checked: KeyError: 'b' ("
    assert done.stderr.startswith(told) and len(done.stderr.splitlines()) == 1


def test_an_adapter_may_print_at_its_import_and_so_may_what_it_starts(tmp_path: Path) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "own.py").write_text(
        "import subprocess\nprint('[]')\nsubprocess.run(['echo', '[]'])\n" + PLAIN
    )
    path = tmp_path / "zmqtrack.yaml"
    path.write_text("adapters:\n  - type: own:Plain\n  - type: jsonl\n    options: {dri: x}\n")
    done = _check(path, PYTHONPATH=str(tmp_path / "packages"))
    assert done.returncode == 78
    path.write_text(path.read_text().replace("dri", "dir"))
    done = _check(path, PYTHONPATH=str(tmp_path / "packages"))
    assert (done.returncode, done.stdout) == (0, f"{path}: good, 2 adapters\n")


def test_an_address_in_use_is_said_without_a_traceback(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        path = tmp_path / "zmqtrack.yaml"
        path.write_text(f"daemon: {{control: 'tcp://127.0.0.1:{taken.getsockname()[1]}'}}\n")
        done = _start(path)
    assert done.returncode == 1
    assert "Address already in use. Is another daemon running" in done.stderr
    assert "Traceback" not in done.stderr


#: Takes from root what lets it write everywhere.
AS_ANYBODY = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("state_dir", "/proc/x", "/proc/x cannot be used: /proc/x: No such file or directory. N"),
        ("state_dir", "file", "file cannot be used: file: is no folder. Name a folder that"),
        ("state_dir", "ours/x", "ours/x cannot be used: ours/x: Permission denied. Name a folder"),
        ("control", "tcp://no.invalid:5555", "cannot listen at %: No such device. This machine"),
        ("ingest", "tcp://192.0.2.1:1", "cannot listen at %: Cannot assign requested address. Th"),
        ("publish", "ipc://ours/a", "cannot listen at %: Permission denied. Ports below 1024"),
        ("control", "ipc://no/a", "cannot listen at %: No such file or directory. A local socket"),
    ],
)
def test_what_the_system_refuses_is_named_with_its_key_and_a_hint_that_fits(
    tmp_path: Path, key: str, value: str, says: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "ours").mkdir(mode=0o555)
    path = tmp_path / "zmqtrack.yaml"
    daemon = {"control": "tcp://127.0.0.1:0", "insecure": True, key: value}
    path.write_text(yaml.safe_dump({"daemon": daemon}))
    done = _start(path, command=AS_ANYBODY)
    assert done.returncode == 1
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("ERROR"))
    assert error.startswith(f"ERROR [zmqtrackd] daemon.{key}: {says.replace('%', value)}")


@pytest.mark.parametrize("name", ["zmqtrack.yaml", "reference.yaml"])
def test_the_shipped_configurations_load_and_their_adapters_are_right(name: str) -> None:
    path = Path(__file__).parent.parent / "configs" / name
    located = load(path)
    assert located.config.adapters
    from zmqtrack.adapters import loader

    assert [loader.check(adapter) for adapter in located.config.adapters] == [None] * len(
        located.config.adapters
    )


def test_the_reference_configuration_shows_every_key() -> None:
    from zmqtrack.config import AdapterConfig, Config, DaemonConfig, LimitsConfig

    text = (Path(__file__).parent.parent / "configs" / "reference.yaml").read_text()
    for model in (Config, DaemonConfig, LimitsConfig, AdapterConfig):
        for key, field in model.model_fields.items():
            assert f"{key}:" in text, f"{model.__name__}.{key} is not in reference.yaml"
            assert field.description or model is Config


def test_the_examples_of_secrets_in_the_reference_are_right() -> None:
    text = (Path(__file__).parent.parent / "configs" / "reference.yaml").read_text()
    lines = text.partition("secrets: {}")[2].splitlines()[1:]
    block = []
    for line in lines:
        if not line.strip().startswith("#   "):
            break
        block.append(line.strip().removeprefix("#"))
    config = AdapterConfig.model_validate({"type": "wandb", **yaml.safe_load("\n".join(block))})
    kinds = [secret.model_dump(exclude_none=True).keys() for secret in config.secrets.values()]
    assert sorted(kind for (kind,) in kinds) == ["credential", "env", "file"]

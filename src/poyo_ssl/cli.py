"""The command line: typed functions of `poyo_ssl.commands` as subcommands with flags and YAML.

A mistake of the user is answered with one line and exit code 2; nothing half-written stays behind.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from jsonargparse import ArgumentParser

from poyo_ssl import commands
from poyo_ssl.config import FinetuneConfig, PretrainConfig, SelectionConfig, SplitConfig, from_plain
from poyo_ssl.errors import ConfigError, PoyoError, suggest

# Settings classes whose fields become flags of a command: without a prefix, or below one.
SETTINGS: dict[Callable[..., Any], dict[str, tuple[type[Any], str | None]]] = {
    commands.select: {"config": (SelectionConfig, None), "split": (SplitConfig, "split")},
    commands.split: {"config": (SplitConfig, None)},
    commands.pretrain: {"config": (PretrainConfig, None)},
    commands.finetune: {"config": (FinetuneConfig, None)},
}
# Commands with the settings of a source and of what lies beside its files.
SOURCES: dict[Callable[..., Any], tuple[str, str]] = {
    commands.prepare_nwb: ("nwb", "NwbSource"),
    commands.prepare_suite2p: ("suite2p", "Suite2pSource"),
    commands.prepare_arrays: ("arrays", "ArraysSource"),
}
COMMANDS: dict[str, Callable[..., Any]] = {
    "prepare observatory": commands.prepare_observatory,
    "prepare allen": commands.prepare_allen,
    "prepare nwb": commands.prepare_nwb,
    "prepare brainsets": commands.prepare_brainsets,
    "prepare suite2p": commands.prepare_suite2p,
    "prepare arrays": commands.prepare_arrays,
    "prepare events": commands.prepare_events,
    "doctor": commands.doctor,
    "select": commands.select,
    "split": commands.split,
    "pretrain": commands.pretrain,
    "finetune": commands.finetune,
    "resume": commands.resume,
    "evaluate": commands.evaluate,
    "leaderboard": commands.leaderboard,
    "audit": commands.audit,
    "report": commands.report,
    "demo": commands.demo,
    "serve": commands.serve,
}
POSITIONAL = (
    *(name for name in COMMANDS if name.startswith("prepare ")),
    *("doctor", "leaderboard", "report", "resume", "serve", "split"),
)


def settings_of(function: Callable[..., Any]) -> dict[str, tuple[type[Any], str | None]]:
    """Return the settings classes whose fields become flags of a command."""
    if function not in SOURCES:
        return SETTINGS.get(function, {})
    # Sources bring numpy and h5py, for which no other command's help should wait.
    module, name = SOURCES[function]
    from poyo_ssl.sources.companions import Companions

    source = getattr(import_module(f"poyo_ssl.sources.{module}"), name)
    return {"source": (source, None), "companions": (Companions, None)}


class Parser(ArgumentParser):
    """A parser that raises `ConfigError` in one line instead of printing its usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what jsonargparse found, with the nearest known word."""
        if isinstance(ex, PoyoError):
            raise ex
        text = " ".join(message.split())
        if wrong := _wrong_value(text):
            raise wrong
        raise ConfigError(text.rstrip(".") + _nearest(text, self), fix="see --help")


KINDS = {
    "<class 'int'>": "a whole number",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true, false",
    "<class 'tuple'>": "a list such as [one, two]",
}
"""Types of settings as jsonargparse names them, in words."""


def _wrong_value(text: str) -> ConfigError | None:
    r"""Return the error about a value of the wrong type, from what jsonargparse says of it; None for other mistakes.

    Examples
    --------
    >>> print(_wrong_value("Parser key \"cells\": Expected a typing.Literal['iscell', 'all']. Got value: al"))
    cells 'al', did you mean 'all'? (allowed: iscell, all); correct it
    """
    found = re.fullmatch(r'Parser key "([\w.]+)": (.*) (?:Got|Given) value: (.*?)\.?', text)
    if not found:
        return None
    key, told, value = found.groups()
    expected = told.split(" Given value type:")[0]
    words = [word for choice in re.findall(r"Literal\[(.*?)\]", expected) for word in re.findall(r"'(\w+)'", choice)]
    kinds = [kind for name, kind in KINDS.items() if name in expected]
    if not words and not kinds:
        return None
    return ConfigError(f"{key} '{value}'{suggest(value, words)}", allowed=", ".join([*words, *kinds]), fix="correct it")


def _nearest(text: str, parser: ArgumentParser) -> str:
    """Return a 'did you mean' for an unknown flag, field or choice in an error of jsonargparse."""
    flags = [flag for action in parser._actions for flag in action.option_strings]
    names = [flag.removeprefix("--") for flag in flags]
    if match := re.search(r"[Uu]nrecognized arguments?: (--[\w.]+)", text):
        return suggest(match[1], flags)
    if match := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", text):
        return suggest(f"{match[1]}.{match[2]}", names)
    if match := re.search(r"(?:Option|[Kk]ey) '([\w.]+)' is not (?:accepted|expected)", text):
        return suggest(match[1], names)
    return ""


def preset_names() -> list[str]:
    """Return the names of the packaged settings, such as ``pretrain_coded``."""
    folder = files("poyo_ssl") / "configs"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


BARE = ("--as_nwb", "--overwrite", "--list", "--download", "--published")
"""Flags that may stand without ``true`` behind them."""


def _resolve(arguments: Sequence[str]) -> list[str]:
    """Put the packaged file in the place of a preset's name, a value behind a bare flag, underscores into flags."""
    resolved = []
    for previous, word, following in zip(["", *arguments], arguments, [*arguments[1:], ""], strict=False):
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            word = "--" + flag.removeprefix("--").replace("-", "_") + equals + value
        if word in BARE and following not in ("true", "false"):
            word += "=true"
        name = word.removeprefix("--config=")
        is_value = previous == "--config" or word.startswith("--config=")
        if is_value and not Path(name).exists():
            if name not in preset_names():
                raise ConfigError(
                    f"no settings file or preset '{name}'{suggest(name, preset_names())}",
                    allowed=", ".join(preset_names()),
                    fix="give a YAML file or a preset",
                )
            word = word.replace(name, str(files("poyo_ssl") / "configs" / f"{name}.yaml"))
        resolved.append(word)
    return resolved


LEAST = {"seed": 0, "devices": 1, "nodes": 1}
"""Smallest value of whole numbers that several commands take."""


def build_parser(command: str) -> Parser:
    """Return the parser of one command."""
    function = COMMANDS[command]
    summary = (function.__doc__ or "").split("\n\n")[0].strip()
    parser = Parser(prog=f"poyo-ssl {command}", description=summary, default_env=False)
    parser.add_argument(
        "--config", action="config", help="A YAML file with any of these settings, or the name of a preset."
    )
    settings = settings_of(function)
    skip: set[str | int] = set(settings)
    if function is commands.audit:
        parser.add_argument("runs", nargs="+", type=Path, help="Folders of 'poyo-ssl pretrain' or 'poyo-ssl finetune'.")
        skip.add("runs")
    if function is commands.evaluate:
        # Any number of words without a flag is beyond what a function's signature can say.
        parser.add_argument("runs", nargs="+", type=Path, help="Folders of 'poyo-ssl finetune', or predictions files.")
        parser.add_argument(
            "--arms", nargs="+", type=str, help="Name of each run in the tables; the folder's by default."
        )
        skip |= {"runs", "arms"}
    if function is commands.prepare_allen:
        parser.add_argument("input", type=Path, help="A .nwb file, or a folder of them as AllenSDK lays it out.")
        parser.add_argument(
            "output", nargs="?", type=Path, help="Data folder to make, or to complete after an interruption."
        )
        for name, help in commands.ALLEN_FILTERS.items():
            parser.add_argument(f"--{name}", nargs="+", type=str, help=help)
        skip |= {"input", "output", *commands.ALLEN_FILTERS}
    parser.add_function_arguments(function, as_positional=command in POSITIONAL, skip=skip)
    for kind, prefix in settings.values():
        # A class within a class that has a place of its own among the flags is not listed twice.
        parser.add_class_arguments(kind, prefix, as_group=True, skip=set(settings) & set(get_type_hints(kind)))
    return parser


def usage(family: str = "") -> str:
    """Return the text of ``poyo-ssl --help``, or of ``poyo-ssl prepare --help`` for the commands of this family."""
    lines = ["usage: poyo-ssl COMMAND [flags]   (poyo-ssl COMMAND --help lists them)", ""]
    for command, function in COMMANDS.items():
        if command.startswith(family):
            lines.append(f"  {command:<20} {(function.__doc__ or '').strip().splitlines()[0]}")
    if family:
        return "\n".join(lines)
    lines += ["", f"presets for --config: {', '.join(preset_names())}"]
    return "\n".join(lines)


def find_command(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return the command's name and the arguments that are left.

    Raises
    ------
    ConfigError
        If there is no such command.

    Examples
    --------
    >>> find_command(["prepare", "observatory", "data"])
    ('prepare observatory', ['data'])
    """
    for length in (2, 1):
        name = " ".join(arguments[:length])
        if name in COMMANDS:
            return name, list(arguments[length:])
    given = arguments[0]
    if given == "prepare":
        given = " ".join(arguments[:2])
    close = difflib.get_close_matches(given, COMMANDS, n=1, cutoff=0.5)
    hint = f", did you mean '{close[0]}'?" if close else ""
    raise ConfigError(f"unknown command '{given}'{hint}", allowed=", ".join(COMMANDS), fix="see poyo-ssl --help")


def run(arguments: Sequence[str]) -> None:
    """Parse and run one command.

    Raises
    ------
    PoyoError
        What the user has to mend.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(usage() + "\n")
        return
    if arguments[0] == "prepare" and (len(arguments) == 1 or arguments[1] in ("-h", "--help")):
        sys.stdout.write(usage("prepare ") + "\n")
        return
    if arguments[0] == "--version":
        from importlib.metadata import version

        sys.stdout.write(version("poyo-ssl") + "\n")
        return
    command, rest = find_command(arguments)
    parser = build_parser(command)
    values = parser.parse_args(_resolve(rest)).as_dict()
    values.pop("config", None)
    values.pop("__path__", None)
    for name, least in LEAST.items():
        if values.get(name, least) < least:
            raise ConfigError(f"--{name} {values[name]}", allowed=f"{least} or more", fix="change it")
    function = COMMANDS[command]
    for name, (kind, prefix) in settings_of(function).items():
        if prefix is None:
            fields = get_type_hints(kind)
            values[name] = from_plain(kind, {key: values.pop(key) for key in list(values) if key in fields})
        else:
            values[prefix] = from_plain(kind, values[prefix])
    function(**values)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    try:
        run(list(sys.argv[1:] if arguments is None else arguments))
    except PoyoError as error:
        sys.stderr.write(f"poyo-ssl: {error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"poyo-ssl: {error.strerror or error}: {error.filename or ''}; check the path and the disk\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(
            "poyo-ssl: stopped; a training goes on with 'poyo-ssl resume RUN', a preparation with its command\n"
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

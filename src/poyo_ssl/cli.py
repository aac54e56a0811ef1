"""The command line: typed functions of `poyo_ssl.commands` as subcommands with flags and YAML.

A mistake of the user is answered with one line and exit code 2, an interruption with one line and 128 + the signal's
number. Nothing half-written stays behind.
"""

from __future__ import annotations

import difflib
import inspect
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from poyo_ssl import commands
from poyo_ssl.config import from_plain
from poyo_ssl.errors import ConfigError, PoyoError, StoppedError, suggest

set_parsing_settings(docstring_parse_attribute_docstrings=True)

COMMANDS: dict[str, Callable[..., None]] = {
    name: getattr(commands, name.replace(" ", "_"))
    for name in (
        *(
            f"prepare {source}"
            for source in ("observatory", "allen", "nwb", "brainsets", "suite2p", "arrays", "events")
        ),
        *("doctor", "select", "split", "pretrain", "finetune", "resume", "evaluate", "leaderboard", "audit", "report"),
        *("demo", "serve"),
    )
}
WORDS = {int: "a whole number", float: "a number", bool: "true, false", tuple: "a list such as [one, two]"}
"""Kinds of values, in words."""


def _allowed(hint: Any) -> list[str]:
    """Say which values a type allows; an empty list says nothing about it."""
    if get_origin(hint) in (Union, UnionType):
        return [word for one in get_args(hint) for word in _allowed(one)]
    if get_origin(hint) is Literal:
        return [str(word) for word in get_args(hint)]
    kind = get_origin(hint) or hint
    return [WORDS[kind]] if kind in WORDS else []


class Parser(ArgumentParser):
    """A parser that knows the types of its flags, and raises `ConfigError` instead of printing its usage."""

    hints: dict[str, Any]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what jsonargparse found; of a wrong value, name the allowed ones."""
        if isinstance(ex, PoyoError):
            raise ex
        text = " ".join(message.split()).rstrip(".")
        found = re.fullmatch(r'Parser key "([\w.]+)": .* (?:Got|Given) value: (.*)', text)
        allowed = _allowed(self.hints.get(found[1])) if found else []
        if not found or not allowed:
            raise ConfigError(text, fix="see --help")
        raise ConfigError(f"{found[1]} '{found[2]}'{suggest(found[2], allowed)}", allowed=", ".join(allowed))

    def check_names(self, values: Mapping[str, Any], prefix: str = "") -> None:
        """Raise `ConfigError` if a settings file has a name that is no setting of the command."""
        for name, value in values.items():
            full = f"{prefix}{name}"
            if full not in self.hints:
                raise ConfigError(f"unknown setting '{full}'{suggest(full, self.hints)}", fix="see --help")
            if isinstance(value, Mapping):
                self.check_names(value, f"{full}.")


def _field_types(kind: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, hint in get_type_hints(kind).items():
        yield prefix + name, hint
        if is_dataclass(hint):
            yield from _field_types(hint, f"{prefix}{name}.")


def _settings(function: Callable[..., None]) -> dict[str, tuple[Any, str | None]]:
    """Return the settings classes that a command takes by parameter, and the prefix of their flags."""
    hints = get_type_hints(function).items()
    # Only `select` takes two classes with settings of the same names.
    return {name: (hint, "split" if name == "split" else None) for name, hint in hints if is_dataclass(hint)}


def build_parser(command: str) -> Parser:
    """Return the parser of one command: positional parameters become words, keyword parameters flags."""
    function = COMMANDS[command]
    parser = Parser(prog=f"poyo-ssl {command}", description=inspect.getdoc(function), default_env=False)
    parser.add_argument(
        "--config", action="config", help="A YAML file with any of these settings, or the name of a preset."
    )
    parser.hints = {"config": Path}
    hints = get_type_hints(function, include_extras=True)
    settings = _settings(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if name in settings:
            continue
        hint, text, *_ = get_args(hints[name])
        parser.hints[name] = hint
        required = parameter.default is parameter.empty
        options: dict[str, Any] = {"type": hint, "help": text} | ({} if required else {"default": parameter.default})
        if hint in (list[Path], list[str] | None):
            options |= {"type": Path if hint == list[Path] else str, "nargs": "+"}
        if parameter.kind is parameter.KEYWORD_ONLY:
            parser.add_argument(f"--{name}", **options, required=required)
        else:
            parser.add_argument(name, **({} if required else {"nargs": "?"}) | options)
    for kind, prefix in settings.values():
        parser.add_class_arguments(kind, prefix, as_group=True)
        parser.hints |= dict(_field_types(kind, f"{prefix}." if prefix else ""))
    return parser


def preset_names() -> list[str]:
    """Return the names of the packaged settings, such as ``pretrain_coded``."""
    folder = files("poyo_ssl") / "configs"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def _settings_file(name: str, parser: Parser) -> str:
    """Return the path of a settings file or preset, once its names are known to be settings."""
    path = Path(name)
    if not path.exists():
        if name not in preset_names():
            raise ConfigError(
                f"no settings file or preset '{name}'{suggest(name, preset_names())}",
                allowed=f"a YAML file, {', '.join(preset_names())}",
            )
        path = Path(str(files("poyo_ssl") / "configs" / f"{name}.yaml"))
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML file ({error})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no settings", allowed="lines of 'name: value'")
    parser.check_names(values)
    return str(path)


def resolve(arguments: Sequence[str], parser: Parser) -> list[str]:
    """Check the flags' names; turn dashes into underscores, presets into files, and bare flags into 'flag=true'."""
    known = ["--help", "--print_config", *(f"--{name}" for name in parser.hints)]
    resolved = []
    for previous, word, following in zip(["", *arguments], arguments, [*arguments[1:], ""], strict=False):
        if previous == "--config":
            word = _settings_file(word, parser)
        elif word.startswith("--"):
            flag, equals, value = word.partition("=")
            flag = "--" + flag.removeprefix("--").replace("-", "_")
            if flag not in known:
                raise ConfigError(f"unknown flag {flag}{suggest(flag, known)}", fix="see --help")
            if flag == "--config" and equals:
                value = _settings_file(value, parser)
            if parser.hints.get(flag.removeprefix("--")) is bool and not equals and following not in ("true", "false"):
                equals, value = "=", "true"
            word = flag + equals + value
        resolved.append(word)
    return resolved


def usage(family: str = "") -> str:
    """Return the text of ``poyo-ssl --help``, or of ``poyo-ssl prepare --help`` for the commands of this family."""
    lines = ["usage: poyo-ssl COMMAND [flags]   (poyo-ssl COMMAND --help lists them)", ""]
    for command, function in COMMANDS.items():
        if command.startswith(family):
            lines.append(f"  {command:<20} {(function.__doc__ or '').strip().splitlines()[0]}")
    if not family:
        lines += ["", f"presets for --config: {', '.join(preset_names())}"]
    return "\n".join(lines)


def find_command(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return the command's name and the arguments that are left; raise `ConfigError` if there is no such command."""
    for length in (2, 1):
        name = " ".join(arguments[:length])
        if name in COMMANDS:
            return name, list(arguments[length:])
    given = " ".join(arguments[: 2 if arguments[0] == "prepare" else 1])
    close = difflib.get_close_matches(given, COMMANDS, n=1, cutoff=0.5)
    hint = f", did you mean '{close[0]}'?" if close else ""
    raise ConfigError(f"unknown command '{given}'{hint}", allowed=", ".join(COMMANDS))


def run(arguments: Sequence[str]) -> None:
    """Parse and run one command; raise `PoyoError` about what the user has to change."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(usage() + "\n")
        return
    if arguments[0] == "prepare" and (len(arguments) == 1 or arguments[1] in ("-h", "--help")):
        sys.stdout.write(usage("prepare ") + "\n")
        return
    if arguments[0] == "--version":
        from poyo_ssl import __version__

        sys.stdout.write(__version__ + "\n")
        return
    command, rest = find_command(arguments)
    function = COMMANDS[command]
    parser = build_parser(command)
    given = parser.parse_args(resolve(rest, parser)).as_dict()
    values = {name: given[name] for name in inspect.signature(function).parameters if name in given}
    for name, hint in get_type_hints(function, include_extras=True).items():
        least = get_args(hint)[2:] if name in values else ()
        if least and values[name] < least[0]:
            raise ConfigError(f"--{name} {values[name]}", allowed=f"{least[0]} or more")
    for name, (kind, prefix) in _settings(function).items():
        own = given[prefix] if prefix else {key: given[key] for key in get_type_hints(kind)}
        values[name] = from_plain(kind, own)
    function(**values)


@contextmanager
def _heed_sigterm() -> Iterator[list[int]]:
    """Treat SIGTERM like Ctrl-C, so that commands clean up; gives the signals that came."""
    came: list[int] = []

    def stop(number: int, frame: object) -> NoReturn:
        del frame
        came.append(number)
        raise KeyboardInterrupt

    try:
        former = signal.signal(signal.SIGTERM, stop)
    except ValueError:
        # Only the main thread may; in any other the caller decides about signals.
        yield came
        return
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, former)


GO_ON = {"pretrain": "go on with 'poyo-ssl resume RUN'", "finetune": "go on with 'poyo-ssl resume RUN'"}
"""What to do after an interruption, where it is not the same command again."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with _heed_sigterm() as came:
        try:
            run(arguments)
        except PoyoError as error:
            sys.stderr.write(f"poyo-ssl: {error}{_notes(error)}\n")
            return 128 + signal.SIGTERM if isinstance(error, StoppedError) else 2
        except OSError as error:
            sys.stderr.write(
                f"poyo-ssl: {error.strerror or error}: {error.filename or ''}; check the path and the disk\n"
            )
            return 2
        except KeyboardInterrupt as error:
            go_on = GO_ON.get(arguments[0], "run the same command to go on or start again")
            sys.stderr.write(f"poyo-ssl: stopped; {go_on}{_notes(error)}\n")
            return 128 + (came[0] if came else signal.SIGINT)
    return 0


def _notes(error: BaseException) -> str:
    return "".join(f"; {note}" for note in getattr(error, "__notes__", ()))


if __name__ == "__main__":
    sys.exit(main())

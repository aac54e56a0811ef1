"""Where every command writes what it has to say."""

from rich.console import Console

console = Console(stderr=True)

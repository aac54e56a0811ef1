"""What every settings class checks its values with."""

from __future__ import annotations

from poyo_ssl.errors import ConfigError


def check(condition: bool, problem: str, allowed: str, fix: str) -> None:
    """Raise `ConfigError` unless `condition` holds."""
    if not condition:
        raise ConfigError(problem, allowed=allowed, fix=fix)

"""What a user set outside the command line: the TOML file, and where a program's state lies.

A flag beats a `UNISONO_*` variable, a variable beats the file, the file beats the default.
The file has one section per verb with the verb's flags as keys:

    [run]
    nodes = 2
    max-tokens = 128

    [up]
    port = 9000
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import cast

from unisono.errors import ConfigurationError

Value = bool | int | float | str | list[str]


class Kind(Enum):
    """What a key of the file may hold."""

    FLAG = "true or false"
    INTEGER = "a whole number"
    NUMBER = "a number"
    TEXT = "a text in quotes"
    TEXTS = 'a list of texts, such as ["a", "b"]'

    def fits(self, value: object) -> bool:
        """Whether a TOML value is of this kind."""
        if isinstance(value, bool):
            return self is Kind.FLAG
        if self is Kind.TEXTS:
            return isinstance(value, list) and all(
                isinstance(item, str) for item in cast("list[object]", value)
            )
        wanted: dict[Kind, tuple[type, ...]] = {
            Kind.INTEGER: (int,),
            Kind.NUMBER: (int, float),
            Kind.TEXT: (str,),
        }
        return isinstance(value, wanted.get(self, ()))


def state_directory() -> Path:
    """`$UNISONO_STATE`, else `unisono` in the user's state folder: keys and receipts."""
    if chosen := os.environ.get("UNISONO_STATE"):
        return Path(chosen)
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "unisono"


def config_file() -> Path | None:
    """The TOML file to read, or None if the user has none.

    Raises:
        ConfigurationError: `$UNISONO_CONFIG` names a file that is not there.
    """
    if chosen := os.environ.get("UNISONO_CONFIG"):
        path = Path(chosen)
        if not path.is_file():
            raise ConfigurationError(
                f"UNISONO_CONFIG names {path}, which is no file: correct it or unset it"
            )
        return path
    base = os.environ.get("XDG_CONFIG_HOME")
    path = (Path(base) if base else Path.home() / ".config") / "unisono" / "config.toml"
    return path if path.is_file() else None


def load_config(path: Path, known: Mapping[str, Mapping[str, Kind]]) -> dict[str, dict[str, Value]]:
    """The settings of a TOML file: section → key → value, keys spelled with underscores.

    Args:
        path: the file.
        known: the sections that may be there, and the kind of each of their keys.

    Raises:
        ConfigurationError: unreadable, not TOML, an unknown section or key, a value of a wrong
            kind; names the file and the key.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise ConfigurationError(f"{path} is not a TOML file: {error}") from error
    settings: dict[str, dict[str, Value]] = {}
    for section, content in document.items():
        if section not in known or not isinstance(content, dict):
            raise ConfigurationError(
                f"{path}: unknown key '{section}'; expected the sections "
                f"{', '.join(f'[{name}]' for name in known)}"
            )
        settings[section] = {
            key.replace("-", "_"): _value(path, section, key, value, known[section])
            for key, value in cast("dict[str, object]", content).items()
        }
    return settings


def _value(path: Path, section: str, key: str, value: object, known: Mapping[str, Kind]) -> Value:
    kind = known.get(key.replace("-", "_"))
    if kind is None:
        names = ", ".join(name.replace("_", "-") for name in known)
        raise ConfigurationError(
            f"{path}: unknown key '{key}' in [{section}]; expected some of: {names}"
        )
    if not kind.fits(value):
        raise ConfigurationError(
            f"{path}: '{key}' in [{section}] is {value!r}; expected {kind.value}"
        )
    return cast("Value", value)

"""SQLite files of one program: for their owner only, with a write-ahead log, of one version."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from unisono.errors import ConfigurationError


def open_records(
    path: Path | str | None,
    schema: str,
    version: int,
    what: str,
    *,
    durable: bool = False,
    exclusive: bool = False,
) -> sqlite3.Connection:
    """Open a file of records as `open_database` does, each statement a transaction of its own.
    `what`: what they are, for messages.

    Raises:
        ConfigurationError: the file cannot be used, or is of another version.
    """
    try:
        return open_database(
            path,
            schema,
            version,
            lambda found: f"{path} holds {what} of version {found}; this program reads {version}",
            durable=durable,
            autocommit=True,
            exclusive=exclusive,
        )
    except (sqlite3.Error, OSError) as error:
        alone = " and that no other program uses" if exclusive else ""
        raise ConfigurationError(
            f"cannot keep {what} in {path}: {error}; name a file that this user may write{alone}"
        ) from error


def open_database(
    path: Path | str | None,
    schema: str,
    version: int,
    refusal: Callable[[int], str],
    *,
    durable: bool = False,
    any_thread: bool = False,
    autocommit: bool = False,
    exclusive: bool = False,
    folder_mode: int = 0o777,
) -> sqlite3.Connection:
    """Open the file at `path`, or make it; None is a database in memory.

    Args:
        schema: statements that make what is not there yet.
        version: of the schema; 0 is a file that is new.
        refusal: what to say of a file of another version, given that version.
        durable: whether what is committed survives a power cut; else it may take the last
            commits, and never harms the file.
        any_thread: whether threads other than this one use the connection, one at a time.
        autocommit: whether statements outside `BEGIN` are transactions of their own.
        exclusive: whether no other connection may open the file.
        folder_mode: of folders that are made on the way.

    Raises:
        ConfigurationError: the file is of another version.
        sqlite3.Error, OSError: it cannot be used.
    """
    if path is not None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True, mode=folder_mode)
        # Before SQLite makes it with the mode of every other file; its log inherits the mode.
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    database = sqlite3.connect(
        ":memory:" if path is None else path,
        check_same_thread=not any_thread,
        isolation_level=None if autocommit else "DEFERRED",
    )
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        if exclusive:
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
        found = int(database.execute("PRAGMA user_version").fetchone()[0])
        if found not in (0, version):
            raise ConfigurationError(refusal(found))
        database.executescript(schema)
        database.execute(f"PRAGMA user_version = {version}")
        database.commit()
    except BaseException:
        database.close()
        raise
    return database

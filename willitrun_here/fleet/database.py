"""Opening the database: SQLite with a write-ahead log or PostgreSQL by URL, migrated to the version of this code."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from willitrun_here.fleet.errors import StoreError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

HEAD = "0001"
"""The migration this code is written for."""
BUSY_S = 10.0


def open_database(url: str, *, upgrade: bool = True) -> Engine:
    """Return an engine on an up-to-date database; raises StoreError.

    `url` is SQLAlchemy's (`sqlite:///fleet.db`, `postgresql://…`, or a bare path to an SQLite file).
    """
    try:
        import sqlalchemy  # noqa: PLC0415 - the agent never needs it
    except ImportError as error:
        raise StoreError("the fleet server is not installed", "pip install 'willitrun-here[fleet]'") from error
    try:
        engine = _engine(normal_url(url))
        with engine.connect() as connection:
            current = _version(connection)
    except (sqlalchemy.exc.SQLAlchemyError, OSError) as error:
        raise StoreError(f"cannot open the database: {_short(error)}", "Check --db.") from error
    except ImportError as error:
        raise StoreError(f"no driver for this database: {error}", "pip install 'willitrun-here[postgres]'") from error
    if current != HEAD and upgrade:
        migrate(engine)
    elif current != HEAD:
        raise StoreError(f"the database has version {current}, this program needs {HEAD}", "Start `fleet serve` once.")
    return engine


def normal_url(url: str) -> str:
    """Return SQLAlchemy's URL with the driver this project uses."""
    if "://" not in url:
        return f"sqlite:///{Path(url).absolute()}"
    for plain in ("postgres://", "postgresql://"):
        if url.startswith(plain):
            return "postgresql+psycopg://" + url.removeprefix(plain)
    return url


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that will write: SQLite takes its lock at once instead of failing half-way."""
    with engine.connect() as connection, connection.execution_options(write=True).begin():
        yield connection


def migrate(engine: Engine) -> None:
    """Bring the schema to this code's version; several processes may try at once. Raises StoreError."""
    import sqlalchemy  # noqa: PLC0415
    from alembic import command  # noqa: PLC0415 - heavy, and needed once in a database's life
    from alembic.config import Config  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    try:
        with writing(engine) as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(8123407)"))
            if _version(connection) == HEAD:
                return
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except (sqlalchemy.exc.SQLAlchemyError, CommandError) as error:
        raise StoreError(f"cannot bring the database to version {HEAD}: {_short(error)}") from error


def _version(connection: Connection) -> str | None:
    import sqlalchemy  # noqa: PLC0415

    if not sqlalchemy.inspect(connection).has_table("alembic_version"):
        return None
    value = connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).scalar()
    return None if value is None else str(value)


def _engine(url: str) -> Engine:
    from sqlalchemy import create_engine, event  # noqa: PLC0415

    if not url.startswith("sqlite"):
        return create_engine(url, pool_pre_ping=True, pool_size=8, max_overflow=8)
    engine = create_engine(url, connect_args={"timeout": BUSY_S}, pool_size=8, max_overflow=8)

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        # Transactions are begun below; the driver must not begin others by itself.
        connection.isolation_level = None
        deadline = time.monotonic() + BUSY_S
        while True:
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                break
            except connection.OperationalError:  # another process is switching it at this moment
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        # FULL: a report is acknowledged after its commit and must survive a power cut.
        connection.execute("PRAGMA synchronous=FULL")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _short(error: BaseException) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0][:300]

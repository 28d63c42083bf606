"""Usage of API keys: accepted tasks, finished images and their cost, by day (UTC)."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite

from server.runware.errors import TaskError
from server.tasks.key_file import KeyRecord
from server.tasks.tables import USAGE


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What a key used on one day, or on several together."""

    num_tasks: int = 0
    num_images: int = 0
    cost: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Charge:
    """An image to be charged to a key's owner, in USD."""

    owner: str
    cost: float


DailyUsage = dict[date, Usage]


def today() -> date:
    """Return the present day in UTC, where a day's quota begins anew."""
    return datetime.fromtimestamp(time.time(), UTC).date()


def add_usage(connection: Connection, owner: str, used: Usage) -> None:
    """Add to what an owner has used today, in the transaction of what is counted."""
    values = {"num_tasks": used.num_tasks, "num_images": used.num_images, "cost": used.cost}
    row = {"owner": owner, "day": today().isoformat(), **values}
    connection.execute(_addition(connection.dialect.name), row)


@lru_cache
def _addition(dialect: str) -> sa.Executable:
    """Return the statement, built once: it runs twice a task."""
    insert: Any = (insert_postgresql if dialect == "postgresql" else insert_sqlite)(USAGE)
    counted = ("num_tasks", "num_images", "cost")
    addition: sa.Executable = insert.on_conflict_do_update(
        index_elements=[USAGE.c.owner, USAGE.c.day],
        set_={name: USAGE.c[name] + insert.excluded[name] for name in counted},
    )
    return addition


def read_usage(connection: Connection, owner: str) -> DailyUsage:
    """Return what an owner used, by day."""
    found = connection.execute(sa.select(USAGE).where(USAGE.c.owner == owner)).mappings()
    return {
        date.fromisoformat(row["day"]): Usage(
            num_tasks=row["num_tasks"], num_images=row["num_images"], cost=row["cost"]
        )
        for row in found
    }


def sum_usage(daily: DailyUsage, last_days: int | None = None) -> Usage:
    """Return the usage of the last days together, today included; of all without a number."""
    first = date.min if last_days is None else today() - timedelta(days=last_days - 1)
    counted: Sequence[Usage] = [used for day, used in daily.items() if day >= first]
    return Usage(
        num_tasks=sum(used.num_tasks for used in counted),
        num_images=sum(used.num_images for used in counted),
        cost=round(sum(used.cost for used in counted), 4),
    )


def check_quota(record: KeyRecord, daily: DailyUsage, num_running: int, num_images: int) -> None:
    """Check that a key may generate more images today, beside those that are running.

    Raises:
        TaskError: its quota of the day would be exceeded.
    """
    limit = record.images_per_day
    used = sum_usage(daily, 1).num_images + num_running
    if limit is not None and used + num_images > limit:
        raise TaskError(
            "quotaExceeded",
            f"This key may generate {limit} images a day; {used} are generated or running, and "
            f"this task has {num_images}. A new day begins at 00:00 UTC.",
            "apiKey",
        )

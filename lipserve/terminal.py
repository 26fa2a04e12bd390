"""What all commands share: the console for people, and the configuration, with its mistakes named."""

import sys
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from rich.console import Console
from rich.markup import escape

from lipserve.settings import PREFIX, Settings, environment, origin

err = Console(stderr=True)


def settings_or_exit(**given: Any) -> Settings:
    """From the environment; options that were given come first. Exits with 2 if a value makes no sense."""
    options = {name: value for name, value in given.items() if value is not None}
    try:
        return Settings(**options)
    except ValidationError as exc:
        for problem in exc.errors():
            err.print(_described(problem, options), highlight=False, soft_wrap=True)
        sys.exit(2)


def _described(problem: ErrorDetails, options: dict[str, Any]) -> str:
    """Under the name that was used: an option, a variable, or none if several do not fit together."""
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return escape(message)
    field = str(problem["loc"][0])
    name = f"--{field}" if field in options else environment().get(field, ("", PREFIX + field.upper()))[1]
    if problem["type"] == "extra_forbidden":
        nearest = get_close_matches(field, Settings.model_fields, 1, 0.0)[0]
        message = f"there is no such setting; the nearest is {PREFIX}{nearest.upper()}"
    return f"[red]{escape(name)}[/red]: {escape(message)}"


def settings_table(settings: Settings, options: set[str]) -> str:
    """A line for each setting: its variable, its value, where that is from. Secrets are masked."""
    rows = [("variable", "value", "from")]
    for field in Settings.model_fields:
        value = getattr(settings, field)
        rows.append((PREFIX + field.upper(), "" if value is None else str(value), origin(field, options)))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {source}".rstrip() for name, value, source in rows)

"""What all commands share: the console for people, and the configuration with its mistakes named."""

import sys
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from lipserve.settings import Settings

err = Console(stderr=True)


def settings_or_exit(**given: Any) -> Settings:
    """From the environment; options that were given come first. Exits with 2 if a value makes no sense."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as exc:
        for problem in exc.errors():
            name = "LIPSERVE_" + ".".join(str(part) for part in problem["loc"]).upper()
            err.print(f"[red]{name}[/red]: {problem['msg']}", highlight=False)
        sys.exit(2)

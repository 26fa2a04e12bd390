"""`lipserve keys`: add, list and remove API keys. A running gateway takes notice by itself."""

from pathlib import Path
from typing import Annotated

import typer

from lipserve.errors import InvalidParameter
from lipserve.terminal import err, settings_or_exit

app = typer.Typer(help="API keys of the gateway.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Whose key it is: letters, digits and '._@-'.")]


def _file() -> Path:
    file = settings_or_exit().keys_file
    if file is None:
        raise InvalidParameter(
            "LIPSERVE_KEYS_FILE is not set, so no key is asked for.",
            "Set it for this command and for the gateway, for example to storage/keys.json.",
        )
    return file


@app.command()
def add(name: Name) -> None:
    """Make a key and print it. Only its hash is kept: this is the one time it is shown."""
    from gateway import keys

    key = keys.add(_file(), name)
    err.print("The key is shown this once; its hash is kept.", highlight=False)
    print(key)


@app.command("list")
def list_() -> None:
    """Names, and when they were added."""
    from gateway import keys

    for key in keys.read(_file()):
        print(f"{key.added_at}  {key.name}")


@app.command()
def remove(name: Name) -> None:
    """From the next request on, this key is refused."""
    from gateway import keys

    keys.remove(_file(), name)
    err.print(f"The key of {name} is removed.", highlight=False)

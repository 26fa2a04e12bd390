"""What every voice is: told what to say, it writes a sound file."""

import re
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Protocol

from lipserve.errors import InvalidParameter, SpeechUnavailable

# Everything that a text cannot mean: also what eSpeak would take for its own commands.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Text:
    """What to say. `voice` and `language` may be empty; `ssml`: the text is markup. Raises InvalidParameter."""

    text: str
    voice: str = ""
    language: str = ""
    ssml: bool = False

    def __post_init__(self) -> None:
        if not any(c.isalnum() for c in self.text):
            raise InvalidParameter("The text has nothing in it to say.", "Give at least one word.")

    @property
    def clean(self) -> str:
        """Without control characters."""
        return _CONTROLS.sub(" ", self.text)


class Voice(Protocol):
    def check(self, said: Text) -> None:
        """Quick; what is wrong with the request. Raises InvalidParameter or SpeechUnavailable."""

    def has(self, said: Text) -> bool:
        """Whether it has what a text that was checked names; if not, its own voice speaks it."""

    def say(self, said: Text, target: Path, cancelled: Event) -> None:
        """Blocks, and writes a sound file. Raises also AudioTooLong or Cancelled."""


class NoVoice:
    """For LIPSERVE_TTS=off."""

    def check(self, said: Text) -> None:
        raise SpeechUnavailable(
            "This server does not speak texts.", "Send sound instead, or have LIPSERVE_TTS set to espeak or openai."
        )

    def has(self, said: Text) -> bool:
        return False

    def say(self, said: Text, target: Path, cancelled: Event) -> None:
        self.check(said)

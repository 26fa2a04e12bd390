"""eSpeak NG as a process of its own, limited in time and output; the text goes to its standard input.

Not its library, which may crash, keeps state and cannot be stopped. Voices of other providers, such as
en-US-JennyNeural, become eSpeak's voice for their language; names that say none, such as Joanna, its own.
"""

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from threading import Event

from gateway.speech.markup import rebuilt
from gateway.speech.voice import Text
from lipserve.errors import AudioTooLong, Cancelled, InvalidParameter, SpeechUnavailable

PROGRAM = "espeak-ng"
DEFAULT_VOICE = "en-gb"
VOICE = re.compile(r"(?P<language>[a-z]{2,4}(-[a-z0-9]{1,40}){0,4})(?P<variant>\+[a-z0-9_-]{1,24})?", re.IGNORECASE)
LANGUAGE_FIRST = re.compile(r"[a-z]{2,3}[-+]", re.IGNORECASE)  # how a voice's name begins that says its language
TIMEOUT = 120.0  # seconds for one text
LISTING_TIMEOUT = 10.0  # seconds
BYTES_PER_SECOND = 22_050 * 2  # 16 bit mono, the only form it has
HEADER = 44  # bytes
POLL = 0.02  # seconds


class ESpeak:
    """`voice`: the one to take if a text names none."""

    def __init__(self, voice: str, max_seconds: float) -> None:
        self._voice = voice or DEFAULT_VOICE
        self._max_seconds = max_seconds

    def check(self, said: Text) -> None:
        """See Voice."""
        self._find_voice(said)
        if said.ssml:
            rebuilt(said.clean)

    def has(self, said: Text) -> bool:
        """See Voice."""
        return not said.voice or self._named(said) is not None

    def say(self, said: Text, target: Path, cancelled: Event) -> None:
        """See Voice."""
        command = [_program(), "-v", self._find_voice(said), "-b", "1", "--stdin", "-w", str(target.absolute())]
        text = rebuilt(said.clean) if said.ssml else said.clean.replace("[[", "[ [")  # [[…]] would be phonemes
        if said.ssml:
            command.append("-m")
        with tempfile.TemporaryFile(dir=target.parent) as given:
            given.write(text.encode())
            given.seek(0)
            self._run(command, given.fileno(), target, cancelled)
        if not target.is_file() or target.stat().st_size <= HEADER:
            raise InvalidParameter("eSpeak NG has nothing to say for this text.", "Give words of the voice's language.")

    def _run(self, command: list[str], given: int, target: Path, cancelled: Event) -> None:
        deadline = time.monotonic() + TIMEOUT
        with tempfile.TemporaryFile(dir=target.parent) as complaints:
            process = subprocess.Popen(
                command, stdin=given, stdout=subprocess.DEVNULL, stderr=complaints, cwd=target.parent
            )
            try:
                while process.poll() is None:
                    self._require_limits(target, deadline)
                    if cancelled.wait(POLL):
                        raise Cancelled("The request was cancelled.")
            finally:
                process.kill()
                process.wait()
            self._require_limits(target, deadline)
            if process.returncode != 0:
                complaints.seek(0)
                reason = complaints.read(200).decode(errors="replace").strip()
                raise SpeechUnavailable(
                    f"eSpeak NG ended with code {process.returncode}: {reason}", "See whether it works by hand."
                )

    def _require_limits(self, target: Path, deadline: float) -> None:
        if target.is_file() and target.stat().st_size > HEADER + self._max_seconds * BYTES_PER_SECOND:
            raise AudioTooLong(
                f"The text takes longer than {self._max_seconds:.0f} s to say.", "Send less, or in several requests."
            )
        if time.monotonic() > deadline:
            raise SpeechUnavailable(f"eSpeak NG was not done within {TIMEOUT:.0f} s.", "Send a shorter text.")

    def _find_voice(self, said: Text) -> str:
        """The eSpeak voice that the text's voice, else its language, else the configuration means."""
        found = self._named(said) or match(self._voice, *_voices(_program()))
        if found is None:
            raise _no_voice(self._voice)
        return found

    def _named(self, said: Text) -> str | None:
        """None: no language is named. One that eSpeak does not have is refused: nobody would understand another's."""
        languages, variants = _voices(_program())
        names = [name for name in (said.voice, said.language) if name]
        for name in names:
            if found := match(name, languages, variants):
                return found
        if said.language or LANGUAGE_FIRST.match(said.voice):
            raise _no_voice(*names)
        return None


def _no_voice(*names: str) -> InvalidParameter:
    return InvalidParameter(
        f"There is no voice for {' or '.join(repr(name[:64]) for name in names)}.",
        f"Name one that `{PROGRAM} --voices` lists, like en-us or de+f3, or a language, like pt-BR.",
    )


def match(name: str, languages: Mapping[str, str], variants: frozenset[str]) -> str | None:
    """eSpeak's name of a voice: en-US-JennyNeural and en-US are en-us, zh-CN is cmn, de+f3 is the variant f3 of de."""
    parts = VOICE.fullmatch(name)
    if parts is None:
        return None
    variant = (parts["variant"] or "").lower()
    if variant and variant[1:] not in variants:
        return None
    language = parts["language"].lower()
    while language:
        if language in languages:
            return languages[language] + variant
        language = language.rpartition("-")[0]
    return None


def _program() -> str:
    found = shutil.which(PROGRAM)
    if found is None:
        raise SpeechUnavailable(
            "Texts cannot be spoken: espeak-ng is not installed.",
            "Install it (Debian's package espeak-ng), or set LIPSERVE_TTS to openai or off.",
        )
    return found


@cache
def _voices(program: str) -> tuple[dict[str, str], frozenset[str]]:
    """Language, lower case: the voice eSpeak has for it; and its variants' names."""
    return parse_voices(_listing(program, "--voices")), parse_variants(_listing(program, "--voices=variant"))


def _listing(program: str, what: str) -> str:
    try:
        done = subprocess.run([program, what], capture_output=True, timeout=LISTING_TIMEOUT, check=True)
    except (OSError, subprocess.SubprocessError) as exc:
        raise SpeechUnavailable(f"espeak-ng does not list its voices: {exc}.", "See whether it works by hand.") from exc
    return done.stdout.decode(errors="replace")


def parse_voices(listing: str) -> dict[str, str]:
    """Of a table with the columns priority, language, age/gender, name, file, other languages as (code priority)…

    A language has its own voice, else the one that claims it with the smallest priority.
    """
    own: dict[str, str] = {}
    claims: dict[str, tuple[int, str]] = {}
    for line in listing.splitlines()[1:]:
        columns = line.split()
        if len(columns) < 5:
            continue
        language = columns[1].lower()
        own.setdefault(language, language)
        for other, priority in re.findall(r"\((\S+) (\d+)\)", line):
            claim = (int(priority), language)
            claims[other.lower()] = min(claims.get(other.lower(), claim), claim)
    return {language: voice for language, (_, voice) in claims.items()} | own


def parse_variants(listing: str) -> frozenset[str]:
    """The names behind !v/ in a table of variants, the ones in lower case: eSpeak finds them by file name."""
    return frozenset(re.findall(r"!v/([a-z0-9_-]+)\b", listing))

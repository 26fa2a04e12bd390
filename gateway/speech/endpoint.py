"""An OpenAI-compatible speech endpoint, POST <url>/audio/speech, limited in time and output.

Its address is the operator's, so it may be on this host. Its key is never in a message: what a refusal of the key says
is not passed on, and in every other message it is blotted out.
"""

import asyncio
import re
from collections.abc import Coroutine
from pathlib import Path
from threading import Event

import httpx

from gateway.speech.voice import Text
from lipserve.errors import AudioTooLong, Cancelled, InvalidParameter, LipserveError, SpeechUnavailable

DEFAULT_VOICE = "alloy"
VOICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:/+-]{0,99}")
TIMEOUT = 300.0  # seconds for one text, all of it
CONNECT_TIMEOUT = 10.0
BYTES_PER_SECOND = 48_000 * 4  # the largest form that makes sense: 16 bit stereo at 48 kHz
HEADER = 65_536  # bytes
POLL = 0.1  # seconds
SHOWN = 300  # characters of what the endpoint says


class SpeechEndpoint:
    def __init__(self, url: str, key: str, model: str, voice: str, max_seconds: float) -> None:
        self._url = f"{url.rstrip('/')}/audio/speech" if url else ""
        self._key, self._model, self._voice = key, model, voice or DEFAULT_VOICE
        self._max_seconds = max_seconds

    def check(self, said: Text) -> None:
        """See Voice."""
        if not self._url:
            raise SpeechUnavailable("Texts cannot be spoken: no speech endpoint is set.", "Set LIPSERVE_TTS_URL.")
        if said.ssml:
            raise InvalidParameter("ssml is not taken by this server's speech endpoint.", "Send plain text.")
        if said.voice and not VOICE.fullmatch(said.voice):
            raise InvalidParameter("The voice's name is not allowed.", "Name one of the speech endpoint's voices.")

    def has(self, said: Text) -> bool:
        """See Voice. Which voices it has, the endpoint alone knows."""
        return True

    def say(self, said: Text, target: Path, cancelled: Event) -> None:
        """See Voice."""
        self.check(said)
        asyncio.run(self._within_limits(self._fetch(said, target), cancelled))

    async def _within_limits(self, fetching: Coroutine[None, None, None], cancelled: Event) -> None:
        """A thread's blocking wait could not be given up; a task can, at any moment."""
        task = asyncio.ensure_future(fetching)
        deadline = asyncio.get_running_loop().time() + TIMEOUT
        while not (await asyncio.wait({task}, timeout=POLL))[0]:
            late = asyncio.get_running_loop().time() > deadline
            if late or cancelled.is_set():
                task.cancel()
                await asyncio.wait({task})
                if not late:
                    raise Cancelled("The request was cancelled.")
                raise SpeechUnavailable(f"The speech endpoint was not done within {TIMEOUT:.0f} s.", "Try again later.")
        await task

    async def _fetch(self, said: Text, target: Path) -> None:
        body = {
            "model": self._model,
            "input": said.clean,
            "voice": said.voice or self._voice,
            "response_format": "wav",
        }
        headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
        timeout = httpx.Timeout(TIMEOUT, connect=CONNECT_TIMEOUT)
        try:
            async with (
                httpx.AsyncClient(timeout=timeout, trust_env=False) as client,
                client.stream("POST", self._url, json=body, headers=headers) as response,
            ):
                if response.status_code != 200:
                    raise self._refusal(response.status_code, await _beginning(response))
                await self._write(response, target)
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise SpeechUnavailable(
                f"The speech endpoint cannot be reached: {self._shown(str(exc) or type(exc).__name__)}.",
                "Try again later; the operator finds it under LIPSERVE_TTS_URL.",
            ) from exc

    async def _write(self, response: httpx.Response, target: Path) -> None:
        limit, written = HEADER + self._max_seconds * BYTES_PER_SECOND, 0
        with target.open("wb") as out:
            async for block in response.aiter_bytes():
                written += len(block)
                if written > limit:
                    raise AudioTooLong(
                        f"The text takes longer than {self._max_seconds:.0f} s to say.", "Send less at a time."
                    )
                out.write(block)
        if not written:
            raise SpeechUnavailable("The speech endpoint answered with no sound.", "Try again later.")

    def _refusal(self, status: int, said: bytes) -> LipserveError:
        if status in (401, 403):
            return SpeechUnavailable(
                f"The speech endpoint refuses this server's key ({status}).", "The operator must set LIPSERVE_TTS_KEY."
            )
        story = self._shown(said.decode(errors="replace"))
        if status in (400, 413, 422):
            return InvalidParameter(f"The speech endpoint refuses the text or its voice: {story}", "Change them.")
        return SpeechUnavailable(f"The speech endpoint answered {status}: {story}", "Try again later.")

    def _shown(self, story: str) -> str:
        """In one line, short, without the key."""
        told = story.replace(self._key, "…") if self._key else story
        return " ".join("".join(c if c.isprintable() else " " for c in told).split())[:SHOWN]


async def _beginning(response: httpx.Response) -> bytes:
    said = b""
    async for block in response.aiter_bytes():
        said += block
        if len(said) > 4 * SHOWN:
            break
    return said

"""Text to speech: the real eSpeak NG, and a real speech endpoint on this host."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from samples import tone, write_sound
from speech_endpoint import Endpoint, speech_endpoint

from gateway.speech import Text, choose_voice
from gateway.speech import espeak as espeak_module
from gateway.speech.espeak import ESpeak, match, parse_variants, parse_voices
from gateway.speech.markup import rebuilt
from lipserve.errors import AudioTooLong, Cancelled, InvalidParameter, SpeechUnavailable
from lipserve.media import read_sound
from lipserve.settings import Settings

VOICES = """Pty Language       Age/Gender VoiceName          File                 Other Languages
 5  cmn             --/M      Chinese_(Mandarin) sit/cmn              (zh-cmn 5)(zh 5)
 5  de              --/M      German             gmw/de
 2  en-gb           --/M      English_(Great_Britain) gmw/en               (en 2)
 2  en-us           --/M      English_(America)  gmw/en-US            (en 3)
 5  yue             --/M      Chinese_(Cantonese) sit/yue              (zh-yue 5)(zh 8)
"""
VARIANTS = (
    " 5  variant         --/F      f3                 !v/f3\n 5  variant         --/M      Alex               !v/Alex\n"
)


@pytest.mark.parametrize(
    ("name", "voice"),
    [
        ("en-gb", "en-gb"),
        ("EN-us", "en-us"),
        ("en-US-JennyNeural", "en-us"),
        ("en-AU-NatashaNeural", "en-gb"),
        ("de-DE-KatjaNeural", "de"),
        ("zh-CN-XiaoxiaoNeural", "cmn"),
        ("zh-yue", "yue"),
        ("de+f3", "de+f3"),
        ("de+Alex", None),  # eSpeak has it, but we cannot tell its file's case
        ("tlh", None),
        ("Sara", None),
        ("21m00Tcm4TlvDq8ikWAM", None),
        ("../../etc/passwd", None),
        ("en-gb; ls", None),
        ("-w/tmp/x", None),
        ("de+../f3", None),
    ],
)
def test_voices_of_other_providers_are_known_by_their_language(name: str, voice: str | None) -> None:
    assert match(name, parse_voices(VOICES), parse_variants(VARIANTS)) == voice


def say(espeak: ESpeak, tmp_path: Path, text: str, **how: object) -> float:
    """Seconds of the sound; a second request gives the same bytes."""
    file = tmp_path / "said.wav"
    espeak.say(Text(text, **how), file, Event())  # type: ignore[arg-type]
    return read_sound(file, 600).seconds


def test_espeak_speaks(tmp_path: Path) -> None:
    voice = ESpeak("", 60)
    one = say(voice, tmp_path, "One.")
    first = (tmp_path / "said.wav").read_bytes()
    assert 0.3 < one < 2
    assert say(voice, tmp_path, "One.") == one and (tmp_path / "said.wav").read_bytes() == first
    assert say(voice, tmp_path, "One. Two. Three. Four.") > 2 * one
    assert np.abs(read_sound(tmp_path / "said.wav", 60).samples).max() > 0.1
    assert [file.name for file in tmp_path.iterdir()] == ["said.wav"]


def test_the_voice_and_the_language_are_heard(tmp_path: Path) -> None:
    voice = ESpeak("", 60)
    sounds = []
    for how in ({}, {"voice": "de-DE-KatjaNeural"}, {"voice": "Sara", "language": "de-DE"}, {"voice": "de+f3"}):
        say(voice, tmp_path, "Wasser", **how)
        sounds.append((tmp_path / "said.wav").read_bytes())
    assert sounds[1] == sounds[2]
    assert len(set(sounds)) == 3


def test_a_text_is_no_command_and_no_phonemes(tmp_path: Path) -> None:
    """0x01 begins eSpeak's embedded commands, [[ its phonemes, - an option."""
    voice = ESpeak("", 60)
    plain = say(voice, tmp_path, "-w hello 99 P")
    assert say(voice, tmp_path, "-w hello \x0199P") == pytest.approx(plain, abs=0.3)
    assert say(voice, tmp_path, "say [[h@l'oU]] now") > say(voice, tmp_path, "say hello now")
    assert say(voice, tmp_path, "\ud800 hello", voice="en-gb") > 0.3  # a lone surrogate, as JSON may bring it


def test_markup_of_a_few_harmless_elements(tmp_path: Path) -> None:
    voice = ESpeak("", 60)
    plain = say(voice, tmp_path, "One. Two.")
    paused = say(voice, tmp_path, '<speak version="1.0" xml:lang="en">One. <break time="3s"/> Two.</speak>', ssml=True)
    assert paused == pytest.approx(plain + 3, abs=1)
    assert say(voice, tmp_path, "One. Two. &lt;", ssml=True) >= plain  # a fragment


@pytest.mark.parametrize(
    ("markup", "named"),
    [
        ('<speak>a <audio src="/etc/hostname"/></speak>', "<audio>"),
        ('<speak><voice name="../x">a</voice></speak>', "<voice>"),
        ('<speak><break time="9999s"/>a</speak>', "time="),
        ('<speak><prosody rate="&quot;&gt;&lt;audio">a</prosody></speak>', "rate="),
        ('<!DOCTYPE x [<!ENTITY a "b">]><speak>&a;</speak>', ""),
        ("<speak><![CDATA[<audio src='x'/>]]></speak>", "CDATA"),
        ("<speak>a", ""),
        ("<p>" * 40 + "a" + "</p>" * 40, "deep"),
    ],
)
def test_other_markup_is_refused_by_name(markup: str, named: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        rebuilt(markup)
    assert named in refused.value.message


def test_what_is_rebuilt_means_the_same() -> None:
    assert rebuilt("a &lt;audio&gt; <s>b &amp; c</s>") == "<speak>a &lt;audio&gt; <s>b &amp; c</s></speak>"


def test_a_text_without_words_is_refused() -> None:
    for text in ("", " \n", "?!", "\x01\x02"):
        with pytest.raises(InvalidParameter, match="nothing in it to say"):
            Text(text)


def heard(tmp_path: Path, espeak: ESpeak, **how: str) -> bytes:
    say(espeak, tmp_path, "Wasser", **how)
    return (tmp_path / "said.wav").read_bytes()


@pytest.mark.parametrize("name", ["Sara", "Joanna", "Amy", "Klingon", "21m00Tcm4TlvDq8ikWAM", "s3://voices/a/m.json"])
def test_a_name_that_says_no_language_means_the_services_own_voice(name: str, tmp_path: Path) -> None:
    voice = ESpeak("de", 60)
    voice.check(Text("Wasser", voice=name))
    assert not voice.has(Text("Wasser", voice=name))
    assert heard(tmp_path, voice, voice=name) == heard(tmp_path, voice) != heard(tmp_path, ESpeak("", 60))
    assert voice.has(Text("Wasser", voice=name, language="en-US"))
    assert heard(tmp_path, voice, voice=name, language="en-US") == heard(tmp_path, voice, voice="en-us")


@pytest.mark.parametrize(
    ("voice", "language"),
    [("qq-QQ-JennyNeural", ""), ("Sara", "qq-QQ"), ("", "qq"), ("en-us+nobody", ""), ("de+../f3", "")],
)
def test_a_language_that_is_not_there_is_refused_before_anything_runs(voice: str, language: str) -> None:
    with pytest.raises(InvalidParameter, match="There is no voice for"):
        ESpeak("", 60).check(Text("hello", voice, language))


def test_an_own_voice_that_is_not_there_is_said() -> None:
    with pytest.raises(InvalidParameter, match="Klingon"):
        ESpeak("Klingon", 60).check(Text("hello"))


def test_which_voice_is_there(endpoint: Endpoint) -> None:
    for named in ({}, {"voice": "en-US-JennyNeural"}, {"language": "de"}):
        assert ESpeak("", 60).has(Text("hello", **named))
    assert choose_voice(Settings(tts="openai", tts_url=endpoint.url)).has(Text("hello", "nova"))


def test_a_text_too_long_to_say_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(AudioTooLong):
        ESpeak("", 5).say(Text("hello there " * 400), tmp_path / "said.wav", Event())


def test_cancelling_kills_espeak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in that never ends; it leaves its process id."""
    program = fake_espeak(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 60")
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    cancelled = Event()
    threading.Timer(0.5, cancelled.set).start()
    start = time.monotonic()
    with pytest.raises(Cancelled):
        ESpeak("", 60).say(Text("hello"), tmp_path / "said.wav", cancelled)
    assert time.monotonic() - start < 5
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_failing_espeak_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = fake_espeak(tmp_path, "echo cannot >&2; exit 3")
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    with pytest.raises(SpeechUnavailable, match="code 3: cannot"):
        ESpeak("", 60).say(Text("hello"), tmp_path / "said.wav", Event())


def fake_espeak(tmp_path: Path, speaking: str) -> Path:
    """Lists the real one's voices; speaks as told."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "espeak-ng"
    real = shutil.which("espeak-ng")
    program.write_text(f'#!/bin/sh\ncase "$1" in --voices*) exec {real} "$1";; esac\n{speaking}\n')
    program.chmod(0o755)
    return program


def test_a_missing_espeak_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SpeechUnavailable, match="Debian's package espeak-ng"):
        choose_voice(Settings()).check(Text("hello"))


def test_no_voice_when_it_is_off() -> None:
    with pytest.raises(SpeechUnavailable, match="LIPSERVE_TTS"):
        choose_voice(Settings(tts="off")).check(Text("hello"))


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with speech_endpoint() as told:
        yield told


KEY = "sk-secret-0123456789"


def from_endpoint(told: Endpoint, tmp_path: Path, text: Text | None = None, cancelled: Event | None = None) -> Path:
    settings = Settings(tts="openai", tts_url=told.url, tts_key=KEY, tts_model="tts-9", max_audio_seconds=2)
    target = tmp_path / "said"
    choose_voice(settings).say(text or Text("Hello.", voice="nova"), target, cancelled or Event())
    return target


def test_an_endpoint_speaks(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.body = write_sound(tmp_path / "tone.wav", tone(0.5), 16000).read_bytes()
    assert read_sound(from_endpoint(endpoint, tmp_path), 10).seconds == 0.5
    body = {"model": "tts-9", "input": "Hello.", "voice": "nova", "response_format": "wav"}
    assert endpoint.asked == [("/v1/audio/speech", f"Bearer {KEY}", body)]
    from_endpoint(endpoint, tmp_path, Text("Hello."))
    assert endpoint.asked[1][2]["voice"] == "alloy"


@pytest.mark.parametrize(
    ("status", "body", "error", "said"),
    [
        (401, f"Incorrect key {KEY}".encode(), SpeechUnavailable, "refuses this server's key"),
        (400, f'{{"error": "no voice nova\n\x1b {KEY}"}}'.encode(), InvalidParameter, "no voice nova"),
        (500, b"\xff broken", SpeechUnavailable, "answered 500"),
        (302, b"", SpeechUnavailable, "answered 302"),
        (200, b"", SpeechUnavailable, "no sound"),
    ],
)
def test_an_endpoints_errors_are_told_without_the_key(
    endpoint: Endpoint, tmp_path: Path, status: int, body: bytes, error: type[Exception], said: str
) -> None:
    endpoint.status, endpoint.body = status, body
    with pytest.raises(error, match=said) as raised:
        from_endpoint(endpoint, tmp_path)
    assert KEY not in str(raised.value) and "\x1b" not in str(raised.value)
    assert len(endpoint.asked) == 1  # no redirect is followed


def test_an_endpoint_that_never_ends_is_stopped(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.body, endpoint.repeat = b"x" * 65536, 100
    with pytest.raises(AudioTooLong):
        from_endpoint(endpoint, tmp_path)


def test_a_slow_endpoint_is_left_when_nobody_waits(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.delay = 3
    cancelled = Event()
    threading.Timer(0.3, cancelled.set).start()
    start = time.monotonic()
    with pytest.raises(Cancelled):
        from_endpoint(endpoint, tmp_path, cancelled=cancelled)
    assert time.monotonic() - start < 2


def test_an_endpoint_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpeechUnavailable, match="cannot be reached"):
        from_endpoint(Endpoint(url="http://127.0.0.1:9/v1"), tmp_path)
    with pytest.raises(SpeechUnavailable, match="LIPSERVE_TTS_URL"):
        from_endpoint(Endpoint(), tmp_path)


def test_espeak_gives_up_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = fake_espeak(tmp_path, "exec sleep 60")
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(espeak_module, "TIMEOUT", 0.5)
    with pytest.raises(SpeechUnavailable, match="not done within"):
        ESpeak("", 60).say(Text("hello"), tmp_path / "said.wav", Event())

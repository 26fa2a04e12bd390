"""One utterance through libespeak-ng: request on standard input, phonemes and samples on standard output.

Run as a file of its own, for one utterance each time: the library keeps pitch phases from one utterance to the next
and cannot be reset, so only a fresh process says the same sentence twice alike. Only the standard library is imported,
which makes it start in some 20 ms. The structures and constants are those of eSpeak NG 1.51's `speak_lib.h`.

Output: one line of JSON {"rate": Hz, "phones": [[symbol, first sample], …]}, then the samples, int16, native order.
"""

import ctypes
import json
import sys
from pathlib import Path

LIBRARY = "libespeak-ng.so.1"
INVENTED = "invented"  # the variant that a request may bring

SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: nothing is played, espeak_Synth returns when all has been handed over
PHONEME_EVENTS, PHONEME_IPA, DONT_EXIT = 0x0001, 0x0002, 0x8000  # options of espeak_Initialize
RATE, PITCH = 1, 3  # espeak_PARAMETER
POS_CHARACTER, CHARS_UTF8 = 1, 1
LIST_TERMINATED, PHONEME = 0, 7  # espeak_EVENT_TYPE


class Id(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", Id),
    ]


class Voice(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_void_p),  # priority byte, name, 0; …; 0
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("xx1", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    ]


Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event))


def identifier(library: ctypes.CDLL, language: str) -> str:
    """The identifier of the voice that speaks a language, like gmw/en for en-gb; else what was given."""
    library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(Voice))
    voices = library.espeak_ListVoices(None)
    index = 0
    while voices[index]:
        voice = voices[index].contents
        tag = ctypes.cast(voice.languages + 1, ctypes.c_char_p).value or b""
        if tag.decode() == language:
            return str(voice.identifier.decode())
        index += 1
    return language


def with_variant(library: ctypes.CDLL, folder: Path, variant: str) -> bytes:
    """A copy of eSpeak's data, by links, in which the voice variant INVENTED exists; returns where it lies. The links
    of an earlier call are kept.
    """
    own = folder / "espeak-ng-data"
    if not own.is_dir():
        where = ctypes.c_char_p()
        library.espeak_Info(ctypes.byref(where))
        data = Path((where.value or b"").decode())
        for level in (Path(), Path("voices"), Path("voices/!v")):
            (own / level).mkdir()
            for entry in (data / level).iterdir():
                if level / entry.name not in (Path("voices"), Path("voices/!v")):
                    (own / level / entry.name).symlink_to(entry)
    (own / "voices/!v" / INVENTED).write_text(variant)
    return str(folder).encode()


def synthesise(
    text: str, voice: str, speed: int, pitch: int, folder: str, variant: str | None = None
) -> tuple[int, list[tuple[str, int]], bytes]:
    """Sampling rate, (IPA symbol, first sample) of every phoneme and pause, and the samples as int16.

    `variant`: what stands in a file of eSpeak's `voices/!v`; it is then the one that the voice names INVENTED, and
    `folder`, which no other call uses at the time, receives eSpeak's data with it.
    """
    library = ctypes.CDLL(LIBRARY)
    if variant is None:
        return _synthesise(library, None, text, voice, speed, pitch)
    library.espeak_Initialize(SYNCHRONOUS, 0, None, DONT_EXIT)
    return _synthesise(library, with_variant(library, Path(folder), variant), text, voice, speed, pitch)


def _synthesise(
    library: ctypes.CDLL, data_folder: bytes | None, text: str, voice: str, speed: int, pitch: int
) -> tuple[int, list[tuple[str, int]], bytes]:
    samples = bytearray()
    phones: list[tuple[str, int]] = []

    def receive(wave: "ctypes._Pointer[ctypes.c_short]", count: int, events: "ctypes._Pointer[Event]") -> int:
        if count > 0 and wave:
            samples.extend(ctypes.string_at(wave, 2 * count))
        index = 0
        while events[index].type != LIST_TERMINATED:
            event = events[index]
            if event.type == PHONEME:
                symbol = bytes(event.id.string).split(b"\0")[0].decode("utf-8", "ignore")
                phones.append((symbol, event.sample))
            index += 1
        return 0

    callback = Callback(receive)
    rate = library.espeak_Initialize(SYNCHRONOUS, 0, data_folder, PHONEME_EVENTS | PHONEME_IPA | DONT_EXIT)
    if rate <= 0:
        raise SystemExit("libespeak-ng found no data; install the package espeak-ng-data")
    library.espeak_SetSynthCallback(callback)
    language, plus, variant = voice.partition("+")
    if library.espeak_SetVoiceByName((identifier(library, language) + plus + variant).encode()) != 0:
        raise SystemExit(f"eSpeak NG has no voice {voice!r}; `espeak-ng --voices` lists them")
    library.espeak_SetParameter(RATE, speed, 0)
    library.espeak_SetParameter(PITCH, pitch, 0)
    data = text.encode() + b"\0"
    library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, POS_CHARACTER, 0, CHARS_UTF8, None, None)
    library.espeak_Synchronize()
    return rate, phones, bytes(samples)


def main() -> None:
    request = json.loads(sys.stdin.buffer.read())
    try:
        rate, phones, samples = synthesise(**request)
    except OSError as error:
        raise SystemExit(f"{LIBRARY} cannot be loaded ({error}); apt-get install espeak-ng") from error
    sys.stdout.buffer.write(json.dumps({"rate": rate, "phones": phones}).encode() + b"\n" + samples)


if __name__ == "__main__":
    main()

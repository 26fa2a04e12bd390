"""Text to speech behind one small interface: eSpeak NG, an OpenAI-compatible endpoint, or none."""

from gateway.speech.endpoint import SpeechEndpoint
from gateway.speech.espeak import ESpeak
from gateway.speech.voice import NoVoice, Text, Voice
from lipserve.settings import Settings

__all__ = ["Text", "Voice", "choose_voice"]


def choose_voice(settings: Settings) -> Voice:
    """As configured. Builds only: what is missing is said when something is to be spoken."""
    if settings.tts == "espeak":
        return ESpeak(settings.tts_voice, settings.max_audio_seconds)
    if settings.tts == "openai":
        key = settings.tts_key.get_secret_value() if settings.tts_key else ""
        return SpeechEndpoint(settings.tts_url, key, settings.tts_model, settings.tts_voice, settings.max_audio_seconds)
    return NoVoice()

"""Speech whose mouth is known: text → sound and phonemes (eSpeak NG) → the mouth over time.

    texts.py        seeded sentences in several languages, some kept apart for validation
    voices.py       which voices speak, and which are kept apart
    espeak.py       text to 16 kHz sound with the time of every phoneme
    synthesiser.py  the process that talks to libespeak-ng
    visemes.py      what the mouth does for each phoneme
    coarticulation.py   phonemes in time to a mouth in time
    augment.py      the same speech, worse recorded

Knows the portrait's mouth controls as numbers; draws nothing, trains nothing.
"""

"""Training of the demo profile's weights, from nothing but a synthesiser of speech and a renderer of faces.

    python -m export.training all        everything below, in order; may be killed at any time and started again

    corpus.py      utterances with known mouths                            python -m export.training speech
    faces.py       crops of drawn people who say them                      python -m export.training faces
    segments.py    30 s of utterances as a network hears them
    loop.py        a training run that can be killed and resumed
    vae.py         pictures to latents and back                            python -m export.training vae
    audio.py       the audio encoder                                       python -m export.training audio
    windows.py     what the audio encoder says at the faces' moments       python -m export.training windows
    unet.py        latents and sound to the latents of a speaking face     python -m export.training unet
    weights.py     the result as FP16 files, and back                      python -m export.training pack
    pixels.py      pictures as tensors, and how far apart two are
    pipeline.py    the stages in order, and how much of everything

Budget, measured on two cores of an AMD EPYC (AVX-512) with nothing else running, fp32:

    speech      2800 utterances, 2.7 h of sound         20 a second                   2 min
    faces       524 identities, 31 440 pictures         23 pictures a second         23 min
    vae         4000 steps of 8 pictures                16 pictures a second         34 min
    audio       2000 steps of 2 × 30 s                  1.4 segments a second        48 min
    windows     8 h of recordings                       2 segments a second           8 min
    unet        10 000 steps of 8 faces                  9 faces a second          2 h 30 min

A GPU is used if torch has one (not measured): pictures and sound are then still drawn on one CPU core, which takes
10 to 15 minutes for the audio stage, whose segments need 0.15 s each. Importing this package imports no torch.
"""

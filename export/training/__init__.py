"""Training of the demo profile's weights, from nothing but a synthesiser of speech and a renderer of faces.

    python -m export.training all        everything below, in order; may be killed at any time and started again

    corpus.py      utterances with known mouths                            python -m export.training speech
    faces.py       crops of drawn people who say them                      python -m export.training faces
    segments.py    30 s of utterances as a network hears them
    loop.py        a training run that can be killed and resumed
    vae.py         pictures to latents and back                            python -m export.training vae
    audio.py       the audio encoder                                       python -m export.training audio
    latents.py     what the VAE's encoder makes of the faces               python -m export.training latents
    windows.py     what the audio encoder says at the faces' moments       python -m export.training windows
    unet.py        latents and sound to the latents of a speaking face     python -m export.training unet
    weights.py     the result, ONNX graphs, and back into torch            python -m export.training pack
    pixels.py      pictures as tensors, and how far apart two are
    pipeline.py    the stages in order, and how much of everything

With `--start models/demo` the networks begin with the bundled weights, and take a fifth of the steps at half the
rate; a stage that is left out keeps its weights.

Time, of a training with half the steps: two cores of an AMD EPYC (AVX-512, bfloat16), stages side by side and with
much other work on the machine:

    speech      10 640 utterances, 11 h of sound                           20 min
    faces       184 identities, 11 040 pictures, one core                  30 min
    vae         1750 steps of 8 squares, one core                          23 min
    audio       1850 steps of 2 × 30 s, one core                           45 min
    latents     12 880 encodings, one core                                  6 min
    windows     3 recordings of 8000 moments' utterances, one core         16 min
    unet        1350 steps of 16 faces, the last quarter in pixels         20 min

A GPU is used if torch has one (not measured): pictures and sound are then still drawn on CPU cores, which takes some 10
minutes for the audio stage, whose segments need 0.15 s each. Importing this package imports no torch.
"""

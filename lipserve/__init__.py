"""lipserve: MuseTalk lip-sync as a service.

This package holds what gateway, avatar_prep and export share: the contract, errors, settings, media, the avatar folder,
the embedded Triton and the command line.
"""

__version__ = "0.1.0"

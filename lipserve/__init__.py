"""lipserve: MuseTalk lip-sync as a service.

This package holds what gateway, avatar_prep and export share: the contract, errors, settings, media, the avatar folder,
the embedded Triton and the command line.
"""

import os

__version__ = "0.1.0"

# ONNX Runtime reports to its maker unless it is told not to before it is imported; the embedded Triton inherits this.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

"""Export: networks in, ONNX graphs and a complete Triton model repository out.

Importing this package imports no torch; the modules that need it do. Nothing here is imported by the gateway.
"""

import lipserve  # noqa: F401  before anything imports ONNX Runtime

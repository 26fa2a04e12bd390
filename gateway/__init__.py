"""The gateway: audio in, video out. Never imports torch, export or anything of training."""

import lipserve  # noqa: F401  before anything imports ONNX Runtime

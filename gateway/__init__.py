"""The gateway: audio in, video out. Never imports torch, export or anything of training."""

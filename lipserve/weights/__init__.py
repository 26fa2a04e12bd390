"""MuseTalk's weights on disk: which files there are, whether they are there and whole, and how they come there.

Nothing here reads a tensor or imports torch; `export/checkpoints.py` does.
"""

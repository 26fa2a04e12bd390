"""Preparation: from a video, a picture or a folder of pictures to an avatar folder, once per avatar."""

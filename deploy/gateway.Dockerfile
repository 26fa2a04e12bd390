# The gateway: neither torch nor a Triton in it. Built from the repository's root. Its base is pinned to a release by its
# tag, not to a digest, which has not been looked up.
FROM python:3.11.15-slim-bookworm AS build
WORKDIR /build
RUN python -m venv /opt/lipserve
COPY pyproject.toml README.md LICENSE ./
COPY lipserve lipserve
COPY gateway gateway
COPY avatar_prep avatar_prep
RUN /opt/lipserve/bin/pip install --no-cache-dir --disable-pip-version-check .
RUN /opt/lipserve/bin/python -c "from pathlib import Path; from lipserve.fetch import FACE_MODELS, fetch; \
fetch(FACE_MODELS, Path('/srv/lipserve/models'))"

FROM python:3.11.15-slim-bookworm
COPY --from=build /opt/lipserve /opt/lipserve
COPY --from=build /srv/lipserve /srv/lipserve
# What speaks text scripts, unless LIPSERVE_TTS says otherwise.
RUN apt-get update \
 && apt-get install -y --no-install-recommends espeak-ng \
 && rm -rf /var/lib/apt/lists/*
# Volumes take their owner from the folders they are mounted on.
RUN useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin lipserve \
 && install -d -o lipserve -g lipserve /srv/lipserve/avatars /srv/lipserve/work /srv/lipserve/storage
# librosa wants a home, and numba, which it brings, a folder for what it compiles, or neither can be imported.
# ONNX Runtime's wheels report their use to Microsoft unless they are told not to.
ENV PATH=/opt/lipserve/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    NUMBA_CACHE_DIR=/tmp/numba \
    ORT_DISABLE_TELEMETRY=1 \
    LIPSERVE_HOST=0.0.0.0 \
    LIPSERVE_PORT=8080 \
    LIPSERVE_AVATARS_DIR=/srv/lipserve/avatars \
    LIPSERVE_MODELS_DIR=/srv/lipserve/models \
    LIPSERVE_WORK_DIR=/srv/lipserve/work \
    LIPSERVE_STORAGE_DIR=/srv/lipserve/storage
WORKDIR /srv/lipserve
USER lipserve
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=6s --start-period=180s --retries=3 \
  CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/health/ready', timeout=5)"]
CMD ["lipserve", "up"]

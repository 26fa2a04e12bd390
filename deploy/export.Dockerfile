# The export, on the Triton image that will serve what it writes: an engine runs on the TensorRT that built it, and on no
# other. Built from the repository's root.
ARG TRITON_IMAGE
FROM ${TRITON_IMAGE}
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/export
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY lipserve lipserve
COPY gateway gateway
COPY avatar_prep avatar_prep
COPY export export
COPY deploy/export.constraints.txt constraints.txt
# torch with CUDA: it traces the networks on the CPU, and holds the tensors that engines are tried on
RUN /opt/export/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt '.[export]'
# TensorRT's Python half, in exactly the version and for the CUDA of this image
RUN set -eu; \
    library="$(ls /usr/lib/x86_64-linux-gnu/libnvinfer.so.*.*.*)"; \
    /opt/export/bin/pip install --no-cache-dir --disable-pip-version-check \
      "tensorrt-cu${CUDA_VERSION%%.*}==${library##*.so.}.*"
ENV ORT_DISABLE_TELEMETRY=1
WORKDIR /srv/lipserve
ENTRYPOINT ["/opt/export/bin/python", "-m", "export"]
CMD ["--target", "tensorrt", "--profile", "musetalk-v15"]

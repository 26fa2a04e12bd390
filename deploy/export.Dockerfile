# The export: checked graphs, and engines built by the TensorRT that will run them. Built from the repository's root; why
# it is made like this: docs/decisions/0019-the-export-image.md.
ARG TRITON_IMAGE
FROM ${TRITON_IMAGE} AS triton
ARG TRITON_IMAGE
COPY deploy/tensorrt-libraries.sh /
RUN /tensorrt-libraries.sh "${TRITON_IMAGE}" /tensorrt

FROM python:3.11.15-slim-bookworm
# PyTorch's own index has the build for the CPU; PyPI's torch brings CUDA 13, which wants a driver of 580 or later.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore
# libcuda is the host's: the NVIDIA Container Toolkit brings it in when a container starts.
COPY --from=triton /tensorrt /opt/tensorrt
RUN echo /opt/tensorrt > /etc/ld.so.conf.d/tensorrt.conf && ldconfig \
 && ! ldd /opt/tensorrt/lib*.so* | grep 'not found' | grep -v 'libcuda\.so'
WORKDIR /build
COPY deploy/export.constraints.txt constraints.txt
RUN pip install --no-deps --index-url "${TORCH_INDEX}" "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY lipserve lipserve
COPY gateway gateway
COPY avatar_prep avatar_prep
COPY export export
RUN pip install -c constraints.txt '.[export,models,tensorrt]' "$(cat /opt/tensorrt/bindings)"
COPY deploy/export-entrypoint.sh /usr/local/bin/export-entrypoint
# Whoever runs it may have no name here and no home: torch asks for the one, numba and others for the other.
ENV USER=export \
    HOME=/tmp \
    NUMBA_CACHE_DIR=/tmp/numba \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /srv/lipserve
USER 1000:1000
ENTRYPOINT ["export-entrypoint"]
CMD ["--target", "tensorrt", "--profile", "musetalk-v15"]

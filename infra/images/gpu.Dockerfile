# Ray nodes with GPUs: CUDA comes with PyPI's torch, the driver from the node (NVIDIA's container toolkit). Built from the project's root:
#   docker build --file infra/images/gpu.Dockerfile --tag registry.example/tood-gpu:0.1.0-ray2.60.0 .
FROM python:3.11.14-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
RUN python -m venv /opt/tood
ENV PATH=/opt/tood/bin:$PATH
COPY requirements.lock ./
RUN pip install --constraint requirements.lock setuptools torch torchvision
# What the project depends on, before its code: a change of code leaves this layer as it is.
COPY pyproject.toml README.md LICENSE NOTICE ./
RUN pip install --constraint requirements.lock --no-build-isolation ".[fast-eval,demo,server]" \
 && pip uninstall --yes tood
COPY tood tood
COPY pipeline pipeline
COPY experiments experiments
RUN pip install --no-deps --no-build-isolation .

FROM python:3.11.14-slim-bookworm
# KubeRay's probes of a Ray node call wget, `ray up` copies by rsync; train.compile builds C++, for a GPU a little C. Debian keeps
# one version of each at a time.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ rsync wget \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --create-home tood
COPY --from=build /opt/tood /opt/tood
ENV PATH=/opt/tood/bin:$PATH PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
WORKDIR /home/tood
CMD ["tood", "doctor"]

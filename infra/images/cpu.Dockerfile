# Ray nodes, nightly client and MLflow server, without GPU. Built from the project's root:
#   docker build --build-arg TORCH_INDEX=... --file infra/images/cpu.Dockerfile --tag registry.example/tood-cpu:0.1.0-ray2.60.0 .
FROM python:3.11.14-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
RUN python -m venv /opt/tood
ENV PATH=/opt/tood/bin:$PATH
COPY requirements.lock ./
# The registry's torch brings CUDA; that without has an index of its own (PyTorch's "Get started" page names it), where 2.15.0
# is called 2.15.0+cpu.
ARG TORCH_INDEX
RUN pip install --constraint requirements.lock setuptools \
 && pip install --constraint requirements.lock \
      --extra-index-url "${TORCH_INDEX:?give --build-arg TORCH_INDEX=, the index of torch for CPUs}" torch==2.15.0+cpu torchvision==0.29.2+cpu
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
USER 1000:1000
WORKDIR /home/tood
CMD ["tood", "doctor"]

# glioma-dist for GPUs and CPUs. In a clone: `docker build --tag glioma-dist .` (docs/guides/docker.md).
# PyTorch brings CUDA: the host needs only the driver and the NVIDIA Container Toolkit.
# BASE: an image with Python 3.11 or newer and its venv.
ARG BASE=python:3.11-slim-bookworm
# hadolint ignore=DL3006
FROM ${BASE}

# Extras of pyproject.toml, with commas: cloud reads and writes buckets.
ARG EXTRAS=cloud

RUN useradd --uid 10001 --create-home glioma \
    && mkdir /data \
    && chown 10001 /data \
    && python3 -m venv /opt/glioma-dist
ENV PATH=/opt/glioma-dist/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The libraries first: a change of the code leaves their layer, of 6 GB, as it is.
COPY pyproject.toml constraints.txt /opt/src/
RUN python3 -c 'import sys, tomllib; project = tomllib.load(open("/opt/src/pyproject.toml", "rb"))["project"]; \
    extras = [each for name in sys.argv[1].split(",") if name for each in project["optional-dependencies"][name]]; \
    print("\n".join(project["dependencies"] + extras))' "${EXTRAS}" > /opt/src/requirements.txt \
    && pip install --no-cache-dir --constraint /opt/src/constraints.txt --requirement /opt/src/requirements.txt

COPY README.md LICENSE /opt/src/
COPY glioma_dist /opt/src/glioma_dist
RUN pip install --no-cache-dir --no-deps /opt/src

USER 10001
WORKDIR /data
# No HEALTHCHECK: a training is no service. It ends by itself where it cannot continue, and its exit code says why.
ENTRYPOINT ["glioma-dist"]

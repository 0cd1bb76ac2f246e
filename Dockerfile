# The operator's image. Builds with Docker, BuildKit and buildah, and needs no feature of one of them.
#
#   docker build --build-arg VERSION=0.1.0 --build-arg REVISION="$(git rev-parse HEAD)" --tag imagegate:0.1.0 .
#
# BASE_IMAGE: any image with `python3` 3.11 or newer and its venv module (Debian: python3-venv). Both stages use it, because
# a virtual environment names its interpreter by path. Behind a TLS-inspecting proxy, put the CA bundle and PIP_CERT there.
# A tag may be moved, so build releases with the digest of a base that you have checked (docs/security.md, Digests of images):
#
#   --build-arg BASE_IMAGE=python:3.11-slim-bookworm@sha256:…
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
# pip stays in an environment of its own: the operator's has none.
RUN python3 -m venv /opt/build && python3 -m venv --without-pip /opt/imagegate
WORKDIR /src
# The dependencies are a layer of their own, which a change of the source leaves as it is. Bytecode is compiled here, for
# good (unchecked-hash: no look at the source's time stamp): at run time the file system is read-only.
COPY requirements/runtime.txt requirements/
RUN /opt/build/bin/pip --python=/opt/imagegate/bin/python install --no-compile \
        --require-hashes --only-binary=:all: --requirement=requirements/runtime.txt \
    && /opt/imagegate/bin/python -m compileall -q --invalidation-mode=unchecked-hash /opt/imagegate/lib
# What makes the wheel is locked, too: build isolation would fetch the newest of everything that hatchling needs, unseen.
COPY requirements/build.txt requirements/
RUN /opt/build/bin/pip install --require-hashes --only-binary=:all: --requirement=requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY operator/ operator/
RUN /opt/build/bin/pip wheel --no-build-isolation --no-deps --no-index --wheel-dir=/wheel . \
    && /opt/build/bin/pip --python=/opt/imagegate/bin/python install --no-compile --no-deps --no-index /wheel/*.whl \
    && /opt/imagegate/bin/python -m compileall -q --invalidation-mode=unchecked-hash /opt/imagegate/lib/python3*/site-packages/imagegate

FROM ${BASE_IMAGE}
# HOME: `import kubernetes.aio` asks for it, and fails where the user has no entry in /etc/passwd.
ENV HOME=/ \
    PATH=/opt/imagegate/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONFAULTHANDLER=1 \
    PYTHONDONTWRITEBYTECODE=1
COPY --from=build /opt/imagegate /opt/imagegate
ARG VERSION=dev
ARG REVISION=unknown
ARG BASE_IMAGE
LABEL org.opencontainers.image.title="imagegate" \
      org.opencontainers.image.description="Kubernetes operator that pulls images onto nodes before pods land there" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/imagegate/imagegate" \
      org.opencontainers.image.base.name="${BASE_IMAGE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# By number: the kubelet can only prove runAsNonRoot of a numeric user.
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/opt/imagegate/bin/imagegate"]
CMD ["run"]

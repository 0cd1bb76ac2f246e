# The operator's image. It builds with Docker, BuildKit and buildah, and uses no feature that only one of them has.
#
#   docker build --build-arg VERSION=0.1.0 --build-arg REVISION="$(git rev-parse HEAD)" --tag imagegate:0.1.0 .
#
# BASE_IMAGE: any image with `python3` 3.11 or newer and its venv module (Debian: python3-venv). Both stages use it, because
# a virtual environment contains the path of its interpreter. If a proxy inspects TLS, use a base image that contains the
# proxy's CA certificates and sets PIP_CERT. The default has a digest, because a tag may move. Renew the digest for security
# updates (docs/security.md, Digests of images):
#
#   --build-arg BASE_IMAGE=python:3.11-slim-bookworm@sha256:…
ARG BASE_IMAGE=python:3.11-slim-bookworm@sha256:0bee7276f83efd4a1ee05bbbf4281d95ed28e079220a9457f25a93e3f1e3c31b

FROM ${BASE_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
# pip is in a separate environment, so that the operator's environment does not contain pip.
RUN python3 -m venv /opt/build && python3 -m venv --without-pip /opt/imagegate
WORKDIR /src
# The dependencies are a separate layer, so that a change of the source does not rebuild them. Bytecode is compiled here,
# because the file system is read-only at run time (unchecked-hash: Python does not compare it with the source).
COPY requirements/runtime.txt requirements/
RUN /opt/build/bin/pip --python=/opt/imagegate/bin/python install --no-compile \
        --require-hashes --only-binary=:all: --requirement=requirements/runtime.txt \
    && /opt/imagegate/bin/python -m compileall -q --invalidation-mode=unchecked-hash /opt/imagegate/lib
# The build dependencies are locked, too. Build isolation would fetch the newest versions of hatchling's dependencies.
COPY requirements/build.txt requirements/
RUN /opt/build/bin/pip install --require-hashes --only-binary=:all: --requirement=requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY operator/ operator/
RUN /opt/build/bin/pip wheel --no-build-isolation --no-deps --no-index --wheel-dir=/wheel . \
    && /opt/build/bin/pip --python=/opt/imagegate/bin/python install --no-compile --no-deps --no-index /wheel/*.whl \
    && /opt/imagegate/bin/python -m compileall -q --invalidation-mode=unchecked-hash /opt/imagegate/lib/python3*/site-packages/imagegate

FROM ${BASE_IMAGE}
# HOME is set, because `import kubernetes.aio` needs it and fails if the user has no entry in /etc/passwd.
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
# A number, because the kubelet can verify runAsNonRoot only for a numeric user.
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/opt/imagegate/bin/imagegate"]
CMD ["run"]

# One small image a service: `docker build --target gateway|engine|engine-gpu|auth|toolparser|setup .`
#
# Each target installs its own lock of requirements/ (hashes are checked) and its own packages.
# Nothing here needs BuildKit, and any image with Python 3.11 or newer and its venv module is a base.
ARG PYTHON_IMAGE=python:3.12-slim

# ---- what the final images have in common ---------------------------------------------------------
FROM ${PYTHON_IMAGE} AS runtime
# The folders of the volumes belong to the user, since a fresh volume takes its owner from here.
RUN groupadd --gid 10001 penstock \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/penstock --shell /usr/sbin/nologin penstock \
 && mkdir -p /var/lib/penstock /var/cache/penstock /models /admin /metrics-key \
      /keys/gateway /keys/engine /keys/auth /keys/toolparser \
 && chown -R penstock:penstock /var/lib/penstock /var/cache/penstock /models /admin /metrics-key /keys \
 && chmod -R 0700 /var/lib/penstock /admin /keys
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PENSTOCK_LOG_FORMAT=json
# Workers keep it while a gateway gives them work; their health check looks at it.
ENV PENSTOCK_READY_FILE=/tmp/penstock-ready
USER 10001:10001
WORKDIR /var/lib/penstock

# ---- what installs ---------------------------------------------------------------------------------
# /opt/venv goes into the image and has no pip of its own; /opt/build has pip and what builds wheels.
FROM ${PYTHON_IMAGE} AS builder
ENV PIP_NO_CACHE_DIR=1 \
    PIP_QUIET=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY requirements/build.txt requirements/
RUN python3 -m venv --without-pip /opt/venv \
 && python3 -m venv /opt/build \
 && /opt/build/bin/pip install --require-hashes -r requirements/build.txt

# ---- toolparser ------------------------------------------------------------------------------------
FROM builder AS toolparser-build
COPY requirements/toolparser.txt requirements/
RUN /opt/build/bin/pip --python /opt/venv/bin/python install --require-hashes -r requirements/toolparser.txt
COPY pyproject.toml README.md LICENSE ./
COPY protocol protocol
COPY toolparser_worker toolparser_worker
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /opt/build/bin/pip --python /opt/venv/bin/python install --no-deps /wheels/*.whl \
 && rm /opt/venv/bin/penstock

FROM runtime AS toolparser
COPY --from=toolparser-build /opt/venv /opt/venv
ENV PENSTOCK_TOOLPARSER_ENDPOINT=tcp://gateway:5553 PENSTOCK_KEY_DIR=/keys/toolparser
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s --retries=3 \
  CMD ["python", "-m", "protocol", "ready"]
CMD ["python", "-m", "toolparser_worker"]

# ---- auth ------------------------------------------------------------------------------------------
FROM builder AS auth-build
COPY requirements/auth.txt requirements/
RUN /opt/build/bin/pip --python /opt/venv/bin/python install --require-hashes -r requirements/auth.txt
COPY pyproject.toml README.md LICENSE ./
COPY protocol protocol
COPY auth_worker auth_worker
COPY penstock penstock
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /opt/build/bin/pip --python /opt/venv/bin/python install --no-deps /wheels/*.whl

FROM runtime AS auth
COPY --from=auth-build /opt/venv /opt/venv
ENV PENSTOCK_AUTH_ENDPOINT=tcp://gateway:5552 \
    PENSTOCK_KEY_DIR=/keys/auth \
    PENSTOCK_DATA_DIR=/var/lib/penstock \
    PENSTOCK_URL=http://gateway:8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s --retries=3 \
  CMD ["python", "-m", "protocol", "ready"]
CMD ["python", "-m", "auth_worker"]

# ---- gateway -------------------------------------------------------------------------------------------
FROM builder AS gateway-build
COPY requirements/gateway.txt requirements/
RUN /opt/build/bin/pip --python /opt/venv/bin/python install --require-hashes -r requirements/gateway.txt
COPY pyproject.toml README.md LICENSE ./
COPY protocol protocol
COPY gateway gateway
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /opt/build/bin/pip --python /opt/venv/bin/python install --no-deps /wheels/*.whl \
 && rm /opt/venv/bin/penstock

FROM runtime AS gateway
COPY --from=gateway-build /opt/venv /opt/venv
ENV PENSTOCK_ENGINE_ENDPOINT=tcp://*:5551 \
    PENSTOCK_AUTH_ENDPOINT=tcp://*:5552 \
    PENSTOCK_TOOLPARSER_ENDPOINT=tcp://*:5553 \
    PENSTOCK_KEY_DIR=/keys/gateway \
    PENSTOCK_DATA_DIR=/var/lib/penstock \
    PENSTOCK_HOST=0.0.0.0 \
    PENSTOCK_PORT=8000
EXPOSE 8000
# Alive, not ready: whoever restarts what is unhealthy must not end streams because an engine is away.
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/live', timeout=5)"]
CMD ["python", "-m", "gateway"]

# ---- setup: one-shots that make keys and fetch weights ------------------------------------------------
FROM builder AS setup-build
COPY requirements/setup.txt requirements/
RUN /opt/build/bin/pip --python /opt/venv/bin/python install --require-hashes -r requirements/setup.txt
COPY pyproject.toml README.md LICENSE ./
COPY protocol protocol
COPY penstock penstock
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /opt/build/bin/pip --python /opt/venv/bin/python install --no-deps /wheels/*.whl

FROM runtime AS setup
COPY --from=setup-build /opt/venv /opt/venv
CMD ["penstock", "keygen", "/keys", "--by-role", "--admin-key", "/admin/admin.key"]

# ---- engine on CPUs ----------------------------------------------------------------------------------
FROM builder AS engine-build
COPY requirements/engine-cpu.txt requirements/
RUN /opt/build/bin/pip --python /opt/venv/bin/python install --require-hashes -r requirements/engine-cpu.txt
# The compiler of the native CPU kernels stays in this stage; without one the engine is slower.
RUN command -v g++ >/dev/null \
 || (apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*) \
 || echo "no C++ compiler: this image has no native kernels and computes with XLA alone"
COPY pyproject.toml setup.py README.md LICENSE ./
COPY protocol protocol
COPY engine_worker engine_worker
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /opt/build/bin/pip --python /opt/venv/bin/python install --no-deps /wheels/*.whl \
 && rm /opt/venv/bin/penstock

FROM runtime AS engine
COPY --from=engine-build /opt/venv /opt/venv
ENV PENSTOCK_ENGINE_ENDPOINT=tcp://gateway:5551 \
    PENSTOCK_KEY_DIR=/keys/engine \
    PENSTOCK_COMPILE_CACHE_DIR=/var/cache/penstock \
    PENSTOCK_WEIGHTS_CACHE_DIR=/var/cache/penstock/weights \
    JAX_PLATFORMS=cpu
# A model that is named by a relative path is looked for where `penstock fetch` puts it.
WORKDIR /models
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s --retries=3 \
  CMD ["python", "-m", "protocol", "ready"]
CMD ["python", "-m", "engine_worker"]

# ---- engine on NVIDIA GPUs: jax's wheels bring CUDA, the host brings the driver ----------------------
FROM builder AS engine-gpu-build
COPY requirements/engine-cuda.txt requirements/
RUN python3 -c 'import sys; sys.exit("engine-gpu needs a base image with Python 3.12 or newer" if sys.version_info < (3, 12) else 0)' \
 && /opt/build/bin/pip --python /opt/venv/bin/python install --require-hashes -r requirements/engine-cuda.txt
COPY pyproject.toml README.md LICENSE ./
COPY protocol protocol
COPY engine_worker engine_worker
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /opt/build/bin/pip --python /opt/venv/bin/python install --no-deps /wheels/*.whl \
 && rm /opt/venv/bin/penstock

FROM runtime AS engine-gpu
COPY --from=engine-gpu-build /opt/venv /opt/venv
ENV PENSTOCK_ENGINE_ENDPOINT=tcp://gateway:5551 \
    PENSTOCK_KEY_DIR=/keys/engine \
    PENSTOCK_COMPILE_CACHE_DIR=/var/cache/penstock \
    PENSTOCK_WEIGHTS_CACHE_DIR=/var/cache/penstock/weights \
    JAX_PLATFORMS=cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /models
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s --retries=3 \
  CMD ["python", "-m", "protocol", "ready"]
CMD ["python", "-m", "engine_worker"]

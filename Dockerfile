# The gateway in an image: docker build -t sgl-model-gateway:0.4.0 .
#   docker run --read-only -p 30000:30000 sgl-model-gateway:0.4.0 --host 0.0.0.0 --worker-urls http://gpu-1:30000
# Both stages are of one Debian release, so the wheel finds the C library that it was linked with.

FROM rust:1.95.0-slim-bookworm AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /venv \
    && /venv/bin/pip install --no-cache-dir 'maturin>=1.9,<2'
WORKDIR /src
COPY . .
RUN /venv/bin/maturin build --release --locked --compatibility linux --out /wheels

FROM python:3.13-slim-bookworm
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --no-compile /wheels/*.whl \
    && rm -r /wheels \
    && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin gateway
# The root file system may be read-only: nothing is written, bytecode included.
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PORT=30000
WORKDIR /
# A number, so that Kubernetes can see that it is not root.
USER 10001:10001
# Requests; metrics.
EXPOSE 30000 29000
# The first SIGTERM drains.
STOPSIGNAL SIGTERM
# Set PORT when --port is not 30000.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['PORT'] + '/liveness', timeout=2)"]
ENTRYPOINT ["sgl-model-gateway", "launch"]
CMD ["--host", "0.0.0.0", "--port", "30000"]

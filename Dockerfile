# The gateway in an image, from the wheel that is published: docker build -t sgl-model-gateway:0.4.0 .
#   docker run --read-only -p 30000:30000 sgl-model-gateway:0.4.0 --host 0.0.0.0 --worker-urls http://gpu-1:30000
# The image has Python, the gateway and what both need of Debian 12: no shell, no package manager.

FROM rust:1.95.0-slim-bookworm AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates make python3 python3-venv
# Scanners read which packages there are from status.d.
RUN mkdir -p /packages /image/var/lib/dpkg/status.d /image/etc/ssl/certs /image/usr/bin \
    && cd /packages \
    && apt-get download base-files ca-certificates libbz2-1.0 libc6 libcrypt1 libexpat1 libffi8 libgcc-s1 liblzma5 \
        libpython3.11-minimal libpython3.11-stdlib libssl3 libuuid1 media-types netbase python3.11-minimal tzdata zlib1g \
    && for package in *.deb; do \
        dpkg-deb --extract "$package" /image \
        && dpkg-deb --field "$package" > "/image/var/lib/dpkg/status.d/${package%%_*}" || exit 1; \
    done \
    && rm -r /image/usr/share/man \
    && ln -s python3.11 /image/usr/bin/python3 \
    && cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ \
    && echo 'gateway:x:10001:10001::/:/usr/sbin/nologin' > /image/etc/passwd \
    && echo 'gateway:x:10001:' > /image/etc/group
WORKDIR /src
COPY . .
# An environment for Debian's Python, at the place that it has in the image, without pip.
RUN make wheel \
    && python3 -m venv --without-pip /opt/gateway \
    && build/wheel/bin/pip --python /opt/gateway/bin/python install --no-cache-dir --no-compile dist/*.whl \
    && mkdir -p /image/opt \
    && mv /opt/gateway /image/opt/

FROM scratch
COPY --from=build /image /
# The root file system may be read-only: nothing is written, bytecode included.
ENV PATH=/opt/gateway/bin:/usr/bin PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 LANG=C.UTF-8 PORT=30000
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
# One process, which is the gateway and has the process id 1.
ENTRYPOINT ["sgl-model-gateway", "launch"]
CMD ["--host", "0.0.0.0", "--port", "30000"]

# One image for every part of agentserve; the command says which part it plays.
# BUILD_IMAGE may be one that knows your own package index; nothing of it but what pip installed reaches the image.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm
ARG BUILD_IMAGE=${PYTHON_IMAGE}

FROM ${BUILD_IMAGE} AS packages
WORKDIR /src
ENV PATH=/opt/agentserve/bin:$PATH
COPY requirements/image.txt requirements/image.txt
RUN python -m venv --without-pip /opt/agentserve \
 && pip --python /opt/agentserve/bin/python install --no-cache-dir --no-compile --only-binary :all: --require-hashes -r requirements/image.txt
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY agentserve agentserve
COPY scheduler scheduler
COPY workflows workflows
RUN pip --python /opt/agentserve/bin/python install --no-cache-dir --no-compile --no-deps . \
 && cd /opt/agentserve/lib/python3.*/site-packages \
 && find . -type d -name tests -prune -exec rm -rf {} + \
 && find . -name '*.py[ix]' -delete -o -name '*.pxd' -delete -o -name '*.[ach]' -delete -o -name '*_tests.*.so' -delete \
 && rm -rf zstandard/_cffi.*.so numpy/f2py numpy/_core/_simd.*.so
# Bytecode of what is really imported, no more: the root is read-only later, and all of it would be 50 MB.
RUN python -c 'import agentserve.cli, agentserve.cli.doctor, agentserve.doctor.examination, agentserve.gateway.serve, agentserve.emulator.server, agentserve.workers.agent, agentserve.sdk.served, workflows.catalog.load, uvicorn.protocols.http.httptools_impl, opentelemetry.exporter.otlp.proto.http.trace_exporter'

# The runtime without what only builds and installs: no package manager, no perl, no pip, no set-uid programs.
FROM ${PYTHON_IMAGE} AS runtime
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin agentserve
RUN find / -xdev -perm /6000 -type f -exec chmod a-s {} + \
 && python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))' > /tmp/stdlib \
 && cd "$(cat /tmp/stdlib)" && rm -rf ensurepip idlelib lib2to3 pydoc_data tkinter turtledemo test config-* site-packages \
 && rm -rf /usr/local/bin/pip* /usr/local/bin/idle* /usr/local/bin/2to3* /usr/local/include /usr/local/lib/pkgconfig \
      /usr/lib/python3/dist-packages /usr/include /usr/share/perl* /usr/lib/*-linux-gnu/perl* /usr/bin/perl* \
      /usr/bin/apt* /usr/lib/apt /usr/bin/dpkg* /usr/share/dpkg /usr/sbin/dpkg* /var/lib/apt /var/lib/dpkg/info /var/cache/* /var/log/* \
      /usr/lib/*-linux-gnu/libapt* /usr/lib/*-linux-gnu/gconv /usr/sbin/*fdisk /usr/sbin/mk* /usr/sbin/*fs /usr/share/doc /usr/share/man /usr/share/locale /usr/share/info \
      /usr/share/python-wheels /usr/share/bash-completion /usr/lib/valgrind /usr/lib/udev /usr/lib/systemd \
      /root/.cache /tmp/*

FROM scratch
COPY --from=runtime / /
COPY --from=packages /opt/agentserve /opt/agentserve
ENV PATH=/opt/agentserve/bin:/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["agentserve"]

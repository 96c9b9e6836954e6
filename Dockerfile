# One image for every part of agentserve; the command says which part it plays.
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY requirements/run.txt requirements/run.txt
RUN python -m venv /opt/agentserve && /opt/agentserve/bin/pip install --no-cache-dir --require-hashes -r requirements/run.txt
COPY pyproject.toml README.md LICENSE NOTICE CHANGELOG.md ./
COPY agentserve agentserve
COPY scheduler scheduler
COPY workflows workflows
RUN /opt/agentserve/bin/pip install --no-cache-dir --no-deps .

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --no-create-home agentserve
COPY --from=build /opt/agentserve /opt/agentserve
ENV PATH=/opt/agentserve/bin:$PATH PYTHONUNBUFFERED=1
USER agentserve
ENTRYPOINT ["agentserve"]

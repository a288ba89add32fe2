# irqchipd, and the programs of its demo.
ARG BASE_IMAGE=python:3.12-slim

# The project's wheel, in an environment of its own. The build tools and pip stay in this stage.
FROM ${BASE_IMAGE} AS build
WORKDIR /src
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY proto proto
COPY server server
COPY client client
RUN python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && python3 -m venv --without-pip /opt/irqchipd \
    && python3 -m pip --python /opt/irqchipd install --no-cache-dir "$(echo /wheels/*.whl)[unicorn]"

FROM ${BASE_IMAGE}
COPY --from=build /opt/irqchipd /opt/irqchipd
WORKDIR /app
COPY LICENSE ./
COPY examples examples
# New volumes take their owner from these folders.
RUN mkdir -p /run/irqchip /run/serial /run/keyboard /run/disk /run/metrics \
    && chown 10001:10001 /run/irqchip /run/serial /run/keyboard /run/disk /run/metrics
USER 10001:10001
ENV PATH=/opt/irqchipd/bin:$PATH PYTHONUNBUFFERED=1 IRQCHIP_TARGET=unix:///run/irqchip/irqchipd.sock
CMD ["irqchipd", "--listen", "unix:///run/irqchip/irqchipd.sock"]

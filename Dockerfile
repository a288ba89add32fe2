# irqchipd, and the processes of its demo.
ARG BASE_IMAGE=python:3.12-slim
FROM ${BASE_IMAGE}

WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY proto proto
COPY server server
COPY client client
RUN python3 -m venv /opt/irqchipd && /opt/irqchipd/bin/pip install --no-cache-dir .
ENV PATH=/opt/irqchipd/bin:$PATH
COPY examples examples

# The volume of the sockets takes its owner from here.
RUN mkdir -p /run/irqchip && chown 10001:10001 /run/irqchip
USER 10001:10001
ENV PYTHONUNBUFFERED=1 IRQCHIP_TARGET=unix:///run/irqchip/irqchipd.sock
CMD ["irqchipd", "--listen", "unix:///run/irqchip/irqchipd.sock"]

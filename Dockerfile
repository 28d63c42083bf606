# Build: docker build -t hyimage .
# Run:   docker run -p 127.0.0.1:8000:8000 -v hyimage:/data -e HYIMAGE_API_KEYS=KEY --stop-timeout 60 hyimage
FROM python:3.11-slim

ENV PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1

# For example --build-arg EXTRAS=ray,postgres,s3; none for one machine.
ARG EXTRAS=""

WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY cli cli
COPY tools tools
COPY server server
COPY pipeline pipeline
COPY model model
COPY schedulers schedulers
COPY cache cache
COPY training training
COPY configs configs
COPY checkpoints checkpoints
# Triton compiles its kernels' launchers with a C compiler, at run time and on CUDA only.
RUN apt-get update -q && apt-get install -qy --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir -c constraints.txt torch \
    && pip install --no-cache-dir -c constraints.txt ".${EXTRAS:+[$EXTRAS]}" \
    && useradd --create-home hyimage \
    && install -d -o hyimage /data
USER hyimage

EXPOSE 8000
# Images, tasks and keys; they outlive the container in a named volume.
ENV HYIMAGE_SERVER__DATA_DIR=/data
VOLUME /data
# Whether the process lives: a large checkpoint loads for many minutes, and /ready is for gateways.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
# It listens on every address of the container, so it starts only with an API key, or with
# HYIMAGE_SERVER__ALLOW_UNAUTHENTICATED=true where whoever reaches the port may use it.
CMD ["hyimage", "serve", "--config", "configs/tiny.toml", "--host", "0.0.0.0"]

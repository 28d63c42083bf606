# Two images, by target; both serve as a user without rights, and only with an API key.
#   docker build --target cpu -t hyimage:cpu .       # the last one, and so the default
#   docker build --target cuda -t hyimage:cuda .
#   docker run --init -p 127.0.0.1:8000:8000 -v hyimage:/data -e HYIMAGE_API_KEYS=KEY \
#       --stop-timeout 60 hyimage:cpu
#   docker run --init --gpus all --ipc host -p 127.0.0.1:8000:8000 -v hyimage:/data \
#       -v /srv/models:/models:ro -e HYIMAGE_API_KEYS=KEY --stop-timeout 60 hyimage:cuda
FROM python:3.11-slim AS base

ENV PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1

WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
# A number, so that Kubernetes sees that it is not root.
RUN useradd --create-home --uid 10001 hyimage && install -d -o 10001 -g 10001 /data

EXPOSE 8000
# Images, tasks and keys; they outlive the container in a named volume.
ENV HYIMAGE_SERVER__DATA_DIR=/data
VOLUME /data
# Whether the process lives: a large checkpoint loads for many minutes, and /ready is for gateways.
HEALTHCHECK --interval=10s --timeout=3s --start-period=300s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=2)"]


FROM base AS cuda
# Triton compiles its kernels' launchers with a C compiler, at run time.
RUN apt-get update -q && apt-get install -qy --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
# The wheels of torch that PyPI has for Linux on x86-64 hold CUDA; the driver is the host's.
RUN pip install --no-cache-dir -c constraints.txt torch
# Replicas of Ray Serve need ray too: --build-arg EXTRAS=ray,postgres,s3.
ARG EXTRAS="postgres,s3"
COPY . .
RUN pip install --no-cache-dir -c constraints.txt ".${EXTRAS:+[$EXTRAS]}"
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
# It reads /models/HunyuanImage-3; HYIMAGE_WORKER__CHECKPOINT or another --config changes that.
CMD ["hyimage", "serve", "--config", "configs/hunyuan_image_3.toml", "--host", "0.0.0.0"]


FROM base AS cpu
# The index of PyTorch's CPU builds, which its installation page names, makes the image 5 GB
# smaller on x86-64: --build-arg TORCH_INDEX_URL=...
ARG TORCH_INDEX_URL=""
RUN pip install --no-cache-dir -c constraints.txt \
    ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch
ARG EXTRAS="postgres,s3"
COPY . .
RUN pip install --no-cache-dir -c constraints.txt ".${EXTRAS:+[$EXTRAS]}"
USER 10001
# It listens on every address of the container, so it starts only with an API key, or with
# HYIMAGE_SERVER__ALLOW_UNAUTHENTICATED=true where whoever reaches the port may use it.
CMD ["hyimage", "serve", "--config", "configs/tiny.toml", "--host", "0.0.0.0"]

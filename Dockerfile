# Serves a run, a bundle or an exported network, as an ordinary user. In the project's folder:
#   docker build -t mltr .
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/runs/mine:/bundle:ro" mltr
# With an NVIDIA GPU:
#   docker build -t mltr:gpu --build-arg DEVICE=gpu .
#   docker run --rm --gpus all -p 127.0.0.1:8000:8000 -v "$PWD/runs/mine:/bundle:ro" mltr:gpu

FROM python:3.12-slim AS build
ARG DEVICE=cpu
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
COPY recipes recipes
RUN python -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --constraint constraints.txt '.[serve,onnx]'
RUN test "$DEVICE" != gpu \
    || { /venv/bin/pip uninstall --yes onnxruntime \
    && /venv/bin/pip install --no-cache-dir 'onnxruntime-gpu[cuda,cudnn]>=1.22'; }

FROM python:3.12-slim
RUN useradd --create-home --uid 10001 mltr
COPY --from=build /venv /venv
USER 10001
WORKDIR /home/mltr
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=2m \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["mltr", "serve"]
CMD ["/bundle", "--host", "0.0.0.0"]

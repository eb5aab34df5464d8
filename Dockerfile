# The image behind both Cloud Run services and the backfill job.
#
#   docker build -t segment .                                            with the embedded demo model
#   docker build -t segment --build-arg MODEL=mask_rcnn_R_50_FPN_3x .    with a model of the zoo (segment models), or the
#                                                                        URL of a checkpoint that has config.yaml beside it
#   docker build -t segment --build-arg MODEL=mine.onnx .                with a converted model from this folder
#   ... --build-arg INT8=1                                               the same in int8, calibrated on public photographs
#   ... --build-arg CALIBRATE=photos                                     in int8, calibrated on photos/ in this folder
#   ... --build-arg SEGMENT_ZOO_URL=https://...                          from a mirror of the zoo
#   ... --build-arg PARQUET=1                                            with pyarrow, for Parquet datasets of the backfill job
#   docker build -t segment:detectron2 --target detectron2 .             detectron2 itself, for models that cannot be converted
#   docker build -t segment:beam --target beam .                         workers of an Apache Beam pipeline (Dataflow)
#
# All contents are pinned: the base by its version, packages by constraints.txt, weights by the zoo's checksums. For an
# identical image on every build, also fix the timestamps: docker buildx build --build-arg SOURCE_DATE_EPOCH=0 with
# --output type=image,rewrite-timestamp=true, or buildah build --timestamp 0.

#checkov:skip=CKV_DOCKER_7:the base has a version, it is the default of BASE
ARG BASE=docker.io/library/python:3.11.14-slim-bookworm
#checkov:skip=CKV_DOCKER_7:it has a version, the same as in requirements-beam.txt
ARG BEAM=docker.io/apache/beam_python3.11_sdk:2.77.0


# All stages: environment variables of Python and pip.
FROM ${BASE} AS base
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_NO_COMPILE=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PATH=/venv/bin:$PATH


# The packages that serving needs.
FROM base AS packages
ARG PARQUET=""
WORKDIR /build
COPY requirements.txt requirements-parquet.txt constraints.txt ./
RUN python -m venv --without-pip /venv && \
    pip --python /venv/bin/python install -r requirements.txt ${PARQUET:+-r requirements-parquet.txt} -c constraints.txt


# The same without files that are never used: OpenVINO's plugins for other devices, its readers for models of other frameworks
# and its converter; NumPy's tests. All modules are compiled to bytecode, because a container with a read-only file system cannot
# cache it. The bytecode is validated by content, not by time, so that the files are the same in every build.
FROM packages AS serving-packages
RUN cd /venv/lib/python3*/site-packages && \
    cd openvino/libs && \
    rm -f cache.json \
          libopenvino_intel_gpu_plugin.so* libopenvino_intel_npu*.so* \
          libopenvino_auto_plugin.so* libopenvino_auto_batch_plugin.so* libopenvino_hetero_plugin.so* \
          libopenvino_tensorflow*_frontend.so* libopenvino_pytorch_frontend.so* libopenvino_paddle_frontend.so* \
          libopenvino_jax_frontend.so* libopenvino_gguf_frontend.so* libopenvino_c.so* && \
    cd .. && \
    rm -rf tools torch frontend/pytorch frontend/tensorflow frontend/paddle frontend/jax && \
    cd .. && \
    find numpy -type d -name tests -prune -exec rm -rf {} + && \
    rm -rf numpy/_core/include numpy/f2py && \
    python -m compileall -q --invalidation-mode unchecked-hash .


# The model. It is part of the image, so that an instance downloads nothing when it starts.
FROM packages AS model
ARG MODEL=""
ARG INT8=""
ARG CALIBRATE=""
ARG SEGMENT_ZOO_URL=""
COPY . .
RUN mkdir /model && \
    case "$MODEL" in \
      "") ;; \
      *.onnx) cp "$MODEL" /model/model.onnx ;; \
      *) pip --python /venv/bin/python install -r requirements-convert.txt && \
         python -m segment fetch "$MODEL" --output /model/model.onnx \
             ${INT8:+--int8} ${CALIBRATE:+--int8 --calibrate "$CALIBRATE"} ;; \
    esac


# The code and its environment.
#   THREADS=8            more threads than the memory allows requests, so that these wait for memory and not for a thread;
#                        Terraform sets it according to the concurrency
#   MALLOC_*             glibc keeps few arenas and returns large blocks immediately; otherwise, memory of a large photo would
#                        never be returned
#   OPENBLAS_NUM_THREADS NumPy only multiplies small matrices, and each thread of a pool takes memory
#   HOME                 a folder that exists, for libraries that need one
FROM base AS app
WORKDIR /app
ENV PORT=8080 \
    THREADS=8 \
    FUNCTION_TARGET=segment_http \
    MALLOC_ARENA_MAX=2 \
    MALLOC_TRIM_THRESHOLD_=131072 \
    MALLOC_MMAP_THRESHOLD_=131072 \
    OPENBLAS_NUM_THREADS=1 \
    HOME=/tmp
COPY main.py ./
COPY segment ./segment
RUN python -m compileall -q --invalidation-mode unchecked-hash main.py segment
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/health', timeout=8)"]
CMD ["python", "-m", "segment", "serve"]


# For detectron2 models that cannot be converted (docker build --target detectron2). Mount the model or copy it into the image;
# an instance needs 2 GiB. detectron2 has no wheels: it is compiled against the installed PyTorch.
FROM base AS detectron2-packages
ARG DETECTRON2=02b5c4e295e990042a714712c21dc79b731e8833
WORKDIR /build
RUN apt-get update && \
    apt-get install --yes --no-install-recommends g++ git && \
    rm -rf /var/lib/apt/lists/*
COPY requirements.txt requirements-detectron2.txt constraints.txt ./
RUN python -m venv --without-pip /venv && \
    pip --python /venv/bin/python install -r requirements.txt -r requirements-detectron2.txt -c constraints.txt && \
    pip --python /venv/bin/python install --no-build-isolation --no-deps \
        git+https://github.com/facebookresearch/detectron2@${DETECTRON2} && \
    pip --python /venv/bin/python uninstall --yes ninja wheel

FROM app AS detectron2
COPY --from=detectron2-packages /venv /venv
ENV SEGMENT_ENGINE=detectron2
USER 10001


# For the workers of a Beam pipeline (docker build --target beam): the same code and model. apache-beam does not support some of
# the versions in requirements.txt, so this image has its own packages. Runners start a worker with /opt/apache/beam/boot, which
# is copied from Beam's image; RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT keeps it from creating another virtual environment. The image
# has no USER, because boot writes to folders that Dataflow mounts as root.
FROM ${BEAM} AS beam-sdk

FROM base AS beam-packages
WORKDIR /build
COPY requirements-beam.txt constraints-beam.txt ./
RUN python -m venv /venv && \
    pip --python /venv/bin/python install -r requirements-beam.txt -c constraints-beam.txt && \
    pip --python /venv/bin/python check

FROM app AS beam
ARG MODEL=""
COPY --from=beam-packages /venv /venv
COPY --from=beam-sdk /opt/apache/beam /opt/apache/beam
COPY --from=model /model ./model
ENV SEGMENT_MODEL=${MODEL:+/app/model/model.onnx} \
    SEGMENT_CACHE=/app/cache \
    PYTHONPATH=/app \
    RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1
RUN python -m segment warm && chmod -R a+rX cache
HEALTHCHECK NONE
ENTRYPOINT ["/opt/apache/beam/boot"]
CMD []


# The default target.
FROM app AS serving
ARG MODEL=""
COPY --from=serving-packages /venv /venv
COPY --from=model /model ./model
ENV SEGMENT_MODEL=${MODEL:+/app/model/model.onnx} \
    SEGMENT_CACHE=/app/cache
# Cache the model as compiled by OpenVINO, so that a start only reads it. It is compiled for the CPU of the build machine: on a
# CPU with other instructions, OpenVINO compiles it again in memory, and a start takes about a second longer.
RUN python -m segment warm && chmod -R a+rX cache
USER 10001

# openai-whisper on MAX for one kind of NVIDIA GPU; docs/cloud.md explains every choice and tells what of it has been run.
#
#   docker build -t whisper-max --build-arg MODELS="turbo" --build-arg TARGET=sm_90a .

# Plain Python and no CUDA image: MAX brings its compiler and needs the driver alone, which the NVIDIA Container Toolkit
# puts into the container when it starts.
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY constraints.txt constraints-common.txt ./
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_CONSTRAINT=/src/constraints.txt PIP_BUILD_CONSTRAINT=/src/constraints.txt
RUN python -m venv /venv
# torch's build for the CPU is enough, and gigabytes smaller; in a layer of its own, which changes of the sources leave
RUN /venv/bin/pip install --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu openai-whisper max av
COPY pyproject.toml README.md LICENSE ./
COPY whisper_max_plugin whisper_max_plugin
COPY site-packages site-packages
RUN /venv/bin/pip install --extra-index-url https://download.pytorch.org/whl/cpu .

FROM python:3.11-slim-bookworm
RUN useradd --create-home --uid 10001 whisper && install -d -o whisper -g whisper /models /audio
COPY --from=build /venv /venv
# upstream downloads models to $XDG_CACHE_HOME/whisper
ENV PATH=/venv/bin:$PATH \
    XDG_CACHE_HOME=/models \
    MODULAR_MAX_CACHE_DIR=/home/whisper/graphs \
    WHISPER_BACKEND=max \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER whisper
WORKDIR /audio
# Compiled without a GPU, so that no request waits for it. The compiler's own cache is not needed any more then.
ARG MODELS="turbo"
ARG TARGET=sm_90a
RUN whisper-max warmup $MODELS --target $TARGET \
    && whisper-max warmup $MODELS --target $TARGET --precision float32 \
    && rm -rf /home/whisper/.cache
VOLUME /models
ENTRYPOINT ["whisper"]
CMD ["--help"]

# nibblenet for the CPU. Not run yet: no test builds this image.
#
#   docker build --tag nibblenet .
#   docker run --rm --volume "$PWD/data:/data" nibblenet eval weights/alexnet-cifar10.safetensors --data /data
FROM debian:12-slim AS build
WORKDIR /nibblenet
COPY . .
RUN tools/dev packages && rm -rf build && \
    cmake --preset cpu -DNIBBLENET_TESTS=OFF -DNIBBLENET_WERROR=OFF && cmake --build --preset cpu --target tools/all && \
    mkdir programs && find build/cpu/tools -maxdepth 1 -type f -executable -exec mv {} programs/ \;

FROM debian:12-slim
RUN apt-get update -q && \
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
      ca-certificates gnuplot-nox libarchive13 libcurl4 libdnnl2 libfmt9 libgomp1 libjpeg62-turbo libopenblas0-openmp \
      libpng16-16 libssl3 libxxhash0 ocl-icd-libopencl1 zlib1g && \
    rm -rf /var/lib/apt/lists/*
WORKDIR /nibblenet
COPY --from=build /nibblenet/programs build/cpu/tools
COPY tools tools
COPY weights weights
ENV PATH=/nibblenet/tools:$PATH
ENTRYPOINT ["/bin/bash", "-c", "exec /nibblenet/tools/\"$0\" \"$@\""]
CMD ["eval", "--help"]

# hearth's image for those who have a Docker engine; hack/oci-image.sh builds the same content without one.
#   docker build -t hearth .
# Never built by the project's own tests: where they run there is neither an engine nor a registry for the base image. Proven there is what
# it calls: hack/parts.sh and hack/image-root.sh make the image that `make cluster-test` installs and upgrades.
FROM rust:1-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends \
    ca-certificates gcc git golang-go libc6-dev libprotobuf-dev nftables protobuf-compiler \
    && rustup target add x86_64-unknown-linux-musl && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# runsc of the version that go.sum pins, by the words of hack/setup.sh: Debian's Go is too old to fetch the Go that it needs by itself.
ENV HEARTH_CACHE=/cache
RUN bash -euo pipefail -c 'source hack/lib.sh; source hack/parts.sh; mkdir -p "$CACHE/bin"; golang; \
    runsc=$(pinned hack/tools/runsc/go.mod gvisor.dev/gvisor); \
    build runsc "$runsc" "-X gvisor.dev/gvisor/runsc/version.version=$runsc" "" runsc gvisor.dev/gvisor/runsc'
RUN hack/image-root.sh /image

FROM scratch
COPY --from=build /image /
ENV PATH=/usr/local/bin:/usr/sbin
LABEL org.opencontainers.image.title=hearth org.opencontainers.image.licenses=Apache-2.0
USER 0:0
ENTRYPOINT ["/usr/local/bin/hearthd"]

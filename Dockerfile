# hearth's image for those who have a Docker engine; hack/oci-image.sh builds the same content without one.
#   docker build -t hearth .
FROM rust:1-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends \
    ca-certificates gcc git golang-go libc6-dev libprotobuf-dev nftables protobuf-compiler \
    && rustup target add x86_64-unknown-linux-musl && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# runsc of the version that go.sum pins; Debian's Go fetches the Go that it needs.
RUN cd hack/tools/runsc && version=$(go list -m -f '{{.Version}}' gvisor.dev/gvisor) && mkdir -p /parts && \
    CGO_ENABLED=0 GOTOOLCHAIN=auto GOFLAGS=-mod=readonly go build -trimpath -o /parts/runsc \
    -ldflags "-s -w -X gvisor.dev/gvisor/runsc/version.version=$version" gvisor.dev/gvisor/runsc
RUN HEARTH_BIN_DIR=/parts hack/image-root.sh /image

FROM scratch
COPY --from=build /image /
ENV PATH=/usr/local/bin:/usr/sbin
LABEL org.opencontainers.image.title=hearth org.opencontainers.image.licenses=Apache-2.0
USER 0:0
ENTRYPOINT ["/usr/local/bin/hearthd"]

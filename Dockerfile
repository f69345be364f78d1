# SPDX-License-Identifier: Apache-2.0
# postern-gateway, postern-orchestrator and postern-sandbox: `make docker-build` builds each by its target.
# The images themselves begin from nothing. What builds them is pinned by the digest of its index, for all
# architectures; the tag tells readers what it is and is not looked at. The digest is the one that public
# records of builds name for this tag; it was not pulled, and Docker refuses bytes that are not its. Another
# builder: make docker-build RUST=docker.io/library/rust@sha256:…, as
# `docker buildx imagetools inspect docker.io/library/rust:TAG` tells it.
ARG RUST=docker.io/library/rust:1.95.0-bookworm@sha256:6258907abe69656e41cd992e0b705cdcfabcbbe3db374f92ed2d47121282d4a1

FROM ${RUST} AS build
RUN apt-get update \
  && apt-get install -y --no-install-recommends ca-certificates cmake musl-tools python3 \
  && rm -rf /var/lib/apt/lists/*
WORKDIR /postern
COPY . .
ENV CARGO_TARGET_DIR=/target
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/target \
  rustup target add "$(uname -m)-unknown-linux-musl" && scripts/images.sh programs && scripts/images.sh roots /roots

FROM scratch AS gateway
COPY --from=build /roots/gateway/ /
USER 65532:65532
EXPOSE 8081 9091
ENTRYPOINT ["/usr/bin/postern-gateway"]

FROM scratch AS orchestrator
COPY --from=build /roots/orchestrator/ /
USER 65532:65532
EXPOSE 8080 8082 8083 9090
ENTRYPOINT ["/usr/bin/postern-orchestrator"]

FROM scratch AS sandbox
COPY --from=build /roots/sandbox/ /
USER 1000:1000
ENTRYPOINT ["/usr/bin/postern-sandboxd"]

# syntax=docker/dockerfile:1
# walcast alone in an image: the binary, the C library and CA certificates, no shell, not root.
#
#   docker build -t walcast .
#   docker run -p 4000:4000 -e DATABASE_URL=… -e WALCAST_JWT_SECRET=… walcast

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --release --bin walcast && cp target/release/walcast /walcast

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /walcast /usr/local/bin/walcast
# Inside a container only its own network can reach the port, unless it is published.
ENV WALCAST_BIND=0.0.0.0:4000
EXPOSE 4000
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s CMD ["/usr/local/bin/walcast", "healthcheck"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/walcast"]
CMD ["serve"]

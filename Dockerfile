# syntax=docker/dockerfile:1
# walcast alone in an image: the binary, the C library and CA certificates, not root. There is no
# shell: /bin/sh and /usr/bin/curl are walcast again, which by those names knows one thing, the
# health check of Supabase's compose file, and asks nobody but this container.
#
#   docker build -t walcast .
#   docker run -p 4000:4000 -e DATABASE_URL=… -e WALCAST_JWT_SECRET=… walcast

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --release --bin walcast && cp target/release/walcast /walcast
# Links in directories of their own: COPY keeps a link only as part of a directory.
RUN mkdir /links-bin /links-usr-bin && \
    ln -s /usr/local/bin/walcast /links-bin/sh && \
    ln -s /usr/local/bin/walcast /links-usr-bin/curl

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /walcast /usr/local/bin/walcast
COPY --from=build /links-bin/ /bin/
COPY --from=build /links-usr-bin/ /usr/bin/
# Inside a container only its own network can reach the port, unless it is published. PORT is free
# to choose another than 4000.
ENV WALCAST_BIND=0.0.0.0
EXPOSE 4000
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s CMD ["/usr/local/bin/walcast", "healthcheck"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/walcast"]
CMD ["serve"]

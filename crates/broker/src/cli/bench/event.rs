//! Values as many services send them: JSON with ids, times, few and many distinct texts, and a line for people. What a
//! codec makes of random bytes says nothing about such records.

use std::sync::LazyLock;

use rand::Rng;
use rand::rngs::StdRng;

/// Some hour.
const FROM_MS: u64 = 1_790_000_000_000;
const SPAN_MS: u64 = 3_600_000;
const CUSTOMERS: u32 = 50_000;
const ARTICLES: u32 = 8_000;
const CENTS_MAX: u32 = 20_000;
const KINDS: [&str; 6] = ["viewed", "searched", "added", "removed", "ordered", "paid"];
const PLACES: [&str; 8] = [
    "Bergen", "Cork", "Gdansk", "Lisbon", "Lyon", "Riga", "Seville", "Vienna",
];
/// Words of the line; the first ones come more often.
static WORDS: LazyLock<Vec<&str>> = LazyLock::new(|| {
    "the and with for order after customer delivery article price was not from basket payment address search before \
     returned morning parcel invoice again without coupon delayed changed warehouse evening accepted declined colour \
     green small large paper glass copper window garden kitchen lamp chair table kettle blanket candle bicycle notebook \
     pencil jacket gloves boots ladder hammer carpet mirror drawer shelf bottle basin bucket barrel wooden woollen \
     leather silver narrow broken mended spare second third quarter monthly weekly yearly refund voucher question answer \
     telephone letter courier station harbour bridge market corner neighbour signature missing arrived opened closed"
        .split(' ')
        .collect()
});

/// Fills `value` with an event. One that is too small for all of it is cut.
pub(super) fn write(random: &mut StdRng, value: &mut [u8]) {
    let cents = random.random_range(100..CENTS_MAX);
    let mut event = format!(
        "{{\"id\":\"{:016x}\",\"at\":{},\"kind\":\"{}\",\"customer\":{},\"place\":\"{}\",\"article\":{},\
         \"price\":{}.{:02},\"text\":\"",
        random.random::<u64>(),
        FROM_MS + random.random_range(0..SPAN_MS),
        KINDS[random.random_range(0..KINDS.len())],
        random.random_range(0..CUSTOMERS),
        PLACES[random.random_range(0..PLACES.len())],
        random.random_range(0..ARTICLES),
        cents / 100,
        cents % 100,
    );
    let is_whole = event.len() + 2 <= value.len();
    while event.len() < value.len() {
        let last = random.random_range(0..WORDS.len());
        event.push_str(WORDS[random.random_range(0..=last)]);
        event.push(' ');
    }
    value.copy_from_slice(&event.as_bytes()[..value.len()]);
    if is_whole {
        let end = value.len() - 2;
        value[end..].copy_from_slice(b"\"}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn an_event_is_json_of_the_size_that_was_asked_for() {
        let mut random = StdRng::seed_from_u64(1);
        let mut value = vec![0; 1024];
        let mut ids = std::collections::BTreeSet::new();
        for _ in 0..100 {
            write(&mut random, &mut value);
            let event: serde_json::Value = serde_json::from_slice(&value).unwrap();
            assert!(event["price"].as_f64().unwrap() >= 1.0, "{event}");
            assert!(event["text"].as_str().unwrap().len() > 500, "{event}");
            ids.insert(event["id"].as_str().unwrap().to_owned());
        }
        assert_eq!(ids.len(), 100);
    }

    #[test]
    fn a_small_value_is_the_beginning_of_one() {
        let mut random = StdRng::seed_from_u64(1);
        for len in [1, 2, 10, 120, 150] {
            let mut value = vec![0; len];
            write(&mut random, &mut value);
            assert!(value.starts_with(&b"{\"id\":\""[..len.min(7)]), "{len}");
            assert!(!value.contains(&0), "{len}");
        }
    }
}

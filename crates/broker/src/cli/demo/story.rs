//! What is in the topics: a small shop. A record is a function of its number, so that whoever starts the demo again on
//! the same directory goes on where the topics end, without a list of what was sent.

use serde::Serialize;

/// Everybody who buys.
const CUSTOMERS: u64 = 60;
const CITIES: [&str; 6] = ["Accra", "Bogotá", "Cork", "Delhi", "Essen", "Fukuoka"];
const SHOPS: [&str; 3] = ["web", "app", "till"];
/// Article and price in cents.
const ARTICLES: [(&str, u64); 6] = [
    ("tea", 450),
    ("coffee", 300),
    ("cake", 525),
    ("bread", 380),
    ("honey", 790),
    ("jam", 410),
];

/// A topic of the demo.
#[derive(Debug)]
pub(super) struct Topic {
    /// Its name.
    pub(super) name: &'static str,
    /// With how many partitions it is created.
    pub(super) partitions: i32,
    /// With which configs.
    pub(super) configs: &'static [(&'static str, &'static str)],
    /// Records for each hundred orders.
    pub(super) per_hundred_orders: u64,
    /// What it shows, for the welcome.
    pub(super) about: &'static str,
    /// The record with this number in a topic of so many partitions.
    pub(super) record: fn(u64, u64) -> Entry,
}

/// The topic that the consumer group reads.
pub(super) const ORDERS: &str = "orders";

/// All topics. Values are JSON, and text for who queries the Parquet files.
pub(super) static TOPICS: [Topic; 3] = [
    Topic {
        name: ORDERS,
        partitions: 3,
        configs: &[("archive.value.type", "string")],
        per_hundred_orders: 100,
        about: "JSON, the customer as key, the shop in a header",
        record: order,
    },
    Topic {
        name: "page_views",
        partitions: 3,
        configs: &[("archive.value.type", "string"), ("retention.ms", "3600000")],
        per_hundred_orders: 300,
        about: "JSON; retention.ms is an hour",
        record: page_view,
    },
    Topic {
        name: "customers",
        partitions: 1,
        configs: &[("cleanup.policy", "compact")],
        per_hundred_orders: 10,
        about: "compacted: the newest record of each customer stays",
        record: customer,
    },
];

/// Key, value and the header `source` of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) value: String,
    pub(super) source: &'static str,
}

/// The number of the record at an offset of a partition: partitions are counted through in turns, so numbers are not
/// used twice.
pub(super) fn number(offset: i64, partition: usize, partitions: u64) -> u64 {
    u64::try_from(offset).unwrap_or(0) * partitions + partition as u64
}

#[derive(Serialize)]
struct Order {
    order: u64,
    customer: String,
    item: &'static str,
    quantity: u64,
    price: f64,
}

fn order(number: u64, partitions: u64) -> Entry {
    let mut draw = Draw(number);
    let customer = who(draw.next(), number, partitions);
    let (item, cents) = draw.one_of(&ARTICLES);
    let quantity = 1 + draw.next() % 3;
    Entry {
        key: customer.clone(),
        value: json(&Order {
            order: number,
            customer,
            item,
            quantity,
            price: (cents * quantity) as f64 / 100.0,
        }),
        source: draw.one_of(&SHOPS),
    }
}

#[derive(Serialize)]
struct PageView {
    path: String,
    customer: String,
    milliseconds: u64,
}

fn page_view(number: u64, partitions: u64) -> Entry {
    let mut draw = Draw(number);
    let customer = who(draw.next(), number, partitions);
    let (item, _) = draw.one_of(&ARTICLES);
    Entry {
        key: customer.clone(),
        value: json(&PageView {
            path: format!("/{item}"),
            customer,
            milliseconds: 5 + draw.next() % 90,
        }),
        source: draw.one_of(&SHOPS[..2]),
    }
}

#[derive(Serialize)]
struct Customer {
    customer: String,
    city: &'static str,
    change: u64,
}

fn customer(number: u64, partitions: u64) -> Entry {
    let mut draw = Draw(number);
    let customer = who(draw.next(), number, partitions);
    Entry {
        key: customer.clone(),
        value: json(&Customer {
            customer,
            city: draw.one_of(&CITIES),
            change: number,
        }),
        source: draw.one_of(&SHOPS[..2]),
    }
}

/// A customer whose records are in the partition of the record with this number.
fn who(drawn: u64, number: u64, partitions: u64) -> String {
    let in_each = (CUSTOMERS / partitions).max(1);
    let customer = drawn % in_each * partitions + number % partitions;
    format!("c-{customer:03}")
}

fn json(value: &impl Serialize) -> String {
    // Structs of numbers and text have a form in JSON.
    serde_json::to_string(value).unwrap_or_default()
}

/// Draws from a number: always the same from the same one (the finaliser of SplitMix64, a public algorithm).
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[(self.next() % choices.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;
    use std::collections::{BTreeMap, BTreeSet};

    proptest! {
        #[test]
        fn a_number_is_used_once_and_says_where_it_is(
            offset in 0..1_000_000_i64, partition in 0..7_usize, other in 0..1_000_000_i64, partitions in 7..9_u64,
        ) {
            let found = number(offset, partition, partitions);
            prop_assert_eq!(found % partitions, partition as u64);
            prop_assert_eq!(found == number(other, partition, partitions), offset == other);
        }

        #[test]
        fn a_record_is_a_function_of_its_number(number in 0..1_000_000_u64, partitions in 1..100_u64) {
            for topic in &TOPICS {
                let entry = (topic.record)(number, partitions);
                prop_assert_eq!(&entry, &(topic.record)(number, partitions));
                let value: Value = serde_json::from_str(&entry.value).unwrap();
                prop_assert_eq!(value["customer"].as_str(), Some(entry.key.as_str()));
            }
        }
    }

    #[test]
    fn all_records_of_a_customer_are_in_one_partition_and_all_customers_buy() {
        for topic in &TOPICS {
            let partitions = topic.partitions as u64;
            let mut places: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
            for number in 0..5_000 {
                let entry = (topic.record)(number, partitions);
                places.entry(entry.key).or_default().insert(number % partitions);
            }
            assert_eq!(places.len() as u64, CUSTOMERS, "{}", topic.name);
            assert!(places.values().all(|places| places.len() == 1), "{}", topic.name);
        }
    }

    #[test]
    fn an_order_reads_well() {
        let entry = order(7, 3);
        let value: Value = serde_json::from_str(&entry.value).unwrap();
        assert_eq!(value["order"], 7);
        let price = value["price"].as_f64().unwrap();
        let quantity = value["quantity"].as_u64().unwrap();
        let each = ARTICLES
            .iter()
            .find(|(item, _)| value["item"] == *item)
            .unwrap()
            .1;
        assert!(
            (price * 100.0 - (each * quantity) as f64).abs() < 1e-6,
            "{}",
            entry.value
        );
        assert!(
            entry.value.starts_with(r#"{"order":7,"customer":"c-"#),
            "{}",
            entry.value
        );
        assert!(SHOPS.contains(&entry.source));
    }
}

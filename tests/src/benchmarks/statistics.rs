//! The arithmetic of the tables: medians, ratios, dollars.

use std::collections::BTreeMap;

/// Seconds of the month that a bill is told for: 30 days.
pub(crate) const SECONDS_PER_MONTH: f64 = 30.0 * 24.0 * 3600.0;
/// One GiB.
pub(crate) const GIB: f64 = 1024.0 * 1024.0 * 1024.0;
/// Dollars per PUT, LIST, POST or COPY (S3 Standard, us-east-1).
const WRITE_DOLLARS: f64 = 5e-6;
/// Dollars per GET or HEAD.
const READ_DOLLARS: f64 = 4e-7;

/// The middle value; the mean of the two middle ones when their number is even.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut values: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// The median of the ratios of runs that were measured one beside the other.
pub(crate) fn ratio(ours: &[Option<f64>], theirs: &[Option<f64>]) -> Option<f64> {
    let pairs = ours.iter().zip(theirs);
    let ratios: Vec<f64> = pairs
        .filter_map(|(ours, theirs)| match (ours, theirs) {
            (Some(ours), Some(theirs)) if *theirs != 0.0 => Some(ours / theirs),
            _ => None,
        })
        .collect();
    median(&ratios)
}

/// How far the runs lie apart: the largest less the smallest, as a part of the median.
pub(crate) fn spread(values: &[f64]) -> Option<f64> {
    let middle = median(values)?;
    let largest = values.iter().copied().fold(f64::MIN, f64::max);
    let smallest = values.iter().copied().fold(f64::MAX, f64::min);
    (values.len() > 1 && middle != 0.0).then(|| (largest - smallest) / middle)
}

/// The price of a request of this kind. Deletes cost nothing.
pub(crate) fn price(kind: &str) -> f64 {
    match kind {
        "get" | "head" => READ_DOLLARS,
        "delete" => 0.0,
        _ => WRITE_DOLLARS,
    }
}

/// The price of these requests; storage and traffic are not in it.
pub(crate) fn dollars(requests: &BTreeMap<String, u64>) -> f64 {
    let prices = requests.iter().map(|(kind, count)| price(kind) * *count as f64);
    prices.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), Some(3.0));
        assert_eq!(median(&[f64::NAN, 5.0]), Some(5.0));
    }

    #[test]
    fn ratios_pair_the_runs() {
        let ours = [Some(2.0), Some(30.0), Some(8.0)];
        let theirs = [Some(1.0), Some(10.0), Some(2.0)];
        // The ratio of the medians would be 4.
        assert_eq!(ratio(&ours, &theirs), Some(3.0));
        assert_eq!(ratio(&ours, &[None, Some(0.0)]), None);
    }

    #[test]
    fn spread_is_relative() {
        assert_eq!(spread(&[9.0, 10.0, 12.0]), Some(0.3));
        assert_eq!(spread(&[10.0]), None);
        assert_eq!(spread(&[0.0, 0.0]), None);
    }

    #[test]
    fn one_put_a_second_is_thirteen_dollars_a_month() {
        let month = SECONDS_PER_MONTH as u64;
        let bill = |kind: &str, count: u64| dollars(&BTreeMap::from([(kind.to_owned(), count)]));
        assert!((bill("put", month) - 12.96).abs() < 1e-9);
        assert!((bill("list", month) - 12.96).abs() < 1e-9);
        assert!((bill("get", month) - 1.0368).abs() < 1e-9);
        assert!((bill("head", month) - 1.0368).abs() < 1e-9);
        assert_eq!(bill("delete", month), 0.0);
    }
}

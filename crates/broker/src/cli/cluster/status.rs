//! `alluvium cluster status URL`.

use alluvium_log::SystemClock;
use alluvium_log::cluster::status::{self, BrokerStatus, SlotRange, Status};

use super::super::store::{absolute, look_into};
use super::print;

/// Columns that the page uses at most.
const WIDTH: usize = 100;
/// Characters of a rack's name that are shown: its end, in which zones differ.
const RACK_SHOWN: usize = 13;
/// Lines of moves, and of sealed streams, that are shown.
const ROWS_SHOWN: usize = 20;

/// What to look at.
#[derive(clap::Args, Clone, Debug)]
pub(in crate::cli) struct StatusArgs {
    /// The store, as for `serve --store`; a directory may be in use by a broker
    url: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: StatusArgs) -> Result<(), String> {
    let status = look(&args.url).await?;
    let text = match args.json {
        true => serde_json::to_string_pretty(&status).map_err(|e| e.to_string())?,
        false => page(&status),
    };
    print(&text)?;
    match status.problems.is_empty() {
        true => Ok(()),
        false => Err(status.problems.join("\n")),
    }
}

pub(super) async fn look(url: &str) -> Result<Status, String> {
    let store = look_into(&absolute(url)?).await?;
    let seen = status::look(&store, &SystemClock)
        .await
        .map_err(|e| e.to_string())?;
    Ok(status::judge(&seen))
}

/// The page that people read; the problems come after it, as the command's error.
pub(super) fn page(status: &Status) -> String {
    let mut out = summary(status);
    if !status.brokers.is_empty() {
        out.push(String::new());
        out.extend(table(&brokers(&status.brokers), &[2]));
        out.push(String::new());
        out.extend(table(&roles(&status.brokers), &[1, 2]));
    }
    if !status.linked.is_empty() {
        out.push(String::new());
        out.push(
            "Earlier streams that partitions go through until their brokers have merged them:".to_owned(),
        );
        let mut rows = vec![
            ["BROKER", "INC", "SEALED AT", "SLOTS", "WHICH"]
                .map(str::to_owned)
                .to_vec(),
        ];
        rows.extend(status.linked.iter().take(ROWS_SHOWN).map(|linked| {
            vec![
                linked.node_id.to_string(),
                linked.incarnation.to_string(),
                linked
                    .sealed_at
                    .map_or_else(|| "lives".to_owned(), |at| at.to_string()),
                linked.slots.to_string(),
                ranges(&linked.slot_ranges, 40),
            ]
        }));
        out.extend(table(&rows, &[4]));
        out.extend(more(status.linked.len()));
    }
    if !status.moves.is_empty() {
        out.push(String::new());
        out.push("Slots on their way:".to_owned());
        for step in status.moves.iter().take(ROWS_SHOWN) {
            out.push(format!(
                "  {} from broker {} to broker {}",
                step.slots, step.from, step.to
            ));
        }
        out.extend(more(status.moves.len()));
    }
    if !status.notes.is_empty() {
        out.push(String::new());
        for note in &status.notes {
            out.extend(wrapped(note, "- "));
        }
    }
    out.join("\n")
}

fn more(rows: usize) -> Option<String> {
    (rows > ROWS_SHOWN).then(|| format!("  and {} more (--json shows all)", rows - ROWS_SHOWN))
}

fn summary(status: &Status) -> Vec<String> {
    let even = match (status.brokers.len(), status.partitions_min, status.partitions_max) {
        (0, ..) => String::new(),
        (_, min, max) if min == max => format!(", {min} partitions each"),
        (_, min, max) => format!(", {min} to {max} partitions each"),
    };
    let moving: u64 = status.moves.iter().map(|step| step.slots.count()).sum();
    let orphans: u64 = status.slots_without_owner.iter().map(SlotRange::count).sum();
    let restored = match status.restored_from {
        Some(version) => format!(", restored from version {version}"),
        None => String::new(),
    };
    let rows = [
        ("cluster", format!("{} in {}", status.cluster_id, status.store)),
        (
            "manifest",
            format!(
                "version {}, {} bytes, feature level {}{restored}",
                status.manifest_version, status.manifest_bytes, status.feature_level
            ),
        ),
        (
            "topics",
            format!("{} with {} partitions", status.topics, status.partitions),
        ),
        ("brokers", format!("{} live{even}", status.brokers.len())),
        (
            "slots",
            match orphans {
                0 => format!("{}, {moving} on their way", status.slots),
                _ => format!(
                    "{}, {moving} on their way, {orphans} WITHOUT OWNER: {}",
                    status.slots,
                    ranges(&status.slots_without_owner, 24)
                ),
            },
        ),
    ];
    rows.iter()
        .map(|(name, value)| format!("{name:<10}{value}"))
        .collect()
}

fn brokers(brokers: &[BrokerStatus]) -> Vec<Vec<String>> {
    let head = [
        "BROKER", "INC", "RACK", "LEADS", "SLOTS", "HEAD", "SAVED", "TIP", "FLOOR", "UNMERGED",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(brokers.iter().map(|b| {
        vec![
            b.node_id.to_string(),
            b.incarnation.to_string(),
            end_of(b.rack.as_deref().unwrap_or("-"), RACK_SHOWN),
            b.partitions.to_string(),
            b.slots.to_string(),
            age(b.head_age_ms),
            age(b.checkpoint_age_ms),
            b.tip.to_string(),
            b.floor.to_string(),
            b.unmerged.to_string(),
        ]
    }));
    rows
}

fn roles(brokers: &[BrokerStatus]) -> Vec<Vec<String>> {
    let mut rows = vec![["BROKER", "ROLE", "ENDPOINTS"].map(str::to_owned).to_vec()];
    for b in brokers {
        let role = match (b.controller, b.draining) {
            (true, true) => "controller, draining",
            (true, false) => "controller",
            (false, true) => "draining",
            (false, false) => "-",
        };
        let endpoints = b.endpoints.iter().map(|(name, e)| match e.host.contains(':') {
            true => format!("{name}://[{}]:{}", e.host, e.port),
            false => format!("{name}://{}:{}", e.host, e.port),
        });
        let mut first = [b.node_id.to_string(), role.to_owned()];
        for endpoint in endpoints {
            let [id, role] = std::mem::take(&mut first);
            rows.push(vec![id, role, cut(&endpoint, WIDTH - 34)]);
        }
        if !first[0].is_empty() {
            rows.push(vec![first[0].clone(), first[1].clone(), "-".to_owned()]);
        }
    }
    rows
}

/// Rows with their columns aligned: those in `left` to the left, all others, which hold numbers, to the right.
fn table(rows: &[Vec<String>], left: &[usize]) -> Vec<String> {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(column, (cell, width))| match left.contains(&column) {
            true => format!("{cell:<width$}"),
            false => format!("{cell:>width$}"),
        });
        format!("  {}", cells.collect::<Vec<_>>().join("  "))
            .trim_end()
            .to_owned()
    };
    rows.iter().map(line).collect()
}

/// How long ago, in one unit.
fn age(ms: Option<i64>) -> String {
    let Some(ms) = ms else {
        return "-".to_owned();
    };
    match ms / 1000 {
        s @ ..120 => format!("{s} s"),
        s @ ..7_200 => format!("{} min", s / 60),
        s @ ..172_800 => format!("{} h", s / 3_600),
        s => format!("{} d", s / 86_400),
    }
}

/// At most `most` characters.
fn cut(text: &str, most: usize) -> String {
    match text.chars().count() <= most {
        true => text.to_owned(),
        false => text.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
    }
}

/// At most the last `most` characters.
fn end_of(text: &str, most: usize) -> String {
    let characters: Vec<char> = text.chars().collect();
    match characters.len().checked_sub(most.saturating_sub(1)) {
        Some(hidden @ 2..) => std::iter::once('…')
            .chain(characters[hidden..].iter().copied())
            .collect(),
        _ => text.to_owned(),
    }
}

/// Ranges in about `most` characters.
fn ranges(ranges: &[SlotRange], most: usize) -> String {
    let mut out = String::new();
    for (i, range) in ranges.iter().enumerate() {
        let next = format!("{}{range}", if i == 0 { "" } else { ", " });
        if out.len() + next.len() > most {
            return format!("{out}, ... {} more ranges", ranges.len() - i);
        }
        out.push_str(&next);
    }
    out
}

/// A sentence in lines that fit.
fn wrapped(sentence: &str, bullet: &str) -> Vec<String> {
    let mut lines = vec![];
    let mut line = bullet.to_owned();
    for word in sentence.split_whitespace() {
        if line.chars().count() + word.chars().count() + 1 > WIDTH && line.trim() != bullet.trim() {
            lines.push(line.trim_end().to_owned());
            line = " ".repeat(bullet.len());
        }
        line.push_str(word);
        line.push(' ');
    }
    lines.push(line.trim_end().to_owned());
    lines
}

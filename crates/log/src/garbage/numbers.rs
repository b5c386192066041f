//! Numbers of the objects that one broker start writes, and which of them may still get a pointer.
//!
//! An object is written first and pointed to afterwards, so in between it looks as if nobody needed it. A number is
//! *open* from before its object is written until it is certain that no further pointer to it will be published.
//! Whoever writes objects of a kind takes their numbers from the one [`FileNumbers`] of that kind, and from nowhere
//! else: a number that is not known as open counts as settled, and its object may be deleted.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;

/// Gives numbers, each once, and knows which are open.
#[derive(Debug, Default)]
pub(crate) struct FileNumbers(Mutex<Numbers>);

#[derive(Debug, Default)]
struct Numbers {
    next: u64,
    open: BTreeSet<u64>,
}

impl FileNumbers {
    /// The number of a new object.
    pub(crate) fn begin(self: &Arc<Self>) -> FileNumber {
        let mut numbers = self.0.lock();
        let number = numbers.next;
        numbers.next += 1;
        numbers.open.insert(number);
        FileNumber {
            number,
            submitted: false,
            of: self.clone(),
        }
    }

    /// All pointers to objects of smaller numbers that will ever be published are published.
    pub(crate) fn settled_below(&self) -> u64 {
        let numbers = self.0.lock();
        numbers.open.first().copied().unwrap_or(numbers.next)
    }
}

/// The number of an object that is being written and pointed to. Dropped before [`FileNumber::submit`] it is settled:
/// nobody will ever point to the object, whether it is there, comes late or never. Dropped afterwards it stays open for
/// as long as this broker start lives, since the pointers may be published after all.
#[derive(Debug)]
pub(crate) struct FileNumber {
    number: u64,
    submitted: bool,
    of: Arc<FileNumbers>,
}

impl FileNumber {
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Pointers are being handed to the stream.
    pub(crate) fn submit(&mut self) {
        self.submitted = true;
    }

    /// The pointers are published and applied, or it is certain that they never will be.
    pub(crate) fn settle(mut self) {
        self.submitted = false;
    }
}

impl Drop for FileNumber {
    fn drop(&mut self) {
        if !self.submitted {
            self.of.0.lock().open.remove(&self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_still_get_a_pointer_holds_back_all_after_it() {
        let numbers = Arc::new(FileNumbers::default());
        assert_eq!(numbers.settled_below(), 0);
        let (first, mut second, third) = (numbers.begin(), numbers.begin(), numbers.begin());
        assert_eq!((first.number(), second.number(), third.number()), (0, 1, 2));
        drop(third);
        assert_eq!(numbers.settled_below(), 0);
        drop(first);
        assert_eq!(numbers.settled_below(), 1, "nothing was submitted for the first");
        second.submit();
        drop(second);
        assert_eq!(numbers.settled_below(), 1, "its pointers may come yet");
        let mut fourth = numbers.begin();
        fourth.submit();
        fourth.settle();
        assert_eq!(numbers.settled_below(), 1);
    }

    #[test]
    fn what_is_settled_is_out_of_the_way() {
        let numbers = Arc::new(FileNumbers::default());
        let mut one = numbers.begin();
        one.submit();
        one.settle();
        assert_eq!(numbers.settled_below(), 1);
        assert_eq!(numbers.begin().number(), 1);
        assert_eq!(numbers.settled_below(), 2, "a dropped number is not given again");
    }
}

//! The list of targets of a running capture: their numbers, their states, and what may be added to it or taken from it. Pure.
//!
//! A number is not used twice, so that what is still on its way about a target that has gone cannot be taken for another's. So the targets
//! that a process can add are limited, by [`ADDED_MAX`].

use crate::config::{TARGETS_MAX, TargetConfig};
use crate::model::TargetId;
use crate::pipeline::TargetMap;
use crate::runtime::{target_id, target_match};

/// Targets that can be added while a capture runs; each costs a kilobyte or two at every worker, used or not.
pub(super) const ADDED_MAX: usize = 1000;

/// Every one can have a number.
const _: () = assert!(TARGETS_MAX + ADDED_MAX <= u16::MAX as usize);

/// What is going on with a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TargetState {
    /// Its memory is being taken.
    Adding,
    /// It is counted.
    Watched,
    /// Its last packets are being counted.
    Removing,
}

impl TargetState {
    pub(super) const fn name(self) -> &'static str {
        match self {
            TargetState::Adding => "adding",
            TargetState::Watched => "watched",
            TargetState::Removing => "removing",
        }
    }
}

/// A target with its number and state.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) id: TargetId,
    pub(super) target: TargetConfig,
    pub(super) state: TargetState,
}

/// What a new configuration changes: by name, in this order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) remove: Vec<String>,
    pub(super) add: Vec<TargetConfig>,
}

/// The targets, in the order of their numbers.
#[derive(Debug)]
pub(super) struct Roster {
    entries: Vec<Entry>,
    /// Numbers that were given.
    used: usize,
    slots: usize,
}

impl Roster {
    /// Those of the configuration, which are watched from the start.
    pub(super) fn new(targets: &[TargetConfig]) -> Roster {
        let entries = targets.iter().enumerate().map(|(index, target)| Entry {
            id: target_id(index),
            target: target.clone(),
            state: TargetState::Watched,
        });
        let slots = targets.len() + ADDED_MAX;
        Roster { entries: entries.collect(), used: targets.len(), slots }
    }

    /// Numbers that there are for targets, given or not.
    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(super) fn targets(&self) -> Vec<TargetConfig> {
        self.entries.iter().map(|entry| entry.target.clone()).collect()
    }

    /// The same without one.
    pub(super) fn targets_without(&self, id: TargetId) -> Vec<TargetConfig> {
        self.entries.iter().filter(|entry| entry.id != id).map(|entry| entry.target.clone()).collect()
    }

    /// As the pipeline matches them.
    pub(super) fn map(&self) -> TargetMap {
        self.map_of(|_| true)
    }

    /// The same without one.
    pub(super) fn map_without(&self, id: TargetId) -> TargetMap {
        self.map_of(|entry| entry.id != id)
    }

    fn map_of(&self, keep: impl Fn(&Entry) -> bool) -> TargetMap {
        let mut slots = vec![None; self.slots];
        for entry in self.entries.iter().filter(|entry| keep(entry)) {
            slots[entry.id.index()] = Some(target_match(&entry.target));
        }
        TargetMap::with_slots(slots)
    }

    /// Gives a new target a number, in state `Adding`; or says why it cannot be added.
    pub(super) fn admit(&mut self, target: TargetConfig) -> Result<TargetId, String> {
        check(&target, self.entries.iter().map(|entry| &entry.target))?;
        check_count(self.entries.len() + 1)?;
        self.check_room(1)?;
        let id = target_id(self.used);
        self.used += 1;
        self.entries.push(Entry { id, target, state: TargetState::Adding });
        Ok(id)
    }

    /// The target of this name, in state `Removing` from now on; or why it cannot be removed.
    pub(super) fn dismiss(&mut self, name: &str) -> Result<Entry, String> {
        if self.entries.len() == 1 && self.entries[0].target.name == name {
            return Err(format!("{name:?} is the last target; to watch nothing, stop memtap"));
        }
        self.begin_removing(name)
    }

    /// The same where others are about to come in its place.
    pub(super) fn begin_removing(&mut self, name: &str) -> Result<Entry, String> {
        let known: Vec<String> =
            self.entries.iter().map(|entry| format!("{:?}", entry.target.name)).collect();
        let entry = self.entries.iter_mut().find(|entry| entry.target.name == name);
        let entry =
            entry.ok_or_else(|| format!("there is no target {name:?}; there are {}", known.join(", ")))?;
        entry.state = TargetState::Removing;
        Ok(entry.clone())
    }

    /// It is counted.
    pub(super) fn settle(&mut self, id: TargetId) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.id == id) {
            entry.state = TargetState::Watched;
        }
    }

    /// It is not there any more.
    pub(super) fn forget(&mut self, id: TargetId) {
        self.entries.retain(|entry| entry.id != id);
    }

    /// What has to be done to watch these targets and no others. One that is different in anything but its name goes and comes anew.
    pub(super) fn plan(&self, wanted: &[TargetConfig]) -> Result<Plan, String> {
        check_count(wanted.len())?;
        let stays = |target: &TargetConfig| wanted.contains(target);
        let (staying, leaving): (Vec<_>, Vec<_>) =
            self.entries.iter().map(|entry| &entry.target).partition(|target| stays(target));
        let add: Vec<TargetConfig> =
            wanted.iter().filter(|target| !staying.contains(target)).cloned().collect();
        for (index, target) in add.iter().enumerate() {
            check(target, staying.iter().copied().chain(&add[..index]))?;
        }
        self.check_room(add.len())?;
        Ok(Plan { remove: leaving.into_iter().map(|target| target.name.clone()).collect(), add })
    }

    fn check_room(&self, more: usize) -> Result<(), String> {
        if self.used + more <= self.slots {
            return Ok(());
        }
        let left = self.slots - self.used;
        Err(format!("a running memtap can add {ADDED_MAX} targets, of which {left} are left; restart it"))
    }
}

/// Whether so many targets can be watched at once.
fn check_count(count: usize) -> Result<(), String> {
    if count <= TARGETS_MAX {
        return Ok(());
    }
    Err(format!(
        "{count} targets are too many; allowed are {TARGETS_MAX}: remove one before, or watch a network as one target"
    ))
}

/// Whether a target can stand beside these. One that overlaps another would take its packets, or never see any.
fn check<'a>(
    target: &TargetConfig,
    mut others: impl Iterator<Item = &'a TargetConfig>,
) -> Result<(), String> {
    others.try_for_each(|other| {
        if other.name == target.name {
            return Err(format!("there is a target {:?} already: {}", other.name, other.address()));
        }
        if other.overlaps(target) {
            let (new, old) = (target.address(), other.address());
            return Err(format!(
                "{new} overlaps target {:?} ({old}), whose packets it would take",
                other.name
            ));
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> TargetConfig {
        TargetConfig::parse(text).expect("a target")
    }

    fn roster(texts: &[&str]) -> Roster {
        Roster::new(&texts.iter().map(|text| target(text)).collect::<Vec<_>>())
    }

    #[test]
    fn numbers_rise_and_are_not_given_twice() {
        let mut roster = roster(&["a=10.0.0.1", "b=10.0.0.2"]);
        assert_eq!(roster.slots(), 2 + ADDED_MAX);
        let third = roster.admit(target("c=10.0.0.3")).unwrap();
        assert_eq!((third, roster.entries()[2].state), (TargetId(2), TargetState::Adding));
        roster.settle(third);
        assert_eq!(roster.dismiss("c").unwrap().id, third);
        assert_eq!(roster.entries()[2].state, TargetState::Removing);
        assert_eq!(roster.map_without(third).ids().collect::<Vec<_>>(), [TargetId(0), TargetId(1)]);
        roster.forget(third);
        assert_eq!(roster.admit(target("c=10.0.0.3")), Ok(TargetId(3)));
        assert_eq!(roster.map().ids().collect::<Vec<_>>(), [TargetId(0), TargetId(1), TargetId(3)]);
        assert_eq!(roster.map().len(), roster.slots());
    }

    #[test]
    fn what_cannot_be_added_or_removed_is_refused_with_the_reason() {
        let mut roster = roster(&["a=10.0.0.1", "fleet=10.1.0.0/16"]);
        let refused = |result: Result<TargetId, String>, expected: &str| {
            let error = result.expect_err("refused");
            assert!(error.contains(expected), "{error}");
        };
        refused(roster.admit(target("a=10.0.0.9")), "there is a target \"a\" already: 10.0.0.1:11211");
        refused(roster.admit(target("b=10.1.2.3")), "overlaps target \"fleet\" (10.1.0.0/16:11211)");
        refused(roster.admit(target("*")), "overlaps target \"a\"");
        assert!(roster.admit(target("b=10.1.2.3:11212")).is_ok(), "another port is another server");
        assert!(roster.dismiss("x").unwrap_err().contains("there are \"a\", \"fleet\", \"b\""));
        for (name, number) in [("a", 0), ("b", 2)] {
            assert!(roster.dismiss(name).is_ok());
            roster.forget(TargetId(number));
        }
        assert!(roster.dismiss("fleet").unwrap_err().contains("the last target"));
        // Not where others come in its place.
        assert!(roster.begin_removing("fleet").is_ok());
    }

    #[test]
    fn a_process_adds_a_limited_number_of_targets() {
        let mut roster = roster(&["a=10.0.0.1"]);
        for round in 0..ADDED_MAX {
            let id = roster.admit(target("b=10.0.0.2")).unwrap();
            assert_eq!(id.index(), round + 1);
            roster.forget(id);
        }
        assert!(roster.admit(target("b=10.0.0.2")).unwrap_err().contains("of which 0 are left; restart it"));
        assert!(roster.plan(&[target("b=10.0.0.2")]).is_err());
        assert!(roster.plan(&[target("a=10.0.0.1")]).is_ok(), "what is there needs no number");
    }

    #[test]
    fn no_more_targets_are_watched_than_a_configuration_may_have() {
        let many: Vec<TargetConfig> = (0..TARGETS_MAX)
            .map(|number| target(&format!("10.1.{}.{}", number / 200, number % 200)))
            .collect();
        let mut roster = Roster::new(&many);
        let refusal = roster.admit(target("10.2.0.1")).expect_err("one too many");
        assert!(refusal.starts_with("10001 targets are too many; allowed are 10000"), "{refusal}");
        assert_eq!(roster.plan(&[many, vec![target("10.2.0.1")]].concat()), Err(refusal));
        roster.forget(TargetId(7));
        let id = roster.admit(target("10.2.0.1"));
        assert_eq!(
            id,
            Ok(TargetId(TARGETS_MAX as u16)),
            "the number of one that has gone is not given again"
        );
    }

    #[test]
    fn a_configuration_changes_what_is_different() {
        let roster = roster(&["a=10.0.0.1", "b=10.0.0.2", "c=10.0.0.3"]);
        let smaller = TargetConfig { budget_bytes: 20_000_000, ..target("b=10.0.0.2") };
        let wanted = [target("d=10.0.0.3"), target("a=10.0.0.1"), smaller.clone()];
        let plan = roster.plan(&wanted).unwrap();
        assert_eq!(plan.remove, ["b", "c"]);
        assert_eq!(plan.add, [target("d=10.0.0.3"), smaller]);
        // The order alone is no difference.
        let same = [target("c=10.0.0.3"), target("b=10.0.0.2"), target("a=10.0.0.1")];
        assert_eq!(roster.plan(&same), Ok(Plan::default()));
        let overlapping = [target("a=10.0.0.1"), target("all=10.0.0.0/8")];
        assert!(roster.plan(&overlapping).unwrap_err().contains("overlaps target \"a\""));
        let each_other = [target("x=10.9.0.0/16"), target("y=10.9.0.1")];
        assert!(roster.plan(&each_other).unwrap_err().contains("overlaps target \"x\""));
    }
}

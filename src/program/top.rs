//! What the rows of --top are, and how they can be grouped.

use clap::ValueEnum;

use crate::grouping::GroupBy;
use crate::grouping::key::property;
use crate::output::top::{Property, Rows};
use crate::traffic::subject::Subject;
use crate::workload::names::Names;

/// Processes, which are grouped by a property at first, and by any other later.
pub fn processes(group_by: GroupBy) -> Rows {
    let grouping = |by: &GroupBy| -> (&'static str, Property) {
        match by {
            GroupBy::Command => ("COMMAND", |subject, names| owned(GroupBy::Command, subject, names)),
            GroupBy::Program => ("PROGRAM", |subject, names| owned(GroupBy::Program, subject, names)),
            GroupBy::User => ("USER", |subject, names| owned(GroupBy::User, subject, names)),
            GroupBy::Unit => ("UNIT", |subject, names| owned(GroupBy::Unit, subject, names)),
            GroupBy::Container => ("CONTAINER", |subject, names| owned(GroupBy::Container, subject, names)),
        }
    };
    let all = GroupBy::value_variants();
    let first = all.iter().position(|by| *by == group_by).unwrap_or_default();
    Rows { of: GroupBy::Command.nouns(), groupings: all.iter().map(grouping).collect(), first }
}

/// Applications, as the configuration has them.
pub fn applications() -> Rows {
    Rows { of: ("application", "applications"), groupings: Vec::new(), first: 0 }
}

fn owned(by: GroupBy, subject: &Subject, names: &mut Names) -> Option<Vec<u8>> {
    property(by, subject, names).map(|name| name.into_owned())
}
